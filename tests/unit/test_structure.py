"""Every module has a test file of its own, and files and functions stay short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import REPO

PACKAGE = REPO / "minimind"
MOST_LINES, MOST_FUNCTION_LINES = 300, 50

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "version.py"))


def relative(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_has_its_test_file(path):
    mirrored = path.relative_to(PACKAGE)
    assert (REPO / "tests" / "unit" / mirrored.parent / f"test_{mirrored.name}").is_file()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_file_and_its_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = [f.name for f in functions if f.end_lineno - f.lineno >= MOST_FUNCTION_LINES]
    assert long == []
