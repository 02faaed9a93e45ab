"""The tree of `minimind/`: each folder and file with the first sentence of its docstring or opening comment.

minimind/**/*.py, *.cpp, *.h -> descriptions: path -> sentence -> tree_lines -> Markdown
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.docs.language import Language

PACKAGE = Path(__file__).resolve().parents[2] / "minimind"
# Columns of the names; descriptions begin after them.
_WIDTH = 30


def descriptions() -> dict[str, str]:
    """Path below `minimind/` -> first sentence, parents first, in alphabetical order; folders end in a slash."""
    found = {}
    for path in _entries(PACKAGE):
        name = path.relative_to(PACKAGE).as_posix()
        if path.is_dir():
            found[f"{name}/"] = first_sentence(path / "__init__.py")
        else:
            found[name] = first_sentence(path)
    return found


def _entries(folder: Path) -> list[Path]:
    """Folders that are packages, each followed by its entries, and then source files."""
    entries: list[Path] = []
    for path in sorted(folder.iterdir(), key=lambda one: (one.is_dir(), one.name)):
        if path.is_dir() and (path / "__init__.py").exists():
            entries += [path, *_entries(path)]
        elif path.suffix in (".py", ".cpp", ".h") and path.name != "__init__.py":
            entries.append(path)
    return entries


def first_sentence(path: Path) -> str:
    """What a file says that it is for: its docstring's first sentence, or that of its opening comment in C++."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        opening = ast.get_docstring(ast.parse(text)) or ""
    else:
        comment = re.match(r"(?://.*\n)+", text)
        opening = re.sub(r"^// ?", "", comment[0], flags=re.MULTILINE) if comment else ""
    paragraph = " ".join(re.split(r"\n\s*\n", opening.strip())[0].split())
    # A sentence ends at a full stop before a space or the end, not at the one in `.pth`.
    return re.split(r"(?<=[\w)`])\.(?= |$)", paragraph)[0]


def tree_lines(language: Language) -> list[str]:
    """Lines of Markdown: the tree as a code block."""
    lines = ["```", "minimind/"]
    for name, text in descriptions().items():
        parts = name.rstrip("/").split("/")
        shown = "  " * len(parts) + parts[-1] + ("/" if name.endswith("/") else "")
        lines.append(f"{shown:<{_WIDTH}} {language.of(text)}".rstrip())
    return [*lines, "```"]
