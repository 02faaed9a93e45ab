"""The languages of the READMEs. Chinese texts are in `chinese.json`: English text -> Chinese text.

The key is the English text itself. When the English changes, the translation no longer applies: a flag then fails a
test, and a line of the tree stays English until somebody translates it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

_PATH = Path(__file__).with_name("chinese.json")

# Words of the tables themselves.
_WORDS = {
    "flag": "参数",
    "default": "默认值",
    "meaning": "作用",
    "one of": "可取",
    "layout": "布局",
    "reason": "原因",
    "model types": "模型类型",
    "loss": "损失",
    "method": "方法",
    "formula": "公式",
    "log-probs": "log-prob",
    "needs": "需要",
    "when to take it": "何时使用",
    "option": "选项",
    "losses with their defaults": "损失及其默认值",
    "setting": "设置",
    "MiniMind generation 2": "MiniMind 第 2 代",
    "MiniMind generation 3": "MiniMind 第 3 代",
    "Hugging Face model": "Hugging Face 模型",
    "read from the weights": "从权重中读出",
    "Data": "数据",
    "Model": "模型",
    "Adapters": "适配器",
    "Objective": "目标函数",
    "Optimisation": "优化",
    "Engine": "引擎",
    "Run": "运行",
    "Samples": "样例",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """What generated parts need of a language.

    Attributes:
        suffix: of the READMEs' names.
        translations: English -> this language; empty for English.
        colon, comma, semicolon: punctuation between words, with the space that follows it.
    """

    suffix: str
    translations: Mapping[str, str]
    colon: str
    comma: str
    semicolon: str

    def of(self, text: str) -> str:
        """The text in this language, or in English where it has no translation."""
        return self.translations.get(text, text)

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Texts without a translation, each once."""
        return [text for text in dict.fromkeys(texts) if text and text not in self.translations]

    def unused(self, texts: Iterable[str]) -> list[str]:
        """Translations of texts that no longer exist."""
        return sorted(set(self.translations) - set(texts) - set(_WORDS))


ENGLISH = Language(suffix="", translations={}, colon=": ", comma=", ", semicolon="; ")


def chinese() -> Language:
    """Chinese, with the translations of `chinese.json`."""
    translations = {**_WORDS, **json.loads(_PATH.read_text(encoding="utf-8"))}
    return Language(suffix="_zh", translations=translations, colon="：", comma="、", semicolon="；")
