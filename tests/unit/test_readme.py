"""Both READMEs name every flag, metric and file that there is, and none that there is not."""

from __future__ import annotations

import dataclasses
import re

import pytest

from minimind.config import TrainConfig
from tests.conftest import REPO

READMES = ("README.md", "README_zh.md")


@pytest.mark.parametrize("name", READMES)
def test_flags_are_those_of_the_command_line(name):
    text = (REPO / name).read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `--(\w+)` \|", text, re.MULTILINE))
    assert listed == {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize("name", READMES)
def test_defaults_are_those_of_the_command_line(name):
    text = (REPO / name).read_text(encoding="utf-8")
    for flag, default in re.findall(r"^\| `--(\w+)` \| (.*?) \|", text, re.MULTILINE):
        value = getattr(TrainConfig(), flag)
        shown = str(int(value)) if isinstance(value, bool) else str(value)
        assert default.strip("`") == shown, flag


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
