"""The optimizer section: what --optimizer changes, and what cannot be."""

from __future__ import annotations

import importlib.metadata
import json

import pytest
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from minimind.config import parse_settings
from minimind.engine import ds_optimizer
from minimind.engine.ds_config import resolve_policy
from minimind.engine.ds_optimizer import make_8bit, muon_obstacle
from minimind.errors import ConfigError
from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM
from tests.conftest import REPO

SHIPPED = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True, "fused": True}


@pytest.fixture
def resolved(tmp_path):
    """Resolves a file with these keys under these flags, on two ranks."""

    def resolve(*flags, on_cpu=True, stage=2, **keys):
        path = tmp_path / "ds.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": stage}, **keys}))
        return resolve_policy(path, parse_settings([*flags, "--dtype", "float32"]), 2, on_cpu)

    return resolve


def test_the_default_is_minimind_s_adamw(resolved):
    for keys in ({}, {"optimizer": {"type": "AdamW", "params": SHIPPED}}):
        config = resolved(**keys)
        assert config.values["optimizer"] == {
            "type": "AdamW",
            "params": {**SHIPPED, "lr": 4e-8, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
        }
        assert (config.settings.values["optimizer"], config.settings.origins["optimizer"]) == ("adamw", "default")
        assert config.overridden == {}


def test_the_file_s_optimizer_is_taken_without_the_flag(resolved):
    config = resolved(optimizer={"type": "Lion", "params": {}})
    assert config.values["optimizer"]["type"] == "Lion"
    assert (config.settings.values["optimizer"], config.settings.origins["optimizer"]) == ("lion", "DeepSpeed file")


@pytest.mark.parametrize("kind", ["AdamW", "Lion"])
def test_the_flag_overrides_the_file_and_says_so(resolved, kind):
    params = {"lr": 0.1, "weight_decay": 0.2, "betas": "auto", "fused": True}
    config = resolved("--optimizer", "muon", optimizer={"type": kind, "params": params})
    assert config.values["optimizer"] == {
        "type": "Muon",
        "params": {
            "torch_adam": True, "lr": 0.1, "weight_decay": 0.2, "betas": [0.9, 0.999], "eps": 1e-8, "momentum": 0.95,
            "ns_method": "gram",
        },
    }  # fmt: skip
    assert config.overridden["optimizer.type"] == f'--optimizer; the DeepSpeed file says "{kind}"'
    assert config.settings.origins["optimizer"] == "flag"
    assert config.settings.config.optimisation.learning_rate == 0.1


def test_a_flag_that_names_the_file_s_optimizer_changes_nothing(resolved):
    file = {"type": "adamw", "params": {"lr": "auto", "amsgrad": True}}
    config = resolved("--optimizer", "adamw", optimizer=file)
    assert config.values["optimizer"]["params"]["amsgrad"] is True
    assert config.overridden == {}


def test_muon_is_not_clipped(resolved):
    for keys in ({"flags": ("--optimizer", "muon")}, {"flags": (), "optimizer": {"type": "Muon", "params": {}}}):
        config = resolved(*keys.pop("flags"), **keys)
        assert config.values["gradient_clipping"] == 0
        assert config.settings.origins["grad_clip"] == "optimizer Muon"
    with pytest.raises(ConfigError, match="gradients are not clipped under Muon"):
        resolved("--optimizer", "muon", "--grad_clip", "1")
    with pytest.raises(ConfigError, match="gradients are not clipped under Muon"):
        resolved("--optimizer", "muon", gradient_clipping=0.5)
    assert resolved("--optimizer", "muon", "--grad_clip", "0").settings.origins["grad_clip"] == "flag"


def test_muon_at_stage_3_gets_whole_gradients(resolved):
    config = resolved("--optimizer", "muon", stage=3)
    assert config.values["zero_optimization"]["reduce_scatter"] is False
    assert config.overridden["zero_optimization.reduce_scatter"] == "Muon needs whole gradients"
    zero = {"stage": 3, "reduce_scatter": False}
    assert resolved("--optimizer", "muon", zero_optimization=zero).overridden == {}


@pytest.mark.parametrize(
    ("flag", "keys", "on_cpu", "message"),
    [
        ("adamw_8bit", {}, True, "needs the package bitsandbytes: pip install 'bitsandbytes>=0.50'"),
        ("adamw_8bit", {}, False, "needs the package bitsandbytes: pip install 'bitsandbytes'"),
        (
            "adamw_8bit",
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            False,
            "keeps states beside the weights, and 'offload_optimizer.device' is cpu",
        ),
        ("adamw_8bit", {"zero_allow_untested_optimizer": False}, False, "shards AdamW8bit only with it"),
        (
            "muon",
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/"}}},
            False,
            "'offload_optimizer.device' is nvme: Muon under it is not tested",
        ),
        (
            "muon",
            {"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}},
            False,
            r"ZeRO\+\+ and Muon do not work together",
        ),
    ],
)
def test_what_cannot_be_is_refused(resolved, monkeypatch, flag, keys, on_cpu, message):
    install(monkeypatch, None)
    with pytest.raises(ConfigError, match=message):
        resolved("--optimizer", flag, on_cpu=on_cpu, **keys)


def install(monkeypatch, installed):
    """Let bitsandbytes have this version, or be missing."""
    known = importlib.metadata.version

    def version(name):
        if name != "bitsandbytes":
            return known(name)
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(ds_optimizer.importlib.metadata, "version", version)


def test_8_bit_adamw_on_a_cpu_needs_a_bitsandbytes_that_can(resolved, monkeypatch):
    install(monkeypatch, "0.49.3")
    assert resolved("--optimizer", "adamw_8bit", on_cpu=False).values["optimizer"]["type"] == "AdamW8bit"
    with pytest.raises(ConfigError, match=r"needs bitsandbytes 0.50 or newer, and 0.49.3 is installed"):
        resolved("--optimizer", "adamw_8bit")
    install(monkeypatch, "0.50.0")
    assert resolved("--optimizer", "adamw_8bit").values["optimizer"]["type"] == "AdamW8bit"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"momentun": 0.9}, "unknown key 'optimizer.params.momentun'; did you mean 'momentum'"),
        ({"fused": True}, "unknown key 'optimizer.params.fused'"),
    ],
)
def test_keys_of_muon_are_checked(resolved, params, message):
    with pytest.raises(ConfigError, match=message):
        resolved(optimizer={"type": "Muon", "params": params})


def test_8_bit_adamw_is_made_by_bitsandbytes(resolved, monkeypatch):
    """With a package of the same name: what it is given, and the section that is resolved for it."""
    made = []
    package = type("Package", (), {"optim": type("Optim", (), {"AdamW8bit": lambda *a, **k: made.append((a, k))})})
    install(monkeypatch, "0.50.0")
    monkeypatch.setattr(ds_optimizer.importlib, "import_module", lambda name: package)
    config = resolved("--optimizer", "adamw_8bit", on_cpu=False, optimizer={"type": "AdamW", "params": SHIPPED})
    assert config.values["optimizer"]["type"] == "AdamW8bit"
    assert config.values["zero_allow_untested_optimizer"] is True
    weights = [nn.Parameter()]
    make_8bit(config.values["optimizer"]["params"])(weights)
    ((arguments, options),) = made
    assert arguments == (weights,)
    assert options == {"lr": 4e-8, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}


def test_models_whose_embeddings_muon_would_take_are_refused():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    for tied in (False, True):
        llama = LlamaConfig(**sizes, **heads, intermediate_size=16, tie_word_embeddings=tied)
        assert muon_obstacle(AutoModelForCausalLM.from_config(llama)) == ""
    assert muon_obstacle(MiniMindForCausalLM(MiniMindConfig(**sizes, **heads))) == ""
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=8))
    taken = "DeepSpeed's Muon would take transformer.wte.weight for a hidden matrix"
    assert muon_obstacle(gpt2) == f"{taken}; use --optimizer adamw"


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_the_shipped_files_take_the_flag(name):
    path = REPO / f"ds_configs/{name}.json"
    config = resolve_policy(path, parse_settings(["--optimizer", "muon"]), 2, True)
    assert config.values["optimizer"]["type"] == "Muon"
