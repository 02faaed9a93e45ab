"""A reference that follows the policy: steps by hand in one process, resumed bit for bit, on other ranks and stages."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from minimind import demo
from minimind.data.sources import open_source
from minimind.data.table_cache import load_table
from minimind.weights.sources import open_weights
from tests.distributed.launching import metrics, train
from tests.distributed.test_models import pair_loss, save_model

pytestmark = pytest.mark.distributed

PAIRS, LENGTH, GLOBAL_BATCH, SHARE, EVERY = 24, 96, 4, 0.5, 2
UPDATE = ("--reference_update", f"soft:{SHARE}@{EVERY}")


def run(folder, save_dir, *more, ranks=2, config="zero3"):
    flags = {
        "from_weight": folder / "start", "data_path": folder / "pairs.jsonl", "max_seq_len": LENGTH, "dtype": "float32",
        "batch_size": GLOBAL_BATCH // ranks, "learning_rate": 1e-3, "shuffle": 0, "log_interval": 1, "save_interval": 3,
        "save_dtype": "float32", "save_dir": folder / save_dir, "average_log_prob": 1, "beta": 0.1,
    }  # fmt: skip
    arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
    return train(*arguments, *UPDATE, *more, config=config, ranks=ranks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run under ZeRO-3 on two ranks, with its start weights and pairs."""
    path = tmp_path_factory.mktemp("moving")
    lines = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines(keepends=True)[:PAIRS]
    (path / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    save_model("llama", path / "start")
    done = run(path, "whole").succeeded()
    assert "the reference moves: every 2 global steps 0.5 of the policy and 0.5 of itself" in done.output
    return path


def losses_by_hand(folder, rates, moves):
    """Loss of each step of transformers' own model, single rows and torch's AdamW."""
    tokenizer = AutoTokenizer.from_pretrained(demo.TOKENIZER_PATH)
    source = open_source(folder / "pairs.jsonl")
    table = load_table(source, tokenizer, max_length=LENGTH, num_workers=0, cache_dir=folder / "cache")
    model = save_model("llama", folder / "start")
    reference = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    losses = []
    for step, rate in enumerate(rates, start=1):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        pairs = [table[index] for index in range((step - 1) * GLOBAL_BATCH, step * GLOBAL_BATCH)]
        loss = torch.stack([pair_loss(model, reference, pair) for pair in pairs]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if moves and step % EVERY == 0:
            with torch.no_grad():
                for mine, its in zip(reference.parameters(), model.parameters(), strict=True):
                    mine.copy_(SHARE * its + (1 - SHARE) * mine)
    return losses


def test_steps_are_those_of_an_average_by_hand(folder):
    steps = metrics(folder / "whole")
    rates = [entry["learning_rate"] for entry in steps]
    assert len(rates) == PAIRS // GLOBAL_BATCH
    moved, still = (losses_by_hand(folder, rates, moves) for moves in (True, False))
    assert [entry["loss"] for entry in steps] == pytest.approx(moved, abs=2e-6)
    assert abs(moved[-1] - still[-1]) > 1e-4


def after_step_3(folder, name):
    """A copy of the run that was stopped after step 3: the reference has moved once, and will move in the next step."""
    shutil.copytree(folder / "whole", folder / name)
    shutil.rmtree(folder / name / "checkpoints/step00000006")
    (folder / name / "checkpoints/latest").write_text("step00000003")


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(folder):
    after_step_3(folder, "resumed")
    run(folder, "resumed", "--from_resume", 1).succeeded()
    for key in ("loss", "grad_norm", "rewards/margins"):
        one, other = ([entry[key] for entry in metrics(folder / name)] for name in ("whole", "resumed"))
        assert one == other
    ends = [torch.load(folder / name / "checkpoints/step00000006/reference_rank_00001.pt") for name in
            ("whole", "resumed")]  # fmt: skip
    assert all(torch.equal(value, ends[1]["averages"][name]) for name, value in ends[0]["averages"].items())


def test_a_run_resumes_on_one_rank_under_zero_2(folder):
    after_step_3(folder, "alone")
    done = run(folder, "alone", "--from_resume", 1, ranks=1, config="zero2").succeeded()
    assert "resharded: 2 ranks, ZeRO-3 -> 1 ranks, ZeRO-2" in done.output
    one, other = ([entry["loss"] for entry in metrics(folder / name)] for name in ("whole", "alone"))
    assert one == pytest.approx(other, abs=2e-6)
    manifest = json.loads((folder / "alone/checkpoints/step00000006/manifest.json").read_text())
    assert "reference_rank_00000.pt" in manifest["files"]


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_a_bfloat16_run_keeps_a_float32_average(folder, config):
    """Two ranks hold the average of the float32 weights that the run exports, bit for bit."""
    given = {
        "from_weight": demo.WEIGHT_PATH, "tokenizer_path": demo.TOKENIZER_PATH, "data_path": folder / "pairs.jsonl",
        "max_seq_len": LENGTH, "batch_size": 2, "learning_rate": 1e-5, "max_steps": 2, "save_dtype": "float32",
        "reference_update": "ema:0.75@2", "save_dir": folder / config,
    }  # fmt: skip
    train(*(part for name, value in given.items() for part in (f"--{name}", value)), config=config, ranks=2).succeeded()
    start, end = (open_weights(path, {}) for path in (demo.WEIGHT_PATH, folder / config / "dpo_96.pth"))
    files = sorted((folder / config / "checkpoints/step00000002").glob("reference_rank_*.pt"))
    parts = [torch.load(path)["averages"] for path in files]
    assert len(parts) == 2
    for name, average in parts[0].items():
        before, after = (source.read(name).float().flatten() for source in (start, end))
        assert not torch.equal(before, after)
        assert torch.equal(torch.cat((average, parts[1][name])), before.lerp(after, 0.25)), name
