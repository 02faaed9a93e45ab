"""Which patches a run uses: by flag, by DeepSpeed's version, and by the private names that it has."""

from __future__ import annotations

import importlib
import tomllib
from types import SimpleNamespace

import deepspeed
import pytest

from minimind.engine.patches import optimizer, shared_memory
from minimind.engine.patches.catalog import PATCHES
from minimind.engine.patches.optimizer import CAST_GRADIENTS_ONCE
from minimind.engine.patches.registry import (
    TESTED,
    Patch,
    PatchSelection,
    VersionRange,
    flag_problems,
    select_patches,
)
from minimind.engine.patches.shared_memory import SHARE_MEMORY
from tests.conftest import REPO

PATCH = Patch(
    name="faster",
    purpose="makes a step faster",
    without="a step is slower",
    names=("deepspeed:initialize", "deepspeed.runtime.engine:DeepSpeedEngine.backward"),
    attributes=("inner",),
)
MISSING = Patch(
    name="missing",
    purpose="needs names that do not exist",
    without="nothing happens",
    names=("deepspeed:initialise", "deepspeed.no_module:name", "deepspeed.runtime.engine:DeepSpeedEngine.no_method"),
)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.19.7", False),
        ("0.19.8", True),
        ("0.19.8+cu124", True),
        ("0.19.12", True),
        ("0.20", False),
        ("0.20.0rc1", False),
        ("0.100.0", False),
        ("1.0", False),
        ("unknown", False),
    ],
)
def test_versions_are_compared_number_by_number(version, expected):
    assert TESTED.contains(version) is expected


def test_dependency_has_the_bounds_that_patches_were_tested_on():
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (requirement,) = [line for line in project["dependencies"] if line.startswith("deepspeed")]
    assert requirement == f"deepspeed{TESTED}"
    assert str(VersionRange(lowest=(1, 2, 3), below=(2,))) == ">=1.2.3,<2"


def test_patch_is_on_where_its_names_exist():
    selection = PatchSelection(version="0.19.8")
    assert selection.why_off(PATCH) is None
    assert selection.why_off(PATCH, SimpleNamespace(inner=1)) is None


@pytest.mark.parametrize(
    ("selection", "patch", "target", "reason"),
    [
        (PatchSelection(disabled=frozenset({"faster"})), PATCH, None, "--disable_patches turns it off"),
        (PatchSelection(disabled=frozenset({"all"})), PATCH, None, "--disable_patches turns it off"),
        (
            PatchSelection(version="0.20.1"),
            PATCH,
            None,
            "DeepSpeed 0.20.1 is outside >=0.19.8,<0.20, the versions that it was tested on",
        ),
        (PatchSelection(version="0.19.9"), PATCH, SimpleNamespace(), "DeepSpeed 0.19.9 has no inner"),
        (
            PatchSelection(version="0.19.9"),
            MISSING,
            None,
            f"DeepSpeed 0.19.9 has no {', '.join(MISSING.names)}",
        ),
    ],
)
def test_patch_that_is_off_is_reported_with_its_reason(selection, patch, target, reason):
    lines = []
    selection = PatchSelection(disabled=selection.disabled, version=selection.version, report=lines.append)
    assert selection.why_off(patch, target) == reason
    assert lines == []
    assert selection.uses(patch, target) is False
    assert lines == [f"  patch '{patch.name}' is off: {reason}; {patch.without}"]


def test_patch_that_is_on_is_not_reported():
    lines = []
    selection = PatchSelection(disabled=frozenset({"other"}), version="0.19.8", report=lines.append)
    assert selection.uses(PATCH)
    assert lines == []


@pytest.mark.parametrize(("speaks", "printed"), [(True, 1), (False, 0)])
def test_one_rank_prints_each_line_once(speaks, printed, capsys):
    selection = select_patches("faster", speaks)
    assert selection.version == deepspeed.__version__
    assert not selection.uses(PATCH)
    assert not selection.uses(PATCH)
    assert capsys.readouterr().out.count("patch 'faster' is off") == printed


@pytest.mark.parametrize(
    ("value", "disabled"),
    [(None, set()), ("", set()), ("faster", {"faster"}), ("faster, missing,", {"faster", "missing"}), ("all", {"all"})],
)
def test_flag_is_a_list_of_names(value, disabled):
    assert select_patches(value, speaks=False).disabled == disabled


def test_unknown_names_in_the_flag_are_problems():
    patches = (PATCH, MISSING)
    assert (
        flag_problems(None, patches) == flag_problems("faster,missing", patches) == flag_problems("all", patches) == []
    )
    assert flag_problems("fastr,qqq", patches) == [
        "--disable_patches: unknown patch 'fastr'; did you mean 'faster'?",
        "--disable_patches: unknown patch 'qqq'; known are faster, missing, all",
    ]


def test_module_names_of_every_patch_exist_in_the_installed_deepspeed():
    assert TESTED.contains(deepspeed.__version__)
    assert {patch.name: patch.missing() for patch in PATCHES} == {patch.name: [] for patch in PATCHES}
    assert len({patch.name for patch in PATCHES}) == len(PATCHES)


def test_a_deepspeed_without_a_private_module_runs_with_its_patches_off(monkeypatch):
    absent = {"deepspeed.runtime.zero.stage_1_and_2", "deepspeed.comm.comm"}
    real = importlib.import_module

    def without(name):
        if name in absent:
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    for patch in (CAST_GRADIENTS_ONCE, SHARE_MEMORY):
        assert " has no deepspeed." in PatchSelection(report=lambda line: None).why_off(patch)
    # Neither module of patches has imported a private module by itself, so both can be loaded and do nothing.
    for module in (optimizer, shared_memory):
        assert not [value for value in vars(module).values() if getattr(value, "__name__", "") in absent]
    assert optimizer.fitting_patches(SimpleNamespace(), single_rank=True, patches=PatchSelection()) == {}
