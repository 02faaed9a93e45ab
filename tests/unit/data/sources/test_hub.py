"""Data sets of the hub, out of caches that are made by hand: no test needs the internet."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from minimind.data.sources.hub import HubName, how_to_get, parse_name
from minimind.data.sources.names import find_sources, local_paths
from minimind.errors import DataError
from tests.unit.data.sources.files import json_lines, parquet, read_words

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40
ROWS = [{"prompt": f"q{n}", "chosen": "yes", "rejected": "no"} for n in range(5)]


@pytest.fixture
def caches(tmp_path, monkeypatch) -> Path:
    """A working folder, with empty caches in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path


def cached(
    root: Path, *, commit: str = COMMIT, ref: str = "main", tree: list[str] | None = None, **files: bytes
) -> Path:
    """A snapshot of owner/name as the hub's client lays it out: names that are links to blobs.

    Args:
        tree: all files of the commit, where the client has noted them.
        files: by their path, in which `__` stands for a slash.
    """
    folder = root / "hub/datasets--owner--name"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    (folder / "blobs").mkdir(exist_ok=True)
    snapshot = folder / "snapshots" / commit
    for number, (name, content) in enumerate(files.items()):
        path = snapshot / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = folder / f"blobs/{commit[:4]}{number}"
        blob.write_bytes(content)
        path.symlink_to(blob)
    if tree is not None:
        (folder / "trees").mkdir(exist_ok=True)
        listing = {name: {"size": 1, "blob_id": "0" * 40} for name in tree}
        (folder / f"trees/{commit}.json").write_text(json.dumps({"format_version": 1, "files": listing}))
    return snapshot


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("owner/name", ("owner/name", None, None)),
        ("owner/na.me-1_x:test", ("owner/na.me-1_x", "test", None)),
        ("owner/name:config/test@refs/pr/1", ("owner/name", "config/test", "refs/pr/1")),
        ("owner/name@v1.0", ("owner/name", None, "v1.0")),
        ("owner/name@../x", None),
        ("name", None),
        ("a/b/c", None),
        ("./a", None),
        ("../b", None),
        ("owner/na--me", None),
        ("owner/näme", None),
        ("owner/name:", None),
        ("owner/name@", None),
        ("owner/name: test", None),
    ],
)
def test_names(word, expected):
    found = parse_name(word)
    assert (found and (found.name, found.split, found.revision)) == expected


def test_a_snapshot_is_one_source(caches):
    cached(
        caches,
        **{
            "data__train-00000-of-00002.parquet": parquet(ROWS[:2]),
            "data__train-00001-of-00002.parquet": parquet(ROWS[2:]),
            "data__test-00000-of-00001.parquet": parquet(ROWS[3:4]),
            "README.md": b"---\nlicense: mit\n---\n",
            ".gitattributes": b"*.parquet filter=lfs\n",
        },
    )
    place = "owner/name, split train, row"
    assert read_words("owner/name") == [(f"{place} {n + 1}", row["prompt"]) for n, row in enumerate(ROWS)]
    assert read_words("owner/name:test") == [("owner/name, split test, row 1", "q3")]
    (source,) = find_sources(["owner/name:train:2"])
    assert (source.weight, source.short_name) == (2, "name, split train")
    assert source.note == "from the hub's cache, commit 0123456789ab, 2 files; not read: other splits: test"
    with pytest.raises(DataError, match=r"^owner/name: it has no split dev, but train, test$"):
        find_sources(["owner/name:dev"])


def test_a_revision_is_a_branch_a_tag_or_a_commit(caches):
    cached(caches, **{"train.jsonl": json_lines(ROWS[:1])})
    cached(caches, commit=OTHER, ref="v2", **{"train.jsonl": json_lines(ROWS[1:2])})
    assert read_words("owner/name")[0][1] == "q0"
    assert read_words("owner/name@v2") == [("owner/name@v2, split train, line 1", "q1")]
    assert read_words(f"owner/name@{OTHER}")[0][1] == "q1"


def test_what_is_not_there_is_an_error_that_says_what_to_download(caches):
    message = r"^owner/name@v1: there is no such file or folder, .*hub and .*datasets\); to download it: "
    with pytest.raises(DataError, match=message + "hf download --repo-type dataset owner/name --revision v1$"):
        find_sources(["owner/name@v1:2"])
    assert list(map(str, local_paths(["owner/name@v1:2"]))) == ["owner/name@v1"]
    # The tool itself accepts the command.
    wanted = HubName(name="owner/name", split=None, revision="v1")
    assert how_to_get(wanted).split()[:2] == ["hf", "download"]


@pytest.mark.parametrize("word", ["data/pairs.jsonl", "there/name"])
def test_a_path_that_is_missing_is_no_data_set(caches, word):
    (caches / "there").mkdir()
    with pytest.raises(DataError, match=f"^{word}: no such preference file$"):
        find_sources([word])


def test_what_exists_here_wins(caches):
    cached(caches, **{"train.jsonl": json_lines(ROWS)})
    (caches / "owner").mkdir()
    assert len(read_words("owner/name")) == 5
    (caches / "owner/name").write_bytes(json_lines(ROWS[:1]))
    assert read_words("owner/name") == [("owner/name, line 1", "q0")]


TREE = ["README.md", "a/train-00000.jsonl", "a/train-00001.jsonl", "a/test-00000.jsonl"]


def test_files_of_a_split_that_were_not_downloaded_are_an_error(caches):
    cached(caches, tree=TREE, **{"a__train-00000.jsonl": json_lines(ROWS)})
    message = (
        r"1 of 2 files of the split are not in the local cache \(a/train-00001.jsonl\): hf download .* owner/name$"
    )
    with pytest.raises(DataError, match=message):
        find_sources(["owner/name"])


def test_files_of_other_splits_need_not_be_there(caches):
    cached(caches, tree=TREE, **{f"a__train-0000{n}.jsonl": json_lines(ROWS[n:][:1]) for n in range(2)})
    assert [prompt for _, prompt in read_words("owner/name")] == ["q0", "q1"]
    with pytest.raises(DataError, match=r"no split test.*; files of it are not in the local cache: hf download"):
        find_sources(["owner/name:test"])


def prepared(root: Path, config: str = "default", commit: str = COMMIT, **splits: list[dict]) -> Path:
    """What `load_dataset` leaves in datasets' cache."""
    files = {}
    for name, rows in splits.items():
        path = root / f"source-{config}-{name}.jsonl"
        path.write_bytes(json_lines(rows))
        files[name] = str(path)
    builder = datasets.load_dataset_builder("json", data_files=files, cache_dir=str(root / "work"))
    folder = root / "datasets/owner___name" / config / "0.0.0" / commit
    builder.dataset_name = "name"
    builder.download_and_prepare(str(folder))
    return folder


def test_what_load_dataset_wrote_is_read(caches):
    folder = prepared(caches, train=ROWS, test=ROWS[3:4])
    assert read_words("owner/name") == [
        (f"owner/name, split train, row {n + 1}", r["prompt"]) for n, r in enumerate(ROWS)
    ]
    assert read_words(f"owner/name:test@{COMMIT[:7]}")[0][1] == "q3"
    (source,) = find_sources(["owner/name"])
    assert source.note == f"from datasets' cache, {folder}; not read: other splits: test"
    with pytest.raises(DataError, match=r"owner/name: it has no split dev, but train, test"):
        find_sources(["owner/name:dev"])
    with pytest.raises(DataError, match="to download it"):
        find_sources(["owner/name@v3"])
    next(folder.glob("*train*.arrow")).unlink()
    with pytest.raises(DataError, match=r"incomplete: name-train.arrow of 1 files is missing"):
        find_sources(["owner/name"])


def test_a_configuration_of_datasets_cache(caches):
    prepared(caches, "a", train=ROWS[:1])
    prepared(caches, "b", train=ROWS[1:2])
    assert read_words("owner/name:b/train") == [("owner/name, configuration b, split train, row 1", "q1")]
    with pytest.raises(DataError, match="has the configurations a, b; say which, as in owner/name:a/train"):
        find_sources(["owner/name"])


def test_a_snapshot_with_a_readme_only_is_passed_over(caches):
    cached(caches, **{"README.md": b"---\nlicense: mit\n---\n"})
    with pytest.raises(DataError, match="owner/name: no file in this folder holds rows"):
        find_sources(["owner/name"])
    prepared(caches, train=ROWS)
    assert len(read_words("owner/name")) == 5


def test_a_data_set_given_twice_is_an_error_and_equal_files_in_it_are_not(caches):
    snapshot = cached(caches, **{"a.jsonl": json_lines(ROWS)})
    (snapshot / "b.jsonl").symlink_to((snapshot / "a.jsonl").resolve())
    assert len(read_words("owner/name")) == 10
    with pytest.raises(DataError, match="is given twice, in owner/name and in owner/name:train:2"):
        find_sources(["owner/name", "owner/name:train:2"])


def test_local_paths_are_the_files(caches):
    snapshot = cached(caches, **{"a.jsonl": json_lines(ROWS)})
    assert local_paths(["owner/name", "owner/missing"]) == [snapshot / "a.jsonl", Path("owner/missing")]
