"""What a user gives: files, patterns and weights."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from minimind.data.sources.names import find_sources, local_paths
from minimind.errors import DataError


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with files of one row."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b:2", "d/x.jsonl", "d/y.json", "d/.hidden", "[z].jsonl", "e/f/g.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return tmp_path


def found(*words: str) -> list[tuple[str, str, Fraction]]:
    return [(source.name, source.word, source.weight) for source in find_sources(words)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.jsonl"], [("a.jsonl", "a.jsonl", 1)]),
        (["a.jsonl:2"], [("a.jsonl", "a.jsonl:2", 2)]),
        (["a.jsonl:0.25", "d/x.jsonl:.5"], [("a.jsonl", "a.jsonl:0.25", 0.25), ("d/x.jsonl", "d/x.jsonl:.5", 0.5)]),
        # What exists wins.
        (["b:2"], [("b:2", "b:2", 1)]),
        (["b:2:3"], [("b:2", "b:2:3", 3)]),
        (["[z].jsonl"], [("[z].jsonl", "[z].jsonl", 1)]),
        (["d/*"], [("d/x.jsonl", "d/*", 1), ("d/y.json", "d/*", 1)]),
        (["d/?.json*:2"], [("d/x.jsonl", "d/?.json*:2", 2), ("d/y.json", "d/?.json*:2", 2)]),
        (["e/**/*.jsonl"], [("e/f/g.jsonl", "e/**/*.jsonl", 1)]),
    ],
)
def test_words(here, words, expected):
    assert found(*words) == expected


WRONG = {
    "x.jsonl": "x.jsonl: no such preference file",
    "x.jsonl:2": "x.jsonl: no such preference file",
    "a.jsonl:-1": "a.jsonl:-1: no such preference file",
    "a.jsonl:2e1": "a.jsonl:2e1: no such preference file",
    "a.jsonl/b": "a.jsonl/b: no such preference file",
    "x*": r"x\*: no file matches the pattern",
    "e/*": r"e/\*: no file matches the pattern",
    "n" * 300: "n: cannot read the file .File name too long.",
    "/dev/null": "/dev/null: is a device or a pipe, not a file",
    "": "an empty text is no name of a file",
    "a.jsonl:0": "a.jsonl:0: the weight is not between 0.001 and 100",
    "a.jsonl:1000": "a.jsonl:1000: the weight is not between",
    "a.jsonl:" + "9" * 5000: "a.jsonl:9+: cannot read the file",
}


@pytest.mark.parametrize("word", WRONG, ids=range(len(WRONG)))
def test_words_that_name_nothing(here, word):
    with pytest.raises(DataError, match=WRONG[word]):
        find_sources(["a.jsonl", word] if not word.startswith("a.jsonl") else [word])


@pytest.mark.parametrize("words", [["a.jsonl", "./a.jsonl"], ["d/*", "d/x.jsonl:2"], ["a.jsonl", "*.jsonl"]])
def test_a_file_that_is_given_twice_is_an_error(here, words):
    with pytest.raises(DataError, match=f"is given twice, in {words[0].replace('*', '.')} and in"):
        find_sources(words)


def test_files_of_a_pattern_that_hold_no_rows_are_named(here):
    (here / "d" / "README.md").write_text("What this is.\n")
    with pytest.raises(DataError, match=r"^d/README\.md: neither JSON nor a table"):
        find_sources(["d/*"])


def test_local_paths_need_not_exist(here):
    words = ["a.jsonl:2", "x.jsonl", "d/*:0", "x*:3", "b:2"]
    assert list(map(str, local_paths(words))) == ["a.jsonl", "x.jsonl", "d/x.jsonl", "d/y.json", "x*", "b:2"]
