"""Sets of held-out data: their names, the indices of their pairs, and equal pairs in them."""

from __future__ import annotations

from minimind.data.sets import named_words, plain_words


def test_words_belong_to_the_set_that_they_name():
    words = ("zh=a.jsonl", "b.jsonl", "en=c/*.parquet", "zh=owner/name:test", "d.jsonl")
    assert named_words(words) == {
        "zh": ("a.jsonl", "owner/name:test"),
        "": ("b.jsonl", "d.jsonl"),
        "en": ("c/*.parquet",),
    }
    assert plain_words(words) == ("a.jsonl", "owner/name:test", "b.jsonl", "d.jsonl", "c/*.parquet")
    assert named_words(()) == {}


def test_a_file_whose_name_has_an_equals_sign_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zh=a.jsonl").touch()
    assert named_words(("zh=a.jsonl", "zh=*.jsonl", "zh=b.jsonl")) == {
        "": ("zh=a.jsonl", "zh=*.jsonl"),
        "zh": ("b.jsonl",),
    }
    assert list(named_words((f"{tmp_path}/x=y.jsonl",))) == [""]
