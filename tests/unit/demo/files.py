"""Helpers for tests of the bundled files."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

MEGABYTE = 2**20


def run_script(module: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script as `python -m` does, but in this process: importing minimind in another one takes seconds."""
    monkeypatch.setattr("sys.argv", [str(module), "--out", str(out)])
    runpy.run_path(str(module), run_name="__main__")


def read_pairs(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def user_turns(pair: dict[str, Any]) -> list[str]:
    return [message["content"] for message in pair["chosen"] if message["role"] == "user"]
