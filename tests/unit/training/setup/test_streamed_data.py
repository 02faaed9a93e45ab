"""The data of a run that streams: recipes from flags, and the first window."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from minimind.config import PretrainConfig, SFTConfig, parse_settings
from minimind.data.table_build import SILENT, TokenisingListener
from minimind.errors import DataError
from minimind.ranks.world import World
from minimind.training.jobs.kinds import kind_of
from minimind.training.setup import streamed_data
from minimind.training.setup.prepare import with_implied
from minimind.training.setup.streamed_data import make_recipe
from minimind.training.setup.training_data import TrainingData, load_data
from minimind.training.startup_report import report_data
from tests.conftest import conversation

pytestmark = pytest.mark.usefixtures("one_rank")
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
STREAM = (
    "--streaming",
    "1",
    "--max_steps",
    "4",
    "--batch_size",
    "2",
    "--accumulation_steps",
    "1",
    "--num_workers",
    "0",
)


@pytest.fixture
def prepared(tokenizer, tmp_path):
    def run(*flags, job=PretrainConfig, step=None):
        settings = with_implied(parse_settings([*STREAM, "--cache_dir", str(tmp_path / "cache"), *flags], job))
        settings, objective = kind_of(settings.config).choose(settings, None)
        checkpoint = step and SimpleNamespace(manifest=SimpleNamespace(step=step))
        return SimpleNamespace(settings=settings, tokenizer=tokenizer, objective=objective, checkpoint=checkpoint)

    return run


@pytest.fixture
def texts(write_rows):
    def write(name, number=6):
        return str(write_rows(*({"text": f"{name} {place}"} for place in range(number)), name=f"{name}.jsonl"))

    return write


def test_shards_depend_on_data_tokens_and_cutting_alone(prepared, texts, tmp_path):
    first, second = texts("a"), texts("b", 3)
    words = ("--data_path", first, f"{second}:2")

    def folders(*flags):
        return [word.folder.name for word in make_recipe(prepared(*words, *flags), WORLD).words]

    assert folders() == folders("--seed", "3", "--window_tokens", "77", "--batch_size", "4")
    for flags in (("--shard_tokens", "99"), ("--max_seq_len", "9"), ("--on_long_row", "cut")):
        assert not set(folders()) & set(folders(*flags))
    # A run that removes shards has folders of its own, and is the same run without.
    own = folders("--keep_windows", "2")
    assert not set(folders()) & set(own)
    assert [name.rpartition("-")[0] for name in own] == folders()
    assert own != folders("--keep_windows", "2", "--save_dir", str(tmp_path / "other"))
    before = folders()
    (tmp_path / "b.jsonl").write_text('{"text": "other"}\n')
    assert [one == other for one, other in zip(folders(), before, strict=True)] == [True, False]
    recipe = make_recipe(prepared(*words, "--keep_windows", "3", "--shuffle", "0"), WORLD)
    assert [(word.word.name, word.word.weight) for word in recipe.words] == [(first, 1), (f"{second}:2", 2)]
    assert (recipe.rows, recipe.keep_windows, recipe.seed) == (8, 3, None)


def test_words_of_the_same_content_are_refused(prepared, texts, tmp_path):
    first = texts("a")
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    with pytest.raises(DataError, match=r"a\.jsonl and .*copy\.jsonl have the same content"):
        make_recipe(prepared("--data_path", first, str(tmp_path / "copy.jsonl")), WORLD)


def test_files_of_a_word_are_tokenised_in_an_order_of_their_own(prepared, texts, tmp_path):
    for number in range(9):
        texts(f"part{number}", 1)
    pattern = ("--data_path", str(tmp_path / "part*.jsonl"))

    def order(*flags):
        (word,) = make_recipe(prepared(*pattern, *flags), WORLD).words
        return [source.short_name for source in word.sources]

    plain = [f"part{number}.jsonl" for number in range(9)]
    assert order("--shuffle", "0") == plain
    assert sorted(order()) == plain != order()
    assert order("--seed", "1") == order("--seed", "2")


def test_a_run_has_its_steps_and_its_first_window(prepared, texts):
    data = load_data(prepared("--data_path", texts("a"), "--eval_data_path", texts("b", 3)), WORLD, SILENT)
    assert (data.total_steps, len(data.table), len(data.eval_table)) == (4, 6, 3)
    taken = [row for step in range(1, 5) for row in data.stream.micro_batches(step, 0)[0]]
    assert len(set(taken)) == 8
    assert [data.rows[row].index for row in taken] == taken
    assert data.identity == data.stream.identity
    said = []
    report_data(SimpleNamespace(say=said.append), data, prepared().settings.config, prepared().objective)
    assert said[0] == "4 steps of 2 texts, streamed"
    assert "window to begin with: 6 texts" in said[1]
    assert any("0 of 6 texts are held out too" in line for line in said)


def test_conversations_are_streamed_as_they_are_loaded(prepared, write_rows):
    rows = [{"conversations": conversation(f"Number {place}?", f"Answer {place}.")} for place in range(8)]
    path = str(write_rows(*rows))
    flags = ("--data_path", path, "--shuffle", "0")
    streamed = load_data(prepared(*flags, job=SFTConfig), WORLD, SILENT)
    plain = prepared(*flags, "--streaming", "0", job=SFTConfig)
    loaded = load_data(plain, WORLD, SILENT)
    for step in range(1, 5):
        assert streamed.stream.micro_batches(step, 0) == loaded.stream.micro_batches(step, 0)
        for row in streamed.stream.micro_batches(step, 0)[0]:
            assert streamed.rows[row].chosen.tolist() == loaded.rows[row].chosen.tolist()
            assert streamed.rows[row].chosen_mask.tolist() == loaded.rows[row].chosen_mask.tolist()
            assert streamed.rows.place(row) == loaded.rows.place(row)


def test_a_resumed_run_begins_in_its_window(prepared, texts):
    flags = ("--data_path", texts("a", 40), "--shard_tokens", "1", "--window_tokens", "1", "--max_steps", "20")
    fresh = load_data(prepared(*flags), WORLD, SILENT)
    resumed = load_data(prepared(*flags, step=19), WORLD, SILENT)
    assert isinstance(resumed, TrainingData)
    assert resumed.stream.position_after(19) == fresh.stream.position_after(19)
    assert resumed.stream.micro_batches(20, 0) == fresh.stream.micro_batches(20, 0)
    # What is measured is not the first step, whose shards may be gone.
    assert resumed.first_micro_batch()[0].chosen.tolist() == resumed.table[0].chosen.tolist()
    assert len(fresh.first_micro_batch()) <= 2


def test_much_data_is_tokenised_by_a_process(prepared, texts, monkeypatch):
    made, said = [], []

    class Process:
        def __init__(self, recipe, wanted):
            made.append(wanted)

    listener = TokenisingListener()
    listener.on_message = said.append
    monkeypatch.setattr(streamed_data, "Process", Process)
    recipe = make_recipe(prepared("--data_path", texts("a")), WORLD)
    assert streamed_data._start(recipe, 0, listener) is None
    assert isinstance(streamed_data._start(dataclasses.replace(recipe, keep_windows=2), 5, listener), Process)
    monkeypatch.setattr(streamed_data, "_SMALL_BYTES", 3)
    assert isinstance(streamed_data._start(recipe, 6, listener), Process)
    assert made == [5, 6]
    assert "tokenising ahead in shards of 10,000,000 tokens" in said[0]


def test_a_failure_of_an_earlier_run_is_forgotten_and_one_of_this_run_is_not(prepared, texts, monkeypatch):
    """A machine that starts later than another finds what that one has written into folders that they share."""
    given = prepared("--data_path", texts("a"))
    recipe = make_recipe(given, WORLD)
    (store,) = recipe.stores()
    store.fail("of an earlier run")
    real = streamed_data._start

    def after_another_machine(*arguments):
        assert store.failure() == ""
        store.fail("of this run")
        return real(*arguments)

    monkeypatch.setattr(streamed_data, "_start", after_another_machine)
    load_data(given, WORLD, SILENT)
    assert store.failure() == "of this run"


def test_data_that_cannot_be_used_stop_the_run(prepared, write_rows, tmp_path):
    with pytest.raises(DataError, match="none of its rows can be trained on"):
        load_data(prepared("--data_path", str(write_rows({"txt": json.dumps({})}))), WORLD, SILENT)
