"""The READMEs, and the parts of them that are generated.

README with `<!-- generated: NAME -->` ... `<!-- end -->` -> regenerate -> the same with new lines between the marks
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.defaults import default_table
from tests.docs.language import ENGLISH, Language, chinese
from tests.docs.losses import loss_table, option_table
from tests.docs.models import model_table
from tests.docs.tables import TABLES, flag_tables
from tests.docs.tree import tree_lines

REPO = Path(__file__).resolve().parents[2]
# Folders that have a README with a Chinese twin.
FOLDERS = ("", "launch", "ds_configs", "minimind", "tests/benchmarks")
_PART = re.compile(r"<!-- generated: ([\w ]+) -->\n.*?<!-- end -->", re.DOTALL)


def pages() -> list[tuple[Path, Language]]:
    """Every README with its language, each English one before its Chinese twin."""
    languages = (ENGLISH, chinese())
    return [(REPO / folder / f"README{one.suffix}.md", one) for folder in FOLDERS for one in languages]


def parts(text: str) -> list[str]:
    """Names of the generated parts of a README."""
    return [match[1] for match in _PART.finditer(text)]


def regenerate(text: str, language: Language) -> str:
    """A README with its generated parts as the code has them now.

    Raises:
        KeyError: a mark names a part that does not exist.
    """

    def replaced(match: re.Match[str]) -> str:
        lines = "\n".join(_generate(match[1], language))
        return f"<!-- generated: {match[1]} -->\n{lines}\n<!-- end -->"

    return _PART.sub(replaced, text)


def _generate(name: str, language: Language) -> list[str]:
    if name == "tree":
        return tree_lines(language)
    tables = {"models": model_table, "losses": loss_table, "loss options": option_table, "defaults": default_table}
    if name in tables:
        return tables[name](language)
    return flag_tables(TABLES[name](), language)
