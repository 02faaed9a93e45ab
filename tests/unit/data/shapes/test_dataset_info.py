"""LLaMA-Factory's `dataset_info.json`: which entry is read, what it renames, and entries that cannot be used."""

from __future__ import annotations

import dataclasses
import json

import pytest

from minimind.config import DataConfig, PretrainConfig, SFTConfig
from minimind.data.shapes import Items, ShapeOptions, parse_answers, parse_items, parse_rows
from minimind.data.shapes.dataset_info import DatasetInfo, dataset_info
from minimind.data.sources import RowError
from minimind.errors import DataError
from tests.conftest import conversation, pair

GOOD = pair("What do horses eat?", "Hay.", "Who cares.")
ALPACA = {"file_name": "pairs.json", "ranking": True, "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}}
SHAREGPT = {
    "file_name": "pairs.json",
    "formatting": "sharegpt",
    "ranking": True,
    "columns": {"messages": "talk", "system": "rule"},
    "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "boy", "assistant_tag": "bot"},
}
OPENAI = {"file_name": "pairs.json", "formatting": "openai", "ranking": True, "columns": {"messages": "talk"}}
TEXTS = {"good": "Hay.", "bad": "Who cares."}


@pytest.fixture
def found(tmp_path):
    """The entry that is found for pairs.json beside a dataset_info.json of these entries."""

    def find(entries: object, *files: str, kind: type = DataConfig, **flags: str) -> DatasetInfo | None:
        content = entries if isinstance(entries, str) else json.dumps(entries)
        (tmp_path / "dataset_info.json").write_text(content, encoding="utf-8")
        return dataset_info([tmp_path / name for name in files or ("pairs.json",)], kind(**flags))

    return find


def read(info: DatasetInfo, row: dict):
    (pair_of_row,) = parse_rows(row, ShapeOptions(dataset_info=info))
    return pair_of_row


def test_columns_of_alpaca_are_renamed(found):
    info = found({"other": {**ALPACA, "file_name": "other.json"}, "mine": ALPACA})
    assert info.origin.endswith("dataset_info.json, entry 'mine'")
    row = read(info, {"q": "What do horses eat?", **TEXTS, "instruction": "x", "id": 1})
    assert (row.shape, row.chosen, row.rejected) == ("alpaca", GOOD["chosen"], GOOD["rejected"])
    assert row.unused == ("instruction, not in dataset_info.json", "id")


def test_columns_and_roles_of_sharegpt_are_renamed(found):
    row = {
        "talk": [{"who": "boy", "says": "What do horses eat?"}],
        "chosen": {"who": "bot", "says": "Hay."},
        "rejected": {"who": "gpt", "says": "Who cares."},
        "rule": "Be kind.",
    }
    given = read(found({"mine": SHAREGPT}), row)
    assert (given.shape, given.unused) == ("sharegpt", ())
    assert given.chosen == [{"role": "system", "content": "Be kind."}, *GOOD["chosen"]]


def test_openai_s_messages(found):
    row = {"talk": GOOD["chosen"][:1], "chosen": GOOD["chosen"][1], "rejected": GOOD["rejected"][1]}
    assert read(found({"mine": OPENAI}), row).chosen == GOOD["chosen"]


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        (
            {**SHAREGPT, "columns": {"messages": "talk", "kto_tag": "good"}},
            {"talk": [{"who": "boy", "says": "What do horses eat?"}, {"who": "bot", "says": "Hay."}]},
        ),
        ({**OPENAI, "columns": {"messages": "talk", "kto_tag": "good"}}, {"talk": GOOD["chosen"]}),
        (
            {**ALPACA, "columns": {"prompt": "q", "response": "a", "kto_tag": "good"}},
            {"q": "What do horses eat?", "a": "Hay."},
        ),
    ],
)
def test_a_column_of_labels_makes_single_answers(found, entry, row):
    entry = {name: value for name, value in entry.items() if name != "ranking"}
    info = found({"mine": entry})
    (answer,) = parse_answers({**row, "good": False, "id": 1}, ShapeOptions(dataset_info=info))
    assert (answer.messages, answer.label, answer.unused) == (GOOD["chosen"], False, ("id",))
    with pytest.raises(RowError, match="it names the column 'good' for 'kto_tag', which the row does not have"):
        parse_answers(row, ShapeOptions(dataset_info=info))
    with pytest.raises(DataError, match='"ranking" is for pairs, "kto_tag" for single answers'):
        found({"mine": {**entry, "ranking": True}})


def test_a_column_that_is_named_as_empty_is_not_read(found):
    info = found({"mine": {**ALPACA, "columns": {**ALPACA["columns"], "query": ""}}})
    row = read(info, {"q": "Hi", **TEXTS, "input": "x"})
    assert row.chosen == conversation("Hi", "Hay.")
    assert row.unused == ("input, not in dataset_info.json",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "q", **TEXTS}, "it names the column 'q' for 'instruction', which the row does not have"),
        ({"q": 3, **TEXTS}, "'instruction' is not a text"),
        ({"q": "x", "good": "a", "bad": "a"}, "'chosen' and 'rejected' are the same"),
        (
            {"q": "x", "good": "a", "bad": None},
            "looks like Alpaca: 'instruction' and 'chosen' are there, 'output' is not",
        ),
    ],
)
def test_damaged_row(found, row, reason):
    with pytest.raises(RowError) as caught:
        read(found({"mine": ALPACA}), row)
    assert str(caught.value).startswith(f"read by dataset_info.json as Alpaca: {reason}")


def test_an_entry_is_looked_for_only_where_it_can_be_meant(found, tmp_path):
    # `save_to_disk` writes a file of the same name with other contents.
    assert found({"builder_name": "json", "features": {"chosen": {"_type": "Value"}}}) is None
    assert found([1, 2]) is None
    assert found({"mine": ALPACA}, "other.json") is None
    assert found({"mine": ALPACA}, data_format="trl") is None
    assert found({"mine": ALPACA}, "pairs.json", "pairs.json").shape == "alpaca"
    assert dataset_info([tmp_path / "data" / "pairs.json"], DataConfig()) is None


def test_a_given_file_may_be_in_another_folder(found, tmp_path):
    found({"mine": ALPACA})
    given = DataConfig(dataset_info=str(tmp_path / "dataset_info.json"))
    assert dataset_info([tmp_path.parent / "pairs.json"], given).shape == "alpaca"
    with pytest.raises(DataError, match='no entry has the "file_name" other'):
        dataset_info([tmp_path / "other.json"], given)
    with pytest.raises(DataError, match="cannot be read"):
        dataset_info([tmp_path / "pairs.json"], DataConfig(dataset_info=str(tmp_path / "none.json")))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ("{", "cannot be read"),
        (
            {"mine": {**ALPACA, "ranking": False}},
            "entry 'mine': it has no \"ranking\": true, so its rows have one answer",
        ),
        (
            {"mine": {**ALPACA, "formatting": "text"}},
            "entry 'mine': unknown \"formatting\" 'text'; known are alpaca, sh",
        ),
        ({"mine": {**ALPACA, "formatting": ["x"]}}, "entry 'mine': unknown \"formatting\" ['x']"),
        ({"mine": {**ALPACA, "num_samples": 5}}, "entry 'mine': \"num_samples\" is not read"),
        (
            {"mine": {**ALPACA, "columns": {"rank_tag": "x"}}},
            "entry 'mine': \"columns\" has 'rank_tag', which alpaca does",
        ),
        ({"mine": {**ALPACA, "columns": ["q"]}}, "entry 'mine': \"columns\" is not an object of texts"),
        ({"mine": {**SHAREGPT, "tags": {"name_tag": "x"}}}, "entry 'mine': \"tags\" has 'name_tag', which is no tag"),
        ({"mine": ALPACA, "too": SHAREGPT}, "the entries 'mine', 'too' read pairs.json in different ways"),
    ],
)
def test_entry_that_cannot_be_used(found, entries, reason):
    with pytest.raises(DataError) as caught:
        found(entries)
    assert reason in str(caught.value)


def test_files_that_are_read_together_have_one_entry(found):
    entries = {"mine": ALPACA, "too": {**SHAREGPT, "file_name": "more.json"}}
    with pytest.raises(DataError, match="are read together, but"):
        found(entries, "pairs.json", "more.json")


def test_the_key_is_what_is_read_and_not_where(found):
    info = found({"mine": ALPACA})
    assert dataclasses.replace(info, origin="elsewhere").key() == info.key()
    assert found({"mine": SHAREGPT}).key() != info.key()


SFT, PRETRAIN = type(SFTConfig().data), type(PretrainConfig().data)


def alone(info: DatasetInfo, row: dict, items: Items):
    (found,) = parse_items(row, ShapeOptions(dataset_info=info, items=items))
    return found


def test_conversations_of_fine_tuning_are_renamed(found):
    """The entries that LLaMA-Factory has for fine-tuning, without a ranking."""
    talk = conversation("What do horses eat?", "Hay.")
    alpaca = {"file_name": "pairs.json", "columns": {"prompt": "q", "response": "a", "system": "rule"}}
    row = alone(found({"mine": alpaca}, kind=SFT), {"q": "What do horses eat?", "a": "Hay."}, Items.CONVERSATIONS)
    assert (row.shape, row.messages) == ("instructions", talk)
    sharegpt = {name: value for name, value in SHAREGPT.items() if name != "ranking"}
    turns = [{"who": "boy", "says": "What do horses eat?"}, {"who": "bot", "says": "Hay."}]
    row = alone(found({"mine": sharegpt}, kind=SFT), {"talk": turns, "rule": "Be kind."}, Items.CONVERSATIONS)
    assert (row.shape, row.messages) == ("conversations", [{"role": "system", "content": "Be kind."}, *talk])
    openai = {name: value for name, value in OPENAI.items() if name != "ranking"}
    row = alone(found({"mine": openai}, kind=SFT), {"talk": talk}, Items.CONVERSATIONS)
    assert row.messages == talk


def test_texts_of_pretraining_are_renamed(found):
    info = found({"mine": {"file_name": "pairs.json", "columns": {"prompt": "body"}}}, kind=PRETRAIN)
    assert alone(info, {"body": "Horses eat hay."}, Items.TEXTS).text == "Horses eat hay."
    with pytest.raises(
        RowError, match=r"read by dataset_info.json as a text: .* does not have|names the column 'body'"
    ):
        alone(info, {"text": "x"}, Items.TEXTS)


@pytest.mark.parametrize(
    ("kind", "entry", "reason"),
    [
        (SFT, {"ranking": True}, 'it has "ranking": its rows judge answers; they are for launch/train_dpo.py'),
        (SFT, {"columns": {"kto_tag": "good"}}, 'it has a column of "kto_tag": its rows judge answers'),
        (SFT, {"columns": {"chosen": "good"}}, "\"columns\" has 'chosen', which alpaca does not have"),
        (PRETRAIN, {"formatting": "openai"}, "unknown \"formatting\" 'openai'; known are alpaca"),
    ],
)
def test_entries_of_another_job_are_refused(found, kind, entry, reason):
    with pytest.raises(DataError) as error:
        found({"mine": {"file_name": "pairs.json", **entry}}, kind=kind)
    assert reason in str(error.value)
