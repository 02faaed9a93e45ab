"""Lists of objects that datasets stored as an object of lists."""

from __future__ import annotations

import datasets
import pytest

from minimind.data.shapes import parse_rows
from minimind.data.shapes.sequences import with_objects
from minimind.data.sources import RowError, find_sources
from tests.conftest import conversation, pair

GOOD = pair("What do horses eat?", "Hay.", "Who cares.")


def lists(objects: list[dict]) -> dict[str, list]:
    return {key: [one[key] for one in objects] for key in objects[0]}


def turns(*texts: str) -> dict[str, list]:
    return {"from": ["human", "gpt"] * (len(texts) // 2) + ["human"] * (len(texts) % 2), "value": list(texts)}


@pytest.mark.parametrize(
    "row",
    [
        {half: lists(messages) for half, messages in GOOD.items()},
        {"prompt": lists(GOOD["chosen"][:1]), **{half: lists(messages[1:]) for half, messages in GOOD.items()}},
        {"conversations": turns("What do horses eat?"), "chosen": {"from": "gpt", "value": "Hay."},
         "rejected": {"from": "gpt", "value": "Who cares."}},
        {"conversations": turns("What do horses eat?"), "chosen": "Hay.", "rejected": "Who cares."},
        {"chosen": turns("What do horses eat?", "Hay."), "rejected": turns("What do horses eat?", "Who cares.")},
        {"input": {"messages": lists(GOOD["chosen"][:1])}, "preferred_output": lists(GOOD["chosen"][1:]),
         "non_preferred_output": lists(GOOD["rejected"][1:])},
        {"instruction": "What do horses eat?",
         "completions": {"response": ["Who cares.", "Hay."], "overall_score": [1, 2], "model": ["a", "b"]}},
        {"prompt": "What do horses eat?", "answers": {"text": ["Who cares.", "Hay."], "score": [1, 2]}},
    ],
)  # fmt: skip
def test_lists_in_an_object_are_a_list_of_objects(row):
    (found,) = parse_rows(row)
    assert (found.chosen, found.rejected) == (GOOD["chosen"], GOOD["rejected"])


def test_what_datasets_itself_stores_is_read(tmp_path):
    text = datasets.Value("string")
    turn = {"from": text, "value": text}
    features = {"conversations": {key: datasets.List(text) for key in turn}, "chosen": turn, "rejected": turn}
    row = {
        "conversations": turns("a", "b", "What do horses eat?"),
        "chosen": {"from": "gpt", "value": "Hay."},
        "rejected": {"from": "gpt", "value": "Who cares."},
    }
    datasets.Dataset.from_list([row] * 2, features=datasets.Features(features)).save_to_disk(str(tmp_path / "set"))
    (source,) = find_sources([str(tmp_path / "set")])
    found = [parse_rows(content)[0] for _, content in source.rows()]
    expected = [*conversation("a", "b"), *GOOD["chosen"]]
    assert [row.chosen for row in found] == [expected, expected]


def test_a_null_in_a_list_is_a_key_that_is_not_there():
    messages = {"role": ["user", "assistant"], "content": ["q", None], "tool_calls": [None, [{"name": "f"}]], "x": None}
    (changed,) = with_objects({"chosen": messages}, ("from", "value")).values()
    assert changed == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"from": ["human"], "value": ["a", "b"]}, r"not equally long \('from' has 1, 'value' has 2\)"),
        ({"from": ["human"], "value": ["a"], "weight": 1}, "'weight' in it is no list"),
    ],
)
def test_lists_that_do_not_belong_together_are_refused(value, reason):
    with pytest.raises(RowError, match=f"'conversations' is an object of lists.*{reason}"):
        parse_rows({"conversations": value, "chosen": "a", "rejected": "b"})


def test_other_objects_stay():
    row = {
        "chosen": {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        "chat_template_kwargs": {"documents": ["a"], "names": ["b"]},
        "input": {"messages": [], "tools": []},
        "text": ["a"],
    }
    assert with_objects(row, ("from", "value")) is row
