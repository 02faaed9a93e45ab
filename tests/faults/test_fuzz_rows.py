"""Damaged and malicious preference files: every row is read, or counted as bad with a reason."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import shutil
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minimind.config import DataConfig
from minimind.data.dataset import DPODataset
from minimind.data.packs import pack
from minimind.data.rows import PreferenceRow, checked_row
from minimind.data.selection import select_pairs
from minimind.data.shapes import SHAPES, ShapeOptions, parse_rows
from minimind.data.shapes.dataset_info import DatasetInfo
from minimind.data.shapes.options import ALL, AUTO
from minimind.data.shapes.turns import TurnNames
from minimind.data.sources import RowError, open_source
from minimind.data.table_cache import load_table
from minimind.errors import MiniMindError
from minimind.training.row_report import row_messages
from tests.conftest import pair
from tests.docs.shapes import readme_rows
from tests.faults.fuzzing import damaged, fuzzed, json_values, only_our_errors

CALL = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": 2, "b": [2, None]}}]}
ROWS = [
    pair("What is two and two?", "Four.", "Five."),
    pair("你好吗?", "很好,谢谢 😀", "不好"),
    {"chosen": [{"role": "user", "content": "?"}, CALL], "rejected": [{"role": "user", "content": "?"}, CALL, CALL]},
]
LINES = [json.dumps(row, ensure_ascii=ascii).encode() for row in ROWS for ascii in (True, False)]
README = readme_rows()
FILE = b"\n".join(LINES) + b"\n"

DEEP = 50_000


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


MALICIOUS = [
    b'{"chosen": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    # Deep enough to be read, and too deep for what comes after.
    *(LINES[0][:-1] + b', "x": ' + b"[" * depth + b"]" * depth + b"}" for depth in (300, 900, 2000)),
    *(
        b'{"chosen": [{"role": "assistant", "content": "a", "x": %s}],'
        b' "rejected": [{"role": "assistant", "content": "a", "x": %s}]}' % (nested(depth), b"[" + nested(depth) + b"]")
        for depth in (300, 900, 2000)
    ),
    *(
        b'{"chosen": [{"role": %s}], "rejected": []}' % (b"[" * depth + b"]" * depth) for depth in (300, 900, 2000)
    ),
    b'{"chosen": ' + b"9" * 5000 + b', "rejected": 1e999}',
    b'{"chosen": NaN, "rejected": -Infinity}',
    b'{"chosen": [], "chosen": {}, "rejected": [], "rejected": [null]}',
    LINES[0].replace(b"Four.", b"\\ud800").replace(b"Five.", b"\\u0000"),
    LINES[0].replace(b"user", b"u" * 2_000_000),
    LINES[0][:-1] + b', "' + b"c" * 2_000_000 + b'": 1}',
    LINES[0].replace(b'"role"', b'"' + b"k" * 2_000_000 + b'": 1, "role"', 1),
    LINES[0][:-1] + b', "prompt": [{"role": "user", "content": "?", "' + b"k" * 2_000_000 + b'": 1}]}',
    LINES[4].replace(b'"add"', b'"\\udc80"'),
    LINES[4].replace(b'"a": 2', b'"\\ud83d": 2'),
]  # fmt: skip


def assert_row_or_reason(line: bytes) -> None:
    reason = ""
    try:
        assert all(isinstance(row, PreferenceRow) for row in parse_rows(line))
    except RowError as error:
        reason = str(error)
    # It goes to a terminal and into files: text, and not the row itself.
    assert len(reason.encode("utf-8")) < 500


@pytest.mark.parametrize("line", MALICIOUS, ids=range(len(MALICIOUS)))
def test_malicious_rows(line):
    with only_our_errors():
        assert_row_or_reason(line)


@fuzzed(300)
@given(st.sampled_from([*LINES, *map(str.encode, README.values())]).flatmap(damaged))
def test_damaged_rows(line):
    with only_our_errors():
        assert_row_or_reason(line)


CALL_TURN = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
# Rows with the name of their shape: those of the README, and such with more parts.
OF_SHAPES = [
    *((name, json.loads(row)) for name, row in README.items()),
    ("sharegpt", {
        "conversations": [{"from": "human", "value": "?"}, CALL_TURN, {"from": "observation", "value": "1"}],
        "chosen": {"from": "gpt", "value": "a"}, "rejected": "b", "tools": "[{}]",
    }),
    ("answers", {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "?"}]}],
        "answers": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}, {"text": "c", "rank": 2}],
    }),
    ("trl", {"prompt": "?", "chosen": "a", "rejected": "b", "history": [["x", "y"]], "score_chosen": "1",
             "score_rejected": 2}),
    ("comparison", {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 1, "score_B": 2}),
    ("comparison", {"conversation_a": pair("q", "a", "b")["chosen"], "conversation_b": pair("q", "a", "b")["rejected"],
                    "winner": "model_b"}),
    ("comparison", {"context": [{"role": "user", "content": "q"}], "response1": "a", "response2": "b",
                    "overall_preference": -2}),
    ("sharegpt", {"conversations": {"from": ["human", "gpt", "human"], "value": ["a", "b", "c"], "n": [1, None, 0]},
                  "chosen": {"from": "gpt", "value": "d"}, "rejected": {"from": "gpt", "value": "e"}}),
    ("minimind", {half: {key: [turn[key] for turn in turns] for key in ("role", "content")}
                  for half, turns in pair("q", "a", "b").items()}),
    ("swift", {"query": "q", "response": "a", "rejected_response": "b", "history": [["x", "y"]], "system": "s"}),
]  # fmt: skip
ENTRY = DatasetInfo(origin="x", shape="sharegpt", columns={"conversations": "messages"}, names=TurnNames(role="role"))
ENTRIES = (ENTRY, dataclasses.replace(ENTRY, shape="alpaca", columns={"output": "responses", "input": None}))
VALUES = (None, "", [], {}, "x", "1", -1, True, 10**400, ["x"], [[]], [{}], "Human: ?", "[INST]", "[{}]", {"role": []})


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of each value within a value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@st.composite
def changed_rows(draw) -> tuple[dict, ShapeOptions]:
    """A row of some shape in which values are replaced, left out, or come from a row of another shape, and how it is
    read: as its shape, by its columns, or as another shape."""
    name, row = copy.deepcopy(draw(st.sampled_from(OF_SHAPES)))
    if draw(st.integers(0, 3)) == 0:
        _, other = copy.deepcopy(draw(st.sampled_from(OF_SHAPES)))
        row.update({column: other[column] for column in draw(st.lists(st.sampled_from(sorted(other)), max_size=2))})
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        *path, last = draw(st.sampled_from([path for path in places(row) if path] or [("x",)]))
        holder = row
        for key in path:
            holder = holder[key]
        if draw(st.integers(0, 3)) == 0 and last in (holder if isinstance(holder, dict) else ()):
            del holder[last]
        else:
            holder[last] = copy.deepcopy(draw(st.sampled_from(VALUES) | json_values()))
    shape, entry = draw(st.sampled_from((name, name, AUTO, *SHAPES))), draw(st.sampled_from((None,) * 8 + ENTRIES))
    return row, ShapeOptions(data_format=shape, pairing=ALL, dataset_info=entry)


@fuzzed(200)
@given(changed_rows())
def test_damaged_rows_of_every_shape(drawn):
    """What is read is a pair that passes the checks of all shapes."""
    row, options = drawn
    reason, rows = "", []
    with only_our_errors():
        try:
            rows = parse_rows(row, options)
        except RowError as error:
            reason = str(error)
    assert len(reason.encode("utf-8", "surrogatepass")) < 1000
    for one in rows:
        assert checked_row(chosen=one.chosen, rejected=one.rejected).chosen == one.chosen
        assert one.shape in SHAPES
        assert len(one.scores) == 2


COLUMNS = ("chosen", "rejected", "prompt", "system", "tools", "chat_template_kwargs", "score")
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(("user", "assistant", "system", "tool")) | json_values()},
        optional={"content": json_values(), "tool_calls": json_values(), "name": json_values()},
    )
    | json_values(),
    max_size=3,
)


@fuzzed(200)
@given(st.dictionaries(st.sampled_from(COLUMNS), MESSAGES | json_values()) | json_values())
def test_rows_of_other_types(row):
    with only_our_errors():
        assert_row_or_reason(json.dumps(row).encode())


def read_everywhere(content: bytes, tokenizer, folder) -> None:
    """Read a file as training does and as MiniMind's data set does."""
    path = folder / "pairs.jsonl"
    path.write_bytes(content)
    with only_our_errors():
        table = load_table(open_source(path), tokenizer, max_length=64, num_workers=0, cache_dir=folder / "cache")
        for bad, long in itertools.product(("error", "skip", "keep"), ("cut", "keep", "skip", "error")):
            message = ""
            try:
                kept = select_pairs(table, on_bad_row=bad, on_long_row=long)
                assert all(len(kept[index].chosen) for index in range(len(kept)))
            except MiniMindError as error:
                message = str(error)
            assert len(message.encode("utf-8")) < 10_000
            config = DataConfig(on_bad_row=bad, on_long_row=long)
            assert all(len(line.encode("utf-8")) < 3_000 for line in row_messages(table, config))
    with only_our_errors():
        data = DPODataset(path, tokenizer, max_length=64)
        for index in range(len(data)):
            data[index]


@fuzzed(60)
@given(content=damaged(FILE))
def test_damaged_files(content, tokenizer, tmp_path_factory):
    read_everywhere(content, tokenizer, tmp_path_factory.mktemp("fuzz"))


def test_a_file_of_malicious_rows(tokenizer, tmp_path):
    read_everywhere(b"\n".join([*MALICIOUS, LINES[0]]), tokenizer, tmp_path)


@fuzzed(30)
@example(rows=[{"chosen": [{"role": "assistant", "content": "a", "name": "\ud800"}], "rejected": []}])
@given(rows=st.lists(st.fixed_dictionaries({"chosen": MESSAGES, "rejected": MESSAGES}), min_size=1, max_size=4))
def test_files_of_other_types(rows, tokenizer, tmp_path_factory):
    content = b"\n".join(json.dumps(row).encode() for row in rows)
    read_everywhere(content, tokenizer, tmp_path_factory.mktemp("fuzz"))


TEXTS = st.text(max_size=5)
FUNCTIONS = st.fixed_dictionaries(
    {}, optional={"name": TEXTS | json_values(), "arguments": st.sampled_from(('{"a": 1}', "[1]", "")) | json_values()}
)
CALLS = st.lists(FUNCTIONS | st.fixed_dictionaries({"function": FUNCTIONS | json_values()}), max_size=2)
# Messages that are mostly valid, so that what is wrong reaches the template and the tokenizer.
SPEECHES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(("system", "developer", "user", "assistant", "assistant", "tool")), "content": TEXTS},
        optional={"tool_calls": CALLS, "score": json_values(), "name": TEXTS},
    ),
    min_size=1,
    max_size=4,
)
VARIABLES = st.dictionaries(st.sampled_from(("documents", "bos_token", "messages", "x")), json_values(), max_size=2)


@fuzzed(30)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"chosen": SPEECHES, "rejected": SPEECHES},
            optional={
                "prompt": SPEECHES | TEXTS,
                "system": TEXTS,
                "tools": st.lists(FUNCTIONS, max_size=2),
                "chat_template_kwargs": VARIABLES,
                "score": json_values(),
            },
        ),
        min_size=1,
        max_size=3,
    )
)
def test_files_with_columns_and_calls(rows, tokenizer, tmp_path_factory):
    content = b"\n".join(json.dumps(row).encode() for row in rows)
    read_everywhere(content, tokenizer, tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def load(tokenizer, tmp_path_factory):
    """Loads a file's table with a cache in this folder."""
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    path.write_bytes(FILE)
    return lambda cache: load_table(open_source(path), tokenizer, max_length=64, num_workers=0, cache_dir=cache)


@pytest.fixture(scope="module")
def whole_cache(load, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    load(folder)
    return folder


@fuzzed(40)
@given(data=st.data())
def test_damaged_caches(data, load, whole_cache, tmp_path_factory):
    """A damaged cache is made again; no pair refers to data outside of it."""
    cache = shutil.copytree(whole_cache, tmp_path_factory.mktemp("fuzz") / "cache")
    path = data.draw(st.sampled_from(sorted(cache.glob("*/*"))))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    with only_our_errors():
        table = select_pairs(load(cache), on_bad_row="keep", on_long_row="keep")
        list(row_messages(table, DataConfig()))
        pack([table[index] for index in range(len(table))])
