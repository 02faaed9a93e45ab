"""Both READMEs name every flag, metric and file that there is, and none that there is not."""

from __future__ import annotations

import re

import pytest

from minimind.config import DPOConfig, fields_of
from tests.conftest import REPO

READMES = ("README.md", "README_zh.md")


@pytest.mark.parametrize("name", READMES)
def test_flags_are_those_of_the_command_line(name):
    text = (REPO / name).read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `--(\w+)` \|", text, re.MULTILINE))
    assert listed == {flag.name for flag in fields_of(DPOConfig)}


@pytest.mark.parametrize("name", READMES)
def test_defaults_are_those_of_the_command_line(name):
    text = (REPO / name).read_text(encoding="utf-8")
    flags = {flag.name: flag for flag in fields_of(DPOConfig)}
    for name, default in re.findall(r"^\| `--(\w+)` \| (.*?) \|", text, re.MULTILINE):
        # What is not given is written as a command line spells it: 0 of a number, nothing of a path.
        value = flags[name].kind() if flags[name].default is None else flags[name].default
        shown = str(int(value)) if isinstance(value, bool) else str(value)
        assert default.strip("`") == shown, name


@pytest.mark.parametrize("name", READMES)
def test_tree_has_a_line_for_every_file(name):
    text = (REPO / name).read_text(encoding="utf-8")
    listed = set(re.findall(r"^\s{4,}(\w+\.py)\s", text, re.MULTILINE))
    present = {path.name for path in (REPO / "minimind").glob("*/*.py") if path.parent.name != "demo"}
    present |= {"errors.py", "config.py"}
    assert listed == present - {"__init__.py"}


@pytest.mark.parametrize("name", READMES)
def test_linked_files_exist(name):
    text = (REPO / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (REPO / target).exists(), target
