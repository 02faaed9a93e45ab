"""The tokenised data set: made once, found again by content, whole or not there, and honest about bad
rows."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from minimind import demo
from minimind.data.packs import pack
from minimind.data.table import PairTable, load_table
from minimind.errors import DataError
from tests.conftest import conversation, pair

ROWS = (
    pair("What is the colour of the sky?", "It is blue.", "Look yourself."),
    {
        "chosen": conversation("Hello", "Good morning!", "Where is Rome?", "In Italy."),
        "rejected": conversation("Hello", "Good morning!", "Where is Rome?", "Not here."),
    },
    pair("你好吗?", "很好，谢谢。", "走开。"),
)


@pytest.fixture
def load(tokenizer, tmp_path):
    """load_table with the demo's tokenizer and a cache of the test's own."""

    def call(path: Path, **changes) -> PairTable:
        settings = {
            "tokenizer": tokenizer,
            "max_length": 64,
            "empty_think_ratio": 1.0,
            "num_workers": 0,
            "cache_dir": tmp_path / "cache",
        }
        return load_table(path, **{**settings, **changes})

    return call


def content(table: PairTable) -> list[tuple]:
    """All pairs as plain lists."""
    return [
        (
            row.chosen.tolist(),
            row.rejected.tolist(),
            row.chosen_mask.tolist(),
            row.rejected_mask.tolist(),
            row.prefix,
            row.line,
        )
        for row in (table[i] for i in range(len(table)))
    ]


def cache_folders(tmp_path: Path) -> list[str]:
    return sorted(entry.name for entry in (tmp_path / "cache").iterdir())


def test_pairs_are_the_file_rows(load, write_rows, tokenizer):
    table = load(write_rows(*ROWS))
    assert len(table) == 3
    for index, row in enumerate(ROWS):
        one = table[index]
        assert tokenizer.decode(one.chosen) == tokenizer.apply_chat_template(row["chosen"], tokenize=False)
        assert tokenizer.decode(one.rejected) == tokenizer.apply_chat_template(row["rejected"], tokenize=False)
        assert len(one.chosen_mask) == len(one.chosen)
        assert len(one.rejected_mask) == len(one.rejected)
        assert one.line == index + 1
        assert one.chosen[: one.prefix].tolist() == one.rejected[: one.prefix].tolist()
        assert one.chosen[one.prefix] != one.rejected[one.prefix]


def test_a_shared_answer_counts_in_both_halves(load, write_rows, tokenizer):
    one = load(write_rows(*ROWS))[1]
    counted = one.chosen[: one.prefix][one.chosen_mask[: one.prefix] == 1]
    assert tokenizer.decode(counted).startswith("Good morning!<|im_end|>")
    assert one.chosen_mask[: one.prefix].tolist() == one.rejected_mask[: one.prefix].tolist()


def test_the_cache_is_hit_the_second_time(load, write_rows, tmp_path):
    path = write_rows(*ROWS)
    first = load(path)
    (folder,) = (tmp_path / "cache").iterdir()
    # A trace in the cache that tokenising again would wipe out.
    tokens = np.fromfile(folder / "tokens.i32", np.int32)
    tokens[0] = 4321
    tokens.tofile(folder / "tokens.i32")
    second = load(path)
    assert second.key == first.key
    assert second[0].chosen[0] == 4321
    assert second[0].chosen[1:].tolist() == first[0].chosen[1:].tolist()
    assert cache_folders(tmp_path) == [folder.name]


def test_the_key_is_the_content_not_the_path(load, write_rows, tmp_path):
    path = write_rows(*ROWS)
    other = tmp_path / "elsewhere" / "other.jsonl"
    other.parent.mkdir()
    shutil.copy(path, other)
    one, two = load(path), load(other)
    assert one.key == two.key
    assert two.path == other
    assert content(one) == content(two)
    assert len(cache_folders(tmp_path)) == 1


def test_one_changed_byte_is_another_data_set_under_the_same_path(load, write_rows):
    path = write_rows(*ROWS)
    times = path.stat()
    before = load(path)
    path.write_bytes(path.read_bytes().replace(b"blue", b"grey"))
    # Neither size nor time tell that it changed.
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load(path)
    assert before.key != after.key
    assert content(before)[0] != content(after)[0]


@pytest.mark.parametrize("change", [{"max_length": 32}, {"empty_think_ratio": 0.5}], ids=str)
def test_another_setting_is_another_key(load, write_rows, change):
    path = write_rows(*ROWS)
    assert load(path).key != load(path, **change).key


def test_another_template_or_vocabulary_is_another_key(load, write_rows, tokenizer):
    path = write_rows(*ROWS)
    template, vocabulary = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    template.chat_template = "{# changed #}" + tokenizer.chat_template
    vocabulary.add_tokens(["<|one_more|>"], special_tokens=True)
    keys = {load(path, tokenizer=one).key for one in (tokenizer, template, vocabulary)}
    assert len(keys) == 3


def test_the_same_tokenizer_from_another_folder_is_the_same_key(load, write_rows, tmp_path):
    path = write_rows(*ROWS)
    shutil.copytree(demo.TOKENIZER_PATH, tmp_path / "copied")
    assert load(path).key == load(path, tokenizer=AutoTokenizer.from_pretrained(tmp_path / "copied")).key


@pytest.mark.parametrize(("name", "what"), [("missing.jsonl", "no such preference file"), (".", "is a folder")])
def test_a_missing_file_is_said(load, tmp_path, name, what):
    with pytest.raises(DataError, match=what):
        load(tmp_path / name)


def test_an_empty_file_is_said_and_leaves_nothing_in_the_cache(load, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.touch()
    with pytest.raises(DataError, match="is empty"):
        load(path)
    assert cache_folders(tmp_path) == []


def test_a_killed_run_leaves_nothing_that_looks_finished(load, write_rows, tmp_path):
    """What it may leave is a partial folder beside the place; the next run does not take it."""
    path = write_rows(*ROWS)
    finished = load(path)
    (folder,) = (tmp_path / "cache").iterdir()
    partial = folder.with_name(f"{folder.name}.partial-abc")
    folder.rename(partial)
    (partial / "meta.json").unlink()
    assert content(load(path)) == content(finished)


DAMAGE = {
    "meta.json is gone": lambda folder: (folder / "meta.json").unlink(),
    "meta.json is cut off": lambda folder: (folder / "meta.json").write_text("{"),
    "tokens are gone": lambda folder: (folder / "tokens.i32").unlink(),
    "tokens are cut off": lambda folder: os.truncate(folder / "tokens.i32", 40),
    "the mask is cut off": lambda folder: os.truncate(folder / "mask.u8", 10),
    "offsets are cut off": lambda folder: os.truncate(folder / "offsets.npy", 130),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_cache_is_made_again_or_said(load, write_rows, tmp_path, name):
    """Never taken as it is (a short row would train on other targets), and never a traceback."""
    path = write_rows(*ROWS)
    intact = content(load(path))
    (folder,) = (tmp_path / "cache").iterdir()
    DAMAGE[name](folder)
    try:
        outcome = content(load(path))
    except DataError as error:
        outcome = str(error)
    assert outcome == intact or folder.name in outcome


def test_a_cache_that_cannot_be_made_is_said(load, write_rows, tmp_path):
    blocked = tmp_path / "a_file"
    blocked.touch()
    with pytest.raises(DataError, match="--cache_dir"):
        load(write_rows(*ROWS), cache_dir=blocked)


def test_bad_rows_are_listed_with_their_lines(load, write_rows):
    table = load(write_rows(ROWS[0], "{broken", "", ROWS[1], '{"chosen": [], "rejected": []}'))
    with pytest.raises(DataError) as caught:
        table.with_bad_rows("error")
    message = str(caught.value)
    assert "pairs.jsonl: 2 of 4 rows cannot be trained on" in message
    assert "line 2: invalid JSON" in message
    assert "line 5: 'chosen' is not a list of messages" in message
    assert "--on_bad_row skip" in message


def test_of_many_bad_rows_ten_are_shown(load, write_rows):
    table = load(write_rows(ROWS[0], *["{"] * 13))
    with pytest.raises(DataError) as caught:
        table.with_bad_rows("error")
    message = str(caught.value)
    assert "13 of 14 rows" in message
    assert message.count("invalid JSON") == 10
    assert "... and 3 more" in message


def test_what_a_template_refuses_is_a_bad_row_not_the_end(load, write_rows, tokenizer):
    strict = copy.deepcopy(tokenizer)
    refuse = "{% for m in messages if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endfor %}"
    strict.chat_template = refuse + tokenizer.chat_template
    question, answer = ROWS[0]["chosen"]
    with_tool = {
        "chosen": [question, {"role": "tool", "content": "4"}, answer],
        "rejected": [question, {"role": "tool", "content": "4"}, ROWS[0]["rejected"][1]],
    }
    table = load(write_rows(ROWS[0], with_tool), tokenizer=strict)
    assert [(row.line, row.reason) for row in table.bad] == [(2, "the chat template refuses it: no tools")]
    assert len(table.with_bad_rows("skip")) == 1


# Cut at 12 tokens the second row has no answer left; the third, short, has all of its own.
LONG_QUESTION = pair("What is the colour of the sky on a clear day in the middle of summer?", "Blue.", "Look.")
SHORT = pair("Hi", "Yo.", "No.")


def test_error_takes_a_table_without_bad_rows_as_it_is(load, write_rows):
    table = load(write_rows(*ROWS))
    assert table.bad == ()
    assert content(table.with_bad_rows("error")) == content(table)


def test_a_row_without_an_answer_left_is_bad(load, write_rows):
    table = load(write_rows(SHORT, LONG_QUESTION), max_length=12)
    with pytest.raises(DataError, match=r"line 2: nothing is left of the chosen and the rejected answer within 12"):
        table.with_bad_rows("error")


def test_answers_that_differ_only_behind_the_cut_are_bad(load, write_rows):
    long = "one two three four five six seven eight nine ten eleven twelve "
    table = load(write_rows(SHORT, pair("Count", long + "thirteen", long + "no more")), max_length=16)
    with pytest.raises(DataError, match="line 2: nothing is left of the answers' difference within 16 tokens"):
        table.with_bad_rows("error")


def test_skip_leaves_out_bad_rows_of_both_kinds(load, write_rows):
    table = load(write_rows("{broken", LONG_QUESTION, SHORT), max_length=12).with_bad_rows("skip")
    assert [row.line for row in (table[i] for i in range(len(table)))] == [3]
    assert table.total_rows == 3


def test_keep_keeps_truncated_rows_and_leaves_out_unreadable_ones(load, write_rows):
    table = load(write_rows("{broken", LONG_QUESTION, SHORT), max_length=12).with_bad_rows("keep")
    assert [row.line for row in (table[i] for i in range(len(table)))] == [2, 3]
    assert len(table[0].chosen) == 12
    assert not table[0].chosen_mask.any()
    assert table[1].chosen_mask.any()


@pytest.mark.parametrize("policy", ["skip", "keep"])
def test_no_row_left_is_an_error(load, write_rows, policy):
    table = load(write_rows("{broken", "[]"))
    with pytest.raises(DataError, match="none of its 2 rows can be trained on"):
        table.with_bad_rows(policy)


def test_bad_rows_survive_the_cache(load, write_rows):
    path = write_rows(SHORT, "{kaputt 你好", LONG_QUESTION)
    assert load(path, max_length=12).bad == load(path, max_length=12).bad
    assert [(row.line, row.tokenized) for row in load(path, max_length=12).bad] == [(2, False), (3, True)]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: tokenising is serial")
def test_worker_processes_give_what_one_process_gives(load, write_rows, tmp_path):
    """More than 1024 rows, so that workers start; a bad row and a blank line late in the file keep their
    numbers."""
    lines = [json.dumps(pair(f"Number {i}?", f"It is {i}.", f"Not {i}!" * (1 + i % 3))) for i in range(1100)]
    lines[700] = ""
    lines[1050] = "{broken"
    path = write_rows(*lines)
    serial = load(path, num_workers=0, cache_dir=tmp_path / "serial")
    parallel = load(path, num_workers=2, cache_dir=tmp_path / "parallel")
    assert len(serial) == 1098
    assert [row.line for row in serial.bad] == [1051]
    assert parallel.key == serial.key
    assert parallel.bad == serial.bad
    assert content(parallel) == content(serial)


def test_packed_tokens_and_costs_are_those_of_each_pair_s_pack(load, write_rows):
    table = load(write_rows(*ROWS, pair("Go on", "Yes", "Yes, I do"), "broken"), max_length=24)
    for policy in ("skip", "keep"):
        selected = table.with_bad_rows(policy)
        packs = [pack([selected[i]]) for i in range(len(selected))]
        assert selected.packed_tokens.tolist() == [len(one.token_ids) for one in packs]
        assert (selected.costs > selected.packed_tokens).all()


def test_the_demo_data_has_no_bad_row(load):
    for path in (demo.TRAIN_PATH, demo.EVAL_PATH):
        table = load(path, max_length=1024)
        assert table.bad == ()
        assert len(table) == len(path.read_text(encoding="utf-8").splitlines())
