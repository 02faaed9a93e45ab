"""The data of a run: both files, the number of steps, and pairs that do not fill a batch."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import pytest

from minimind.config import SFTConfig, parse_settings
from minimind.data import table_cache
from minimind.data.table_build import SILENT
from minimind.errors import ConfigError, LaunchError
from minimind.training.jobs.kinds import kind_of
from minimind.training.setup import training_data
from minimind.training.setup.training_data import load_data
from tests.conftest import conversation, pair
from tests.unit.data.tables import lines
from tests.unit.training.setup.conftest import ALONE

pytestmark = pytest.mark.usefixtures("one_rank")


def pairs(data) -> list:
    return [data.table[index] for index in range(len(data.table))]


def test_steps_are_whole_global_batches(load, file):
    data = load(file, "--batch_size", "2", "--accumulation_steps", "2", "--num_workers", "0")
    assert (len(data.table), data.total_steps, data.stream.left_over) == (10, 2, 2)
    assert data.eval_table is None
    assert data.tables == [data.table]


def test_max_steps_ends_the_run_early_and_never_late(load, file):
    assert load(file, "--batch_size", "2", "--max_steps", "3").total_steps == 3
    assert load(file, "--batch_size", "2", "--max_steps", "30").total_steps == 5


def test_a_schedule_that_does_not_fit_into_the_steps_is_refused(load, file):
    flags = ("--batch_size", "2", "--lr_schedule", "linear", "--warmup_steps", "4")
    assert load(file, *flags).total_steps == 5
    with pytest.raises(ConfigError, match="4 steps of warm-up are more than the run's 3 global steps"):
        load(file, *flags, "--max_steps", "3")


def test_held_out_pairs_are_a_second_table(load, file, write_rows):
    other = write_rows(pair("Held out?", "Yes.", "No!"), name="eval.jsonl")
    data = load(file, "--eval_data_path", str(other))
    assert [len(table) for table in data.tables] == [10, 1]


def test_held_out_pairs_in_sets_are_one_table(load, file, write_rows):
    rows = [pair(f"Number {i // 2}?", "Yes.", "No!") for i in range(6)]
    one, two, three = (
        write_rows(*of, name=f"{name}.jsonl") for name, of in (("a", rows), ("b", rows[:2]), ("c", rows[:5]))
    )
    words = ("--eval_data_path", f"zh={one}", str(three), f"zh={two}")
    data = load(file, *words, "--num_workers", "0")
    assert data.eval_sets == {"zh": range(8), "": range(8, 13)}
    assert [table.source.short_name for table in data.eval_table.tables] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    key = data.eval_table.key
    assert data.eval_identity == f"{key} {{'zh': range(0, 8), '': range(8, 13)}}"
    # Equal pairs are taken once in each set.
    data = load(file, *words, "--num_workers", "0", "--dedup", "1")
    assert data.eval_sets == {"zh": range(3), "": range(3, 6)}
    assert (len(data.eval_table), data.eval_table.duplicates) == (6, 7)


def test_several_sources_are_one_and_each_is_tokenised_once(load, file, write_rows, tmp_path):
    other = write_rows([pair(f"Letter {i}?", "Yes.", "No!") for i in "abcd"], name="more.json")
    alone = load(file)
    cached = set((tmp_path / "cache").glob("pairs-*"))
    data = load(file, f"{other}:0.5", "--epochs", "2", "--batch_size", "1", "--num_workers", "0")
    new = set((tmp_path / "cache").glob("pairs-*")) - cached
    assert [len(tables.tables) for tables in data.tables] == [2]
    assert new == {tmp_path / "cache" / f"pairs-{data.table.tables[1].key}"}
    assert data.table.tables[0].key == alone.table.key
    drawn = [data.stream.micro_batches(step, 0)[0][0] for step in range(1, data.total_steps + 1)]
    assert len(drawn) == 2 * 10 + 4
    assert sorted(drawn[:12]) != sorted(drawn[12:])
    assert sorted(drawn) == sorted([*range(10)] * 2 + [*range(10, 14)])


def test_problems_of_all_sources_are_one_error(load, write_rows):
    one, other = write_rows("{broken"), write_rows([{}], name="other.json")
    with pytest.raises(ConfigError) as caught:
        load(one, str(other))
    message = str(caught.value)
    assert f"{one}: 1 of 1 rows cannot be trained on:\n  line 1: invalid JSON" in message
    assert f"{other}: 1 of 1 rows cannot be trained on:\n  row 1: unknown row shape" in message


def test_of_a_folder_whose_files_have_the_same_problem_some_are_listed(load, tmp_path):
    for number in range(9):
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / f"d/{number}.jsonl").write_text('{"prompt": "q", "chosen": "a"}\n' * 20)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "d", "--num_workers", "0")
    message = str(caught.value)
    assert message.count("'rejected' is not") == 5
    assert message.startswith("9 problems:\n")
    assert message.endswith("\n  - and 4 more like these")


def test_equal_pairs_are_taken_once_before_the_limit_counts(load, write_rows):
    rows = [pair(f"Number {i // 2}?", "Yes.", "No!") for i in range(12)]
    path, held_out = write_rows(*rows), write_rows(*rows, name="eval.jsonl")
    data = load(path, "--dedup", "1", "--limit", "4", "--eval_data_path", str(held_out))
    assert [lines(tables.tables[0]) for tables in data.tables] == [[1, 3, 5, 7], [1, 3, 5, 7, 9, 11]]
    assert (data.table.duplicates, data.table.beyond_limit, data.total_steps) == (6, 2, 1)
    plain = load(path, "--eval_data_path", str(held_out))
    assert [len(tables) for tables in plain.tables] == [12, 12]


def test_machines_with_other_data_are_refused(load, file, monkeypatch):
    monkeypatch.setattr(training_data, "gather", lambda world, keys: [keys, None, ["other"]])
    with pytest.raises(LaunchError, match=r"pairs\.jsonl: the data of rank 0.* differ"):
        load(file)


def test_other_ranks_of_a_machine_do_not_read_the_files_again(load, file, monkeypatch):
    """They get the key from the first rank. Without the table they do its work, so that a run still starts."""
    first = load(file, "--num_workers", "0")
    keys = [table.key for table in first.table.tables]
    monkeypatch.setattr(training_data, "gather", lambda world, own: [keys, own])
    hashed = []
    monkeypatch.setattr(table_cache, "_key", lambda *arguments: hashed.append(1) or keys[0])
    other = load(file, "--num_workers", "0", world=dataclasses.replace(ALONE, rank=1, local_rank=1))
    assert hashed == []
    assert [pair.chosen.tolist() for pair in pairs(other)] == [pair.chosen.tolist() for pair in pairs(first)]
    shutil.rmtree(file.parent / "cache")
    again = load(file, "--num_workers", "0", world=dataclasses.replace(ALONE, rank=1, local_rank=1))
    assert hashed == [1]
    assert len(again.table) == len(first.table)


def test_pairs_that_do_not_fill_a_batch_are_an_error(load, file):
    with pytest.raises(ConfigError, match="10 pairs x 1 epochs do not fill one global batch of 16"):
        load(file, "--batch_size", "16")


def test_rows_stand_alone_for_a_job_over_tokens(tokenizer, tmp_path, write_rows):
    """Under a mean of micro-batches' means each micro-batch has consecutive rows; else they are balanced."""
    path = write_rows(*({"conversations": conversation(f"Number {i}?", "Yes. " * i)} for i in range(1, 9)))

    def load(*flags):
        common = ["--cache_dir", str(tmp_path / "cache"), "--data_path", str(path), "--shuffle", "0"]
        settings = parse_settings([*common, "--batch_size", "2", "--accumulation_steps", "2", *flags], SFTConfig)
        settings, objective = kind_of(settings.config).choose(settings, None)
        return load_data(SimpleNamespace(settings=settings, tokenizer=tokenizer, objective=objective), ALONE, SILENT)

    data = load("--loss_mean", "micro_batch")
    assert (data.table.items, data.total_steps) == ("conversations", 4)  # two epochs
    assert data.stream.micro_batches(1, 0) == [[0, 1], [2, 3]]
    assert load().stream.micro_batches(1, 0) != [[0, 1], [2, 3]]


def test_a_loss_of_the_split_has_no_token_budget():
    settings = parse_settings(["--loss_mean", "micro_batch", "--micro_batch_tokens", "64"], SFTConfig)
    with pytest.raises(ConfigError, match="--micro_batch_tokens splits a step"):
        kind_of(settings.config).choose(settings, None)
