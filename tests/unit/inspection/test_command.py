"""The script: files that it writes, hostile data, the split, and the command at the end."""

from __future__ import annotations

import json
import shlex

import pytest

from minimind import demo
from minimind.config import parse_settings
from minimind.errors import ConfigError
from minimind.inspection import command
from minimind.inspection.command import main, prepare_data
from tests.conftest import pair
from tests.unit.inspection.made import HOSTILE, Page

ROWS = [pair(f"Number {i}? {HOSTILE}", f"Yes. {HOSTILE}", f"No! {HOSTILE}") for i in range(20)]


@pytest.fixture
def argv(write_rows, tmp_path):
    def build(*flags, rows=ROWS, name="a<b>.jsonl"):
        path = write_rows(*rows, name=name)
        given = ["--data_path", path, "--tokenizer_path", demo.TOKENIZER_PATH, "--from_weight", "none"]
        given += ["--num_workers", 0, "--cache_dir", tmp_path / "cache", "--out", tmp_path / "out", *flags]
        return list(map(str, given))

    return build


def printed_command(text: str) -> list[str]:
    return shlex.split(text[text.rindex("    deepspeed ") :].replace("\\\n", " "))


def test_hostile_data_are_shown_as_texts(argv, tmp_path, capsys):
    wrong = {HOSTILE: 1, "chosen": []}
    main(argv("--batch_size", 2, rows=[*ROWS, wrong]))
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.elements
    assert {name for name in page.attributes if name.startswith("on")} == set()
    assert any("<script>alert(1)</script>" in text for text in page.texts)
    assert "\033" not in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert (report["pairs"], report["sources"][0]["refused_rows"]) == (20, 1)


def test_the_command_at_the_end_is_that_of_the_run(argv, capsys):
    flags = argv("--beta", 0.3, "--gpus_per_node", 2, "--save_dir", "a b")
    main(flags)
    words = printed_command(capsys.readouterr().out)
    assert words[:4] == ["deepspeed", "--num_gpus", "2", "launch/train_dpo.py"]
    settings = parse_settings(words[4:])
    assert settings.config.objective.beta == 0.3
    assert settings.config.run.save_dir == "a b"
    assert settings.config.data.data_path == (flags[1],)
    assert settings.config.engine.deepspeed == "ds_configs/zero2.json"


def test_a_split_is_what_the_command_trains_on(argv, tmp_path, capsys):
    report = prepare_data(argv("--eval_share", 0.25))
    settings = parse_settings(printed_command(capsys.readouterr().out)[4:])
    data = settings.config.data
    assert (data.data_path, data.eval_data_path) == ((f"{tmp_path}/out/train.jsonl",), (f"{tmp_path}/out/eval.jsonl",))
    assert (report.pairs, report.eval_pairs, report.equal.leaked_prompts.pairs) == (15, 5, 0)


def test_a_split_would_lose_the_names_of_its_columns(argv, tmp_path):
    entry = {"file_name": "pairs.jsonl", "ranking": True, "columns": {"prompt": "q"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    rows = [{"q": f"Number {i}?", "chosen": "Yes.", "rejected": "No!"} for i in range(4)]
    with pytest.raises(SystemExit, match=r"entry 'mine' names the columns of pairs\.jsonl, but not those of the files"):
        main(argv("--batch_size", 2, "--eval_share", 0.5, rows=rows, name="pairs.jsonl"))


def test_a_split_of_a_mix_keeps_its_weights(argv, write_rows, tmp_path, capsys):
    other = write_rows([pair(f"Letter {i}?", "Yes.", "No!") for i in range(4)], name="more.json")
    report = prepare_data(argv("--eval_share", 0.25, "--data_path", f"{other}:0.5"))
    data = parse_settings(printed_command(capsys.readouterr().out)[4:]).config.data
    assert data.data_path == (f"{tmp_path}/out/train_1.jsonl", f"{tmp_path}/out/train_2.jsonl:0.5")
    assert len(report.sources) == 2
    assert report.pairs + report.eval_pairs == 24
    lines = [(tmp_path / "out" / f"train_{number}.jsonl").read_text().count("\n") for number in (1, 2)]
    assert report.cost.steps == int(lines[0] + lines[1] / 2) // 4


def test_the_same_data_have_the_same_report(argv, tmp_path):
    contents = []
    for _ in range(2):
        prepare_data(argv("--gpu_memory", "8GiB"))
        contents.append([(tmp_path / "out" / f"report.{kind}").read_bytes() for kind in ("html", "json")])
    assert contents[0] == contents[1]


def test_answers_with_labels_are_left_to_the_run(argv, capsys):
    with pytest.raises(ConfigError, match=r"--loss kto takes answers with labels, and this report describes pairs"):
        prepare_data(argv("--loss", "kto"))


def test_errors_are_one_line(argv, capsys):
    with pytest.raises(SystemExit, match=r"DataError: .*missing\.jsonl"):
        main([*argv(), "--data_path", "missing.jsonl"])
    with pytest.raises(SystemExit, match="cannot write the report"):
        main([*argv(), "--out", "/dev/null/x"])


def test_other_ranks_of_a_launch_end_at_once(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command, "prepare_data", None)
    assert main([]) is None
