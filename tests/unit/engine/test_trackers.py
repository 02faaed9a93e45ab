"""--use_wandb with packages that record their calls, under the signatures of swanlab 0.10 and wandb 0.31."""

from __future__ import annotations

import sys

import pytest

from minimind.config import parse_settings
from minimind.engine.trackers import SwanLab, bind_wandb, run_name, start_tracker, tracker_name
from minimind.errors import ConfigError

_RECORDING = """
calls = []

def init(**given):
    calls.append(("init", given))
    if given["project"] == "no login":
        raise RuntimeError("no API key")

def log(data, step=None):
    calls.append(("log", data, step))

def finish():
    calls.append(("finish",))

class Settings:
    def __init__(self, login_timeout=None, init_timeout=90.0):
        self.limits = (login_timeout, init_timeout)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes packages of these names importable."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("swanlab", "wandb"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def run(*names):
        for name in names:
            (tmp_path / f"{name}.py").write_text(_RECORDING)

    yield run
    for name in ("swanlab", "wandb"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("names", "expected"), [((), None), (("wandb",), "wandb"), (("swanlab", "wandb"), "swanlab")])
def test_swanlab_comes_first(names, expected, install):
    install(*names)
    assert tracker_name() == expected


def test_wandb_is_started_for_deepspeed_s_monitor(install, tmp_path):
    install("wandb")
    section = {"group": "mine", "team": "ours"}
    assert (
        start_tracker("MiniMind-DPO", "mine", tmp_path / "run", {"beta": 0.1, "chat_template": None}, section) is None
    )
    ((_, given),) = sys.modules["wandb"].calls
    assert given.pop("settings").limits == (30.0, 60.0)
    assert given == {
        "project": "MiniMind-DPO",
        "name": "mine",
        "config": {"beta": 0.1},
        "dir": str(tmp_path / "run"),
        "group": "mine",
        "entity": "ours",
    }


def test_swanlab_gets_one_record_a_step(install, tmp_path):
    install("swanlab")
    tracker = start_tracker("MiniMind-DPO", "run", tmp_path / "run", {"beta": 0.1}, {})
    assert isinstance(tracker, SwanLab)
    tracker.write_events([("loss", 0.5, 1), ("lr", 1e-4, 1), ("loss", 0.25, 2)])
    tracker.close()
    init, *others = sys.modules["swanlab"].calls
    assert init == ("init", {"project": "MiniMind-DPO", "name": "run", "config": {"beta": 0.1}})
    assert others == [("log", {"loss": 0.5, "lr": 1e-4}, 1), ("log", {"loss": 0.25}, 2), ("finish",)]


@pytest.mark.parametrize(("name", "remedy"), [("swanlab", "SWANLAB_MODE=offline"), ("wandb", "WANDB_MODE=offline")])
def test_a_missing_login_is_said_with_its_remedies(name, remedy, install, tmp_path):
    install(name)
    with pytest.raises(ConfigError, match=rf"{name} cannot start a run: no API key; log in .*{remedy}"):
        start_tracker("no login", "run", tmp_path, {}, {})


def test_a_run_has_the_name_of_its_flag_else_of_its_folder():
    def name(*flags):
        return run_name(parse_settings(flags).config.run)

    assert name("--save_dir", "out/mine/") == "mine"
    assert name("--save_dir", "out/mine", "--run_name", "beta 0.1") == "beta 0.1"
    assert name("--save_dir", "/") == "run"


def bound(section, *flags):
    problems = []
    values = {} if section is None else {"wandb": section}
    settings = bind_wandb(values, parse_settings(flags), problems)
    return values.get("wandb"), settings.config.run.wandb_project, problems


def test_the_section_of_wandb_is_completed(install):
    install("wandb")
    assert bound(None) == (None, "MiniMind-DPO", [])
    assert bound(None, "--use_wandb") == ({"enabled": True, "project": "MiniMind-DPO"}, "MiniMind-DPO", [])
    section = {"team": "ours", "project": "file's"}
    assert bound(section, "--use_wandb", "1") == ({**section, "enabled": True}, "file's", [])
    assert bound(section, "--use_wandb", "--wandb_project", "mine")[2] == [
        "'wandb.project' is \"file's\", but --wandb_project is mine; drop one"
    ]
    assert bound({"enabled": False}, "--use_wandb")[2] == ["'wandb.enabled' is false, but --use_wandb is 1; drop one"]


def test_swanlab_needs_nothing_of_deepspeed(install):
    install("swanlab", "wandb")
    assert bound(None, "--use_wandb")[0] is None
