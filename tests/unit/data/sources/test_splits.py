"""Splits of a folder with data files; test_folders.py has those that a run reads."""

from __future__ import annotations

import pytest

from minimind.data.sources.splits import splits_of
from minimind.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """A folder of data files by these names."""

    def make(*names, readme=None):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("{}\n")
        if readme is not None:
            (tmp_path / "README.md").write_text(readme)
        return tmp_path

    return make


def names(splits):
    return {split: sorted(path.name for path in files) for split, files in splits.files.items()}


def test_files_belong_to_the_splits_in_their_names(folder):
    splits = splits_of(folder("train.jsonl", "test.jsonl", "other.jsonl"), None, "pairs")
    assert names(splits) == {"train": ["train.jsonl"], "test": ["test.jsonl"]}
    assert [path.name for path in splits.loose] == ["other.jsonl"]
    assert (splits.config, splits.configs) == (None, [])


def test_a_configuration_names_its_files(folder):
    head = "---\nconfigs:\n- config_name: one\n  data_files: a.jsonl\n- config_name: two\n  data_files: b.jsonl\n---\n"
    path = folder("a.jsonl", "b.jsonl", readme=head)
    splits = splits_of(path, "two", "pairs")
    assert names(splits) == {"train": ["b.jsonl"]}
    assert (splits.config, splits.configs) == ("two", ["one", "two"])
    with pytest.raises(DataError, match="configurations one, two, none of them the default"):
        splits_of(path, None, "pairs")
    with pytest.raises(DataError, match="no configuration three; it has one, two"):
        splits_of(path, "three", "pairs")
