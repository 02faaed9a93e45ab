"""Scripts of texts, and numbers of words."""

from __future__ import annotations

import pytest

from minimind.data.scripts import (
    ARABIC,
    CHINESE,
    CODE,
    CYRILLIC,
    JAPANESE,
    KOREAN,
    LATIN,
    MIXED,
    NONE,
    OTHER,
    script_of,
    word_count,
)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Horses like to eat hay.", LATIN),
        ("Les chevaux aiment être brossés à l'écurie.", LATIN),
        ("马喜欢吃干草，尤其是在冬天。", CHINESE),
        ("用 Python 写一个程序，它能读取文件并统计每个词的数量。", CHINESE),
        ("馬は干し草を食べるのが好きです。", JAPANESE),
        ("말은 건초를 먹는 것을 좋아합니다.", KOREAN),
        ("Лошади любят сено.", CYRILLIC),
        ("الخيول تحب أكل التبن.", ARABIC),
        ("Τα άλογα τρώνε σανό.", OTHER),
        ("The word 干草 means hay, 马 means horse, and 喜欢 means to like.", MIXED),
        ("42", NONE),
        ("", NONE),
        ("?!…", NONE),
        ("Here:\n```python\nfor line in open(path):\n    print(line.strip())\n```", CODE),
        ("import os\n\ndef f(x):\n    return x + 1\n", CODE),
        ("int main() {\n  int x = 1;\n  return x;\n}", CODE),
        ("A list:\n- one\n- two (or three)\n- four", LATIN),
    ],
)
def test_script(text, script):
    assert script_of(text) == script


@pytest.mark.parametrize(
    ("text", "words"),
    [("", 0), ("Yes.", 1), ("42", 1), ("It's", 2), ("No, never", 2), ("好的。", 1), ("没问题", 2), ("네", 1), ("!", 0)],
)
def test_words(text, words):
    assert word_count(text) == words
