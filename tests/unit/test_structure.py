"""Every module has a test file of its own, and files and functions stay short."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import REPO

PACKAGE = REPO / "minimind"
MOST_LINES, MOST_FUNCTION_LINES = 300, 50

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "version.py"))


def relative(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def test_a_module_has_its_test_file():
    assert len(MODULES) > 300
    mirrored = (path.relative_to(PACKAGE) for path in MODULES)
    expected = [REPO / "tests" / "unit" / path.parent / f"test_{path.name}" for path in mirrored]
    assert [relative(path) for path in expected if not path.is_file()] == []


def test_a_file_and_its_functions_are_short():
    long = []
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > MOST_LINES:
            long.append(relative(path))
        functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
        long += [f"{relative(path)}: {f.name}" for f in functions if f.end_lineno - f.lineno >= MOST_FUNCTION_LINES]
    assert long == []
