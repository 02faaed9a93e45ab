"""Recognition of shapes: the README's rows, rows that lack something, rows that two shapes could mean."""

from __future__ import annotations

import json
import re

import pytest

from minimind.config import DataConfig, fields_of
from minimind.config.jobs import DPOConfig
from minimind.data.rows import PreferenceRow
from minimind.data.shapes import SHAPES, ShapeOptions, parse_answers, parse_rows
from minimind.data.shapes.options import AUTO
from minimind.data.sources import RowError
from tests.conftest import pair
from tests.docs.shapes import readme_rows

GOOD = pair("What do horses eat?", "Hay.", "Who cares.")


def line(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


README = readme_rows()


def test_every_shape_has_a_row_in_the_readme_and_a_value_of_the_flag():
    assert list(README) == list(SHAPES)
    assert readme_rows("_zh") == README
    (flag,) = (flag for flag in fields_of(DPOConfig) if flag.name == "data_format")
    assert flag.metadata.choices == (AUTO, *SHAPES)
    assert DataConfig().data_format == AUTO


PAIRS = [name for name in SHAPES if name != "unpaired"]


def test_row_of_the_readme_is_an_answer_with_a_label():
    (row,) = parse_answers(README["unpaired"].encode())
    assert (row.shape, row.messages, row.label, row.unused) == ("unpaired", GOOD["chosen"], True, ())


@pytest.mark.parametrize("name", PAIRS)
def test_row_of_the_readme_is_read_as_it_says(name):
    (row,) = parse_rows(README[name].encode())
    assert row.shape == name
    assert (row.chosen, row.rejected, row.unused) == (GOOD["chosen"], GOOD["rejected"], ())
    # The same as an object, as other files than JSON give it, and with the shape named.
    assert parse_rows(json.loads(README[name]), ShapeOptions(data_format=name)) == [row]


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_of_another_shape_is_refused_if_the_shape_is_named(name):
    # TRL's conversational formats are MiniMind's.
    other = "trl" if name != "trl" else "sharegpt"
    with pytest.raises(RowError) as caught:
        parse_rows(README[other].encode(), ShapeOptions(data_format=name))
    # Where the named shape cannot read it, the one that can is named.
    title = SHAPES[other].title
    assert str(caught.value).startswith(f"--data_format {name}: ")
    assert str(caught.value).endswith(f"; the columns are those of {title}, --data_format {other}")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": []}, "looks like MiniMind's: 'chosen' is there, 'rejected' is not"),
        (
            {"conversations": [{}], "chosen": {}},
            "looks like ShareGPT: 'conversations' and 'chosen' are there, 'rejected' is not",
        ),
        ({"conversations": [{}]}, "looks like ShareGPT: 'conversations' is there, 'chosen' and 'rejected' are not"),
        ({"prompt": "x", "completion": "y", "label": None}, "looks like TRL's texts: 'prompt' is there, 'chosen' and"),
        (
            {"prompt": "x", "chosen": "y", "rejected": None},
            "looks like TRL's texts: 'prompt' and 'chosen' are there, 'rej",
        ),
        ({"instruction": "x"}, "looks like Alpaca: 'instruction' is there, 'output' is not"),
        ({"completions": ["x"], "id": 3}, "looks like UltraFeedback: 'completions' is there, 'instruction' is not"),
        ({"text": "x"}, "unknown row shape: an object with the keys ['text']; see the shapes of rows"),
        ({}, "unknown row shape: an object with the keys []"),
        ([1, 2], "unknown row shape: a JSON array; a row must be an object"),
        ("chosen", "unknown row shape: a JSON string"),
        (None, "unknown row shape: a JSON null"),
        (True, "unknown row shape: a JSON boolean"),
        (0.5, "unknown row shape: a JSON number"),
        # The columns are there, with wrong values.
        ({"chosen": 1, "rejected": 2}, "'chosen' is not a list of messages"),
        ({**GOOD, "rejected": "Who cares."}, "'rejected' is not a list of messages"),
        ({"conversations": "x", "chosen": "y", "rejected": "z"}, "read as ShareGPT: 'conversations' is a text that"),
    ],
)
def test_row_of_no_shape_is_refused_with_what_it_has_and_lacks(row, reason):
    with pytest.raises(RowError) as caught:
        parse_rows(line(row))
    assert str(caught.value).startswith(reason)


SINGLE = {"chosen": [GOOD["chosen"][1]], "rejected": [GOOD["rejected"][1]]}


@pytest.mark.parametrize(
    ("row", "formats", "settled"),
    [
        ({"prompt": "x", "instruction": "y", "chosen": "a", "rejected": "b"}, ("trl", "alpaca"), "alpaca"),
        ({"prompt": "x", "conversations": [GOOD["chosen"][0]], **SINGLE}, ("minimind", "sharegpt"), "minimind"),
        ({"messages": [{"role": "user", "content": "Hi"}], **GOOD}, ("minimind", "sharegpt"), "minimind"),
    ],
)
def test_row_that_two_shapes_could_mean_is_refused(row, formats, settled):
    with pytest.raises(RowError) as caught:
        parse_rows(line(row))
    titles = " or as ".join(rf"{SHAPES[name].title} \('[^)]*'\)" for name in formats)
    ways = " or ".join(f"--data_format {name}" for name in formats)
    assert re.fullmatch(f"can be read as {titles}; say which by {ways}", str(caught.value))
    assert parse_rows(line(row), ShapeOptions(data_format=settled))[0].shape == settled


def test_two_columns_that_may_be_the_prompt_are_refused_unless_the_shape_is_named():
    texts = {"question": "x", "prompt": "y", "chosen": "a", "rejected": "b"}
    with pytest.raises(RowError, match="'prompt' and 'question' may both be the prompt; rename the column that is not"):
        parse_rows(line(texts))
    (row,) = parse_rows(line(texts), ShapeOptions(data_format="trl"))
    assert (row.chosen[0]["content"], row.unused) == ("y", ("question",))
    (row,) = parse_rows(line({**texts, "question": "y"}))
    assert row.chosen[0]["content"] == "y"


def test_conversations_are_taken_as_they_are():
    assert parse_rows(line(GOOD)) == [PreferenceRow(**GOOD, shape="minimind")]


def test_columns_of_no_use_are_named():
    (row,) = parse_rows(line({"id": None, **GOOD, "source": "test", "weight": 3}))
    assert row == PreferenceRow(**GOOD, shape="minimind", unused=("source", "weight"))


@pytest.mark.parametrize("name", PAIRS)
def test_columns_of_the_conversation_are_used_in_every_shape(name):
    columns = {"system": "Be kind.", "tools": '[{"name": "add"}]', "chat_template_kwargs": {"plain": True}, "id": 7}
    (row,) = parse_rows(line({**json.loads(README[name]), **columns}))
    system = {"role": "system", "content": "Be kind."}
    assert (row.chosen, row.rejected) == ([system, *GOOD["chosen"]], [system, *GOOD["rejected"]])
    assert (row.tools, row.template_kwargs, row.unused) == ([{"name": "add"}], {"plain": True}, ("id",))


@pytest.mark.parametrize("name", PAIRS)
def test_equal_answers_are_refused_in_every_shape(name):
    with pytest.raises(RowError, match="are the same"):
        parse_rows(README[name].replace("Who cares.", "Hay.").encode())


def test_byte_order_mark_and_windows_line_end_are_ignored():
    assert parse_rows(b"\xef\xbb\xbf" + line(GOOD) + b"\r\n")[0].chosen == GOOD["chosen"]


def test_description_of_many_long_keys_is_short():
    with pytest.raises(RowError) as caught:
        parse_rows(line({f"{index}{'键' * 100}": 0 for index in range(100)}))
    assert "'0键键键" in str(caught.value)
    assert len(str(caught.value).encode()) < 500


def test_invalid_json_is_an_error():
    with pytest.raises(RowError, match="invalid JSON"):
        parse_rows(line(GOOD)[:-5])


def test_too_deep_nesting_is_an_error():
    with pytest.raises(RowError, match=r"^invalid JSON: nested too deeply$"):
        parse_rows(b'{"chosen": ' + b"[" * 200_000)
