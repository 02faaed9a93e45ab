"""In which script a text is written: a cheap stand-in for its language.

    text -> script_of -> one of SCRIPTS

Letters say which script a text has and not which language: English and German are both Latin, and Chinese is told from
Japanese by kana alone.
"""

from __future__ import annotations

import re

CHINESE, JAPANESE, KOREAN, LATIN, CYRILLIC, ARABIC = "Chinese", "Japanese", "Korean", "Latin", "Cyrillic", "Arabic"
OTHER, MIXED, CODE, NONE = "other letters", "mixed", "code", "no letters"
SCRIPTS = (CHINESE, JAPANESE, KOREAN, LATIN, CYRILLIC, ARABIC, OTHER, MIXED, CODE, NONE)

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_KANA = r"\u3040-\u30ff\uff66-\uff9f"
_HANGUL = r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
_LATIN = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
_CYRILLIC = r"\u0400-\u052f"
_ARABIC = r"\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff"
# A Chinese character counts as much as a whole word of an alphabet.
_UNITS = {
    CHINESE: re.compile(f"[{_HAN}]"),
    JAPANESE: re.compile(f"[{_KANA}]"),
    KOREAN: re.compile(f"[{_HANGUL}]+"),
    LATIN: re.compile(f"[{_LATIN}]+"),
    CYRILLIC: re.compile(f"[{_CYRILLIC}]+"),
    ARABIC: re.compile(f"[{_ARABIC}]+"),
    OTHER: re.compile(rf"[^\W\d_{_HAN}{_KANA}{_HANGUL}{_LATIN}{_CYRILLIC}{_ARABIC}]+"),
}
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_CODE_LINE = re.compile(
    r"\s*(?:[\w.]+\(.*\)|.*[;{}]|(?:def|class|for|while|if|elif|else|try|except|with)\b.*:|import [\w.]+|"
    r"from [\w.]+ import .*|#include.*|(?:SELECT|INSERT|UPDATE|CREATE)\b.*|return\b.*|</?\w+.*>)\s*"
)
# Characters that decide; a long text is mostly like its beginning.
_READ = 2000
# Share of the words, or of the lines of code, that decides.
_MOST = 0.8
_CODE_SHARE = 0.5
# Share of kana among the characters of a Japanese text; Chinese has none.
_KANA_SHARE = 0.1


def script_of(text: str) -> str:
    """The script of most words of a text; MIXED if none has four fifths of them."""
    text = text[:_READ]
    if _is_code(text):
        return CODE
    units = {name: len(pattern.findall(text)) for name, pattern in _UNITS.items()}
    if units[JAPANESE] >= _KANA_SHARE * (units[JAPANESE] + units[CHINESE]):
        units[JAPANESE] += units[CHINESE]
        units[CHINESE] = 0
    total = sum(units.values())
    if not total:
        return NONE
    first = max(units, key=lambda name: units[name])
    return first if units[first] >= _MOST * total else MIXED


def word_count(text: str) -> int:
    """Number of words and numbers of a text, about: two Chinese characters or kana count as one word."""
    units = {name: len(pattern.findall(text)) for name, pattern in _UNITS.items()}
    characters = units.pop(CHINESE) + units.pop(JAPANESE)
    return sum(units.values()) + len(re.findall(r"\d+", text)) + -(-characters // 2)


def _is_code(text: str) -> bool:
    """Whether most of a text is code: between fences, or by the look of its lines."""
    fenced = sum(len(block) for block in _FENCED.findall(text))
    if fenced > _CODE_SHARE * len(text):
        return True
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and sum(map(bool, map(_CODE_LINE.fullmatch, lines))) > _CODE_SHARE * len(lines)
