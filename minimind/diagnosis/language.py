"""The words of the report in English and Chinese.

English template -> Language -> its text, with values filled in

The English is written where it is used; chinese.json has the Chinese of every template. Texts of data and names of
flags are not translated.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

ENGLISH, CHINESE = "en", "zh"
_FILE = Path(__file__).with_name("chinese.json")


class Language:
    """Says templates in one language.

    Args:
        code: ENGLISH or CHINESE.
    """

    def __init__(self, code: str) -> None:
        self.code = code

    def __call__(self, template: str, /, **values: object) -> str:
        text = template if self.code == ENGLISH else _chinese()[template]
        return text.format(**values)


@functools.cache
def _chinese() -> Mapping[str, str]:
    return json.loads(_FILE.read_text(encoding="utf-8"))
