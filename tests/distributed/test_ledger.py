"""Mislabelled pairs are found: the demo with 5 % of its labels flipped, its ledger and its report."""

from __future__ import annotations

import json
import random

import pytest

from minimind import demo
from minimind.data.shapes import parse_rows
from minimind.diagnosis.command import main
from tests.distributed.launching import train

pytestmark = pytest.mark.distributed


def test_flipped_labels_of_the_demo_are_among_the_first_suspects(tmp_path):
    """At least 80 % of them in the first 10 % of the pairs, after one epoch in which each pair is met once."""
    rows = [json.loads(line) for line in demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines()]
    flipped = set(random.Random(0).sample(range(len(rows)), len(rows) // 20))
    data, run, suspects = tmp_path / "pairs.jsonl", tmp_path / "run", tmp_path / "suspects.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            if number in flipped:
                row = {"chosen": row["rejected"], "rejected": row["chosen"]}
            file.write(json.dumps(row) + "\n")
    names = ("learning_rate", "batch_size", "max_seq_len", "log_interval", "tokenizer_path", "from_weight")
    flags = [word for name in names for word in (f"--{name}", demo.SETTINGS[name])]
    done = train("--data_path", data, "--save_dir", run, "--ledger", 1, *flags).succeeded()
    assert f"report: {run / 'report.html'}" in done.output
    main([str(run), "--suspects", str(suspects)])

    found = [json.loads(line) for line in suspects.read_text(encoding="utf-8").splitlines()]
    first = {row["line"] - 1 for row in found[: len(rows) // 10]}
    assert len(flipped & first) >= 0.8 * len(flipped)
    # The rows are those of the data, and training reads them.
    (pair,) = parse_rows(json.dumps(found[0]).encode())
    row = json.loads(data.read_text(encoding="utf-8").splitlines()[found[0]["line"] - 1])
    assert (pair.chosen, pair.rejected) == (row["chosen"], row["rejected"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"line {found[0]['line']}: margin" in page
