"""Folders: what `save_to_disk` wrote and data files; which split is read, and what is said about the rest."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from minimind.data.sources.folders import files_of_folder
from minimind.data.sources.names import find_sources
from minimind.errors import DataError
from tests.unit.data.sources.files import json_lines, parquet, read_words

ROWS = [{"prompt": f"q{n}", "chosen": "yes", "rejected": "no"} for n in range(5)]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, **files: bytes) -> Path:
    """Files by their path, in which `__` stands for a slash."""
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def made(folder: Path, *names: str) -> Path:
    """A folder with these files of one row each."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(json_lines(ROWS[:1]))
    return folder


def names(word: str) -> list[str]:
    return [source.name for source in find_sources([word])]


def test_a_saved_data_set_is_one_source_whose_rows_count_on(here):
    datasets.Dataset.from_list(ROWS).save_to_disk("set", num_shards=2)
    assert read_words("set") == [(f"set, row {n + 1}", row["prompt"]) for n, row in enumerate(ROWS)]


def test_of_a_saved_dict_the_split_is_chosen(here):
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=data, test=data.select([4])).save_to_disk("sets")
    assert read_words("sets") == [(f"sets, split train, row {n + 1}", row["prompt"]) for n, row in enumerate(ROWS)]
    assert read_words("sets:test:2") == [("sets, split test, row 1", "q4")]
    assert [source.note for source in find_sources(["sets"])] == ["not read: other splits: test"]
    with pytest.raises(DataError, match=r"^sets: it has no split dev, but train, test$"):
        find_sources(["sets:dev"])


def test_without_a_train_split_one_must_be_named(here):
    datasets.DatasetDict({"train_prefs": datasets.Dataset.from_list(ROWS)}).save_to_disk("sets")
    with pytest.raises(DataError, match="it has no split train, but train_prefs; say which, as in sets:train_prefs"):
        find_sources(["sets"])
    assert len(read_words("sets:train_prefs")) == 5


def test_a_shard_without_rows_is_no_error_and_a_set_without_rows_is_one(here):
    datasets.Dataset.from_list(ROWS[:2]).save_to_disk("set", num_shards=2)
    part = here / "set/data-00000-of-00002.arrow"
    empty = datasets.Dataset.from_list(ROWS[:2]).select([])
    empty.save_to_disk("empty")
    written = next((here / "empty").glob("*.arrow"), None)
    if written is not None:
        part.write_bytes(written.read_bytes())
        assert read_words("set") == [("set, row 1", "q1")]
    with pytest.raises(DataError, match="without a row"):
        read_words("empty")


def damaged_state(folder: Path, **changes: object) -> None:
    path = folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damaged_saved_sets_are_one_error(here):
    data = datasets.Dataset.from_list(ROWS)
    for name, change, message in (
        ("a", lambda f: (f / "data-00001-of-00002.arrow").unlink(), "a: incomplete: data-00001-of-00002.arrow of 2"),
        ("b", lambda f: (f / "state.json").write_text("{"), "b/state.json: cannot be read"),
        ("c", lambda f: (f / "state.json").write_text("[]"), "c/state.json: no JSON object"),
        ("d", lambda f: damaged_state(f, _data_files=None), "d/state.json: it does not say which files"),
        (
            "e",
            lambda f: damaged_state(f, _data_files=[{"filename": "../x"}]),
            "e/state.json: '../x' is no name of a file",
        ),
        ("f", lambda f: damaged_state(f, _data_files=[]), "f: a data set without a row"),
        ("g", lambda f: damaged_state(f, _indices_data_files=[{}]), "g: an old version of datasets saved a selection"),
    ):
        data.save_to_disk(name, num_shards=2)
        change(here / name)
        with pytest.raises(DataError, match=message):
            find_sources([name])
    data.save_to_disk("h")
    with pytest.raises(DataError, match="h: save_to_disk wrote one data set into it, so there is no split to choose"):
        find_sources(["h:test"])


def test_several_saved_sets_in_a_folder_are_given_one_by_one(here):
    for name in ("one", "two"):
        datasets.Dataset.from_list(ROWS).save_to_disk(f"all/{name}")
    with pytest.raises(DataError, match=r"all: save_to_disk wrote data sets into folders of it; .*: all/one, all/two"):
        find_sources(["all"])


def test_every_data_file_of_a_folder_is_read_by_its_content(here):
    write(
        here / "d",
        **{
            "b.jsonl": json_lines(ROWS[:1]),
            "a": parquet(ROWS[1:2]),
            "deep__er__c.txt": json_lines(ROWS[2:3]),
            "README.md": b"# Pairs, by hand\nprompt,chosen\n",
            "LICENSE": b"You may, if you wish,\ndo as, for example,\n",
            "dataset_info.json": b'{"features": {}}',
            ".hidden.jsonl": json_lines(ROWS),
        },
    )
    made(here / "d", ".git/x.jsonl", "__pycache__/y.jsonl")
    assert [place for place, _ in read_words("d")] == [
        "d/a, row 1",
        "d/b.jsonl, line 1",
        "d/deep/er/c.txt, line 1",
    ]
    notes = [source.note for source in find_sources(["d"])]
    assert notes == ["not read: files without rows: LICENSE", "", ""]


def test_a_data_file_that_cannot_be_read_is_not_passed_over(here):
    write(here / "d", **{"a.jsonl": json_lines(ROWS), "b.parquet": b"version https://git-lfs.github.com/spec/v1\n"})
    with pytest.raises(DataError, match=r"^d/b.parquet: a Git LFS pointer"):
        find_sources(["d"])


def test_files_with_names_of_splits_are_those_splits(here):
    made(here / "d", "train.jsonl", "my_test.jsonl", "other.jsonl")
    assert names("d") == ["d/train.jsonl"]
    assert names("d:test") == ["d/my_test.jsonl"]
    (source,) = find_sources(["d"])
    assert source.note == "not read: other splits: test; data files in no split: other.jsonl"
    made(here / "e", "eval.jsonl", "pairs.jsonl")
    message = r"e: it has no split train, but test; say which, as in e:test; in no split is pairs.jsonl"
    with pytest.raises(DataError, match=message):
        find_sources(["e"])


def test_folders_with_names_of_splits(here):
    made(here / "d", "train/1.jsonl", "train/2.jsonl", "validation/1.jsonl")
    assert names("d") == ["d/train/1.jsonl", "d/train/2.jsonl"]
    assert names("d:validation") == ["d/validation/1.jsonl"]


def test_a_missing_shard_is_an_error(here):
    made(here / "d", "data/train-00000-of-00003.jsonl", "data/train-00002-of-00003.jsonl")
    with pytest.raises(DataError, match=r"1 of 3 files are missing, the first is train-00001-of-00003\.jsonl"):
        find_sources(["d"])


HEAD = """---
configs:
- config_name: helpful
  default: true
  data_files:
  - split: train
    path: a/*.jsonl
  - split: dev
    path: [b/1.jsonl, b/2.jsonl]
- config_name: harmless
  data_dir: c
---
Words.
"""


def test_the_head_of_a_readme_says_what_the_splits_are(here):
    folder = made(here / "d", "a/1.jsonl", "b/1.jsonl", "b/2.jsonl", "b/3.jsonl", "c/x.jsonl")
    (folder / "README.md").write_text(HEAD)
    assert names("d") == ["d/a/1.jsonl"]
    assert names("d:dev") == ["d/b/1.jsonl", "d/b/2.jsonl"]
    assert names("d:harmless/train") == ["d/c/x.jsonl"]
    assert find_sources(["d"])[0].note == "not read: other splits: dev; other configurations: harmless"
    with pytest.raises(DataError, match="d: there is no configuration x; it has helpful, harmless"):
        find_sources(["d:x/train"])
    (folder / "README.md").write_text(HEAD.replace("  default: true\n", ""))
    with pytest.raises(DataError, match="none of them the default; say which, as in d:helpful/train"):
        find_sources(["d"])


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("---\nconfigs: [\n---\n", "README.md: its head, which says what the data files are, cannot be read"),
        ("---\nconfigs: 3\n---\n", "README.md: its head"),
        ("---\nconfigs: [{config_name: a, data_files: ../x.jsonl}]\n---\n", "the file '../x.jsonl' .* is not in the"),
        ("---\nconfigs: [{config_name: a, data_files: /etc/passwd}]\n---\n", "the file '/etc/passwd' .* is not in the"),
        ("---\nconfigs: [{config_name: a, data_files: 'https://x/y'}]\n---\n", "the file 'https://x/y' .* is not in"),
        ("---\nconfigs: [{config_name: a, data_dir: ../..}]\n---\n", "leaves the folder by 'data_dir'"),
        ("---\nconfigs: [{config_name: a, data_files: b.jsonl}]\n---\n", "d: no file in this folder holds rows"),
    ],
)
def test_a_head_that_cannot_be_used_is_an_error(here, head, message):
    (made(here / "d", "a.jsonl") / "README.md").write_text(head)
    with pytest.raises(DataError, match=message):
        find_sources(["d"])


def test_a_folder_without_data_is_one_error(here):
    (here / "d").mkdir()
    with pytest.raises(DataError, match=r"^d: no file in this folder holds rows \(.*\); it is empty$"):
        find_sources(["d"])
    write(here / "d", **{"LICENSE": b"text", "x.py": b"import os\n", "pairs.zip": b"PK\x03\x04" + b"\0" * 40})
    with pytest.raises(DataError, match=r"^d: no file .*; it has LICENSE, pairs.zip, x.py$"):
        find_sources(["d"])


def test_a_name_with_characters_of_patterns_is_a_folder(here):
    made(here / "a[1]*", "x.jsonl")
    assert names("a[1]*") == ["a[1]*/x.jsonl"]
    found = files_of_folder(here / "a[1]*", None)
    assert found.files == (here / "a[1]*/x.jsonl",)
