"""The stored verdict: read back only where everything that it depends on is the same."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from minimind.config import parse_settings
from minimind.training.setup import verdicts
from minimind.training.setup.oracle import PACKED, PADDED, REFUSED, Verdict
from minimind.training.setup.verdicts import VerdictStore, describe_verdict
from tests.parity.steps import preference_pair

PADDED_VERDICT = Verdict(layout=PADDED, reason="it is so")
CPU = torch.device("cpu")


def about(*flags, config=None, longest=20, obstacle=None, stage=2):
    prepared = SimpleNamespace(
        settings=parse_settings(flags),
        policy_config=SimpleNamespace(stage=stage),
    )
    return describe_verdict(
        prepared, config or LlamaConfig(), stage, [preference_pair(3, 2, longest - 3, index=1)], obstacle, CPU
    )


@pytest.mark.parametrize("verdict", [Verdict(layout=PACKED), PADDED_VERDICT])
def test_a_verdict_is_read_back(tmp_path, verdict):
    VerdictStore(tmp_path / "new" / "folder", about()).write(verdict)
    assert VerdictStore(tmp_path / "new" / "folder", about()).read() == verdict
    assert [path.suffix for path in (tmp_path / "new" / "folder").iterdir()] == [".json"]


@pytest.mark.parametrize(
    "other",
    [
        {"config": LlamaConfig(num_hidden_layers=3)},
        {"longest": 40},
        {"obstacle": "a window"},
        {"stage": 3},
    ],
    ids=str,
)
def test_another_model_or_other_rows_are_another_verdict(tmp_path, other):
    VerdictStore(tmp_path, about()).write(PADDED_VERDICT)
    assert VerdictStore(tmp_path, about(**other)).read() is None


@pytest.mark.parametrize(
    "flags",
    ["--dtype float32", "--attention sdpa", "--kernels torch", "--dropout 1", "--gradient_checkpointing 1",
     "--use_compile 1", "--router_aux_loss_coef 0.5"],
)  # fmt: skip
def test_other_numbers_are_another_verdict(tmp_path, flags):
    VerdictStore(tmp_path, about()).write(PADDED_VERDICT)
    assert VerdictStore(tmp_path, about(*flags.split())).read() is None


@pytest.mark.parametrize(
    ("owner", "name"), [(torch, "__version__"), (verdicts.transformers, "__version__"), (verdicts, "__version__")]
)
def test_other_versions_are_another_verdict(tmp_path, monkeypatch, owner, name):
    VerdictStore(tmp_path, about()).write(PADDED_VERDICT)
    monkeypatch.setattr(owner, name, "99.0")
    assert VerdictStore(tmp_path, about()).read() is None


def test_other_code_is_another_verdict(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.py").write_text("1")
    monkeypatch.setattr(verdicts, "_PACKAGE", tmp_path)
    monkeypatch.setattr(verdicts, "_CODE", ("model",))
    first = about()
    (tmp_path / "model" / "a.py").write_text("2")
    assert about() != first


def test_rows_of_the_same_power_of_two_share_a_verdict():
    assert about(longest=20) == about(longest=31)


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"layout": "packed"}', "\xff"])
def test_a_damaged_file_is_no_verdict(tmp_path, damage):
    store = VerdictStore(tmp_path, about())
    store.write(PADDED_VERDICT)
    store.path.write_bytes(damage.encode("latin-1"))
    assert store.read() is None
    store.write(PADDED_VERDICT)
    assert store.read() == PADDED_VERDICT


@pytest.mark.parametrize("change", [{"layout": "refused"}, {"layout": "anything"}, {"about": {}}])
def test_a_file_with_other_content_is_no_verdict(tmp_path, change):
    store = VerdictStore(tmp_path, about())
    store.write(PADDED_VERDICT)
    store.path.write_text(json.dumps({**json.loads(store.path.read_text()), **change}))
    assert store.read() is None


def test_a_refusal_is_not_stored(tmp_path):
    VerdictStore(tmp_path, about()).write(Verdict(layout=REFUSED, reason="damaged weights"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")
    store = VerdictStore(tmp_path / "file", about())
    store.write(PADDED_VERDICT)
    assert store.read() is None


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(verdicts.os, "replace", full)
    VerdictStore(tmp_path, about()).write(PADDED_VERDICT)
    assert list(tmp_path.iterdir()) == []
