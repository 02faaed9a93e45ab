"""The adapters that flags and files ask for."""

from __future__ import annotations

import pytest
import torch

from minimind.config import parse_settings
from minimind.errors import ConfigError, MiniMindError
from minimind.model.configuration import MiniMindConfig
from minimind.training.setup import adapters as adapters_module
from minimind.training.setup.adapters import base_source, open_adapters
from minimind.training.setup.prepare import ADAPTERS_RATE, with_implied
from minimind.weights.adapter_files import save_adapter
from minimind.weights.adapters import adapter_shapes
from minimind.weights.sources import RandomSource

CPU = torch.device("cpu")
SIZES = {"generation": 3, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
BASE = RandomSource(MiniMindConfig(**SIZES), seed=1)
MIXTURE = RandomSource(MiniMindConfig(**SIZES, use_moe=True), seed=1)


def opened(*flags, base=BASE, ds_config=None):
    return open_adapters(parse_settings(list(map(str, flags))), base, ds_config or {"zero_optimization": {}}, CPU)


@pytest.fixture
def adapter(tmp_path):
    _, source = opened("--lora_rank", 4)
    state = {name: torch.randn(shape) for name, shape in adapter_shapes(BASE.config, source.spec).items()}
    save_adapter(state, source.spec, BASE, tmp_path / "adapter", True)
    return tmp_path / "adapter"


def test_without_a_rank_the_weights_train():
    settings, adapters = opened()
    assert adapters is None
    assert settings == parse_settings([])


def test_alpha_is_twice_the_rank_unless_it_is_given():
    settings, adapters = opened("--lora_rank", 4)
    assert (adapters.spec.alpha, settings.config.adapters.lora_alpha) == (8, 8)
    assert settings.origins["lora_alpha"] == "2 x lora_rank"
    assert opened("--lora_rank", 4, "--lora_alpha", 3)[1].spec.alpha == 3


def test_the_files_of_an_adapter_answer_what_is_not_given(adapter):
    settings, adapters = opened("--from_adapter", adapter, "--lora_dropout", 0.1)
    assert (adapters.spec.rank, adapters.spec.alpha, adapters.spec.dropout) == (4, 8, 0.1)
    assert (settings.values["lora_rank"], settings.origins["lora_rank"]) == (4, "adapter")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--lora_alpha", 3), "--lora_alpha is for adapters"),
        (("--merge", 1), "--merge is for adapters"),
        (("--lora_rank", 4, "--lora_dropout", 1), "not below 1"),
        (("--lora_rank", 4, "--reference_update", "hard@8"), "--reference_update moves all weights"),
        (("--lora_rank", 4, "--optimizer", "muon"), "--optimizer muon is for whole matrices"),
        (("--use_dora", 1), "--use_dora is for adapters"),
        (("--quantize", "nf4"), "--quantize is for adapters"),
        (("--lora_rank", 4, "--lora_reference", "start"), "needs --from_adapter"),
        (("--lora_rank", 4, "--lora_targets", "nothing"), "means no linear layer"),
    ],
)
def test_flags_that_mean_nothing_are_refused(flags, words):
    with pytest.raises(ConfigError, match=words):
        opened(*flags)


def test_states_on_nvme_are_refused():
    ds_config = {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}
    with pytest.raises(ConfigError, match="NVMe"):
        opened("--lora_rank", 4, ds_config=ds_config)


@pytest.mark.parametrize(
    ("flags", "ds_config", "words"),
    [
        (("--use_dora", 1), {}, "--quantize nf4: DoRA"),
        ((), {"zero_quantized_weights": True}, "ZeRO"),
        ((), {"zero_hpz_partition_size": 8}, "ZeRO"),
    ],
)
def test_what_a_base_in_4_bits_cannot_do_is_refused(flags, ds_config, words):
    with pytest.raises(ConfigError, match=words):
        opened("--lora_rank", 4, "--quantize", "nf4", *flags, ds_config={"zero_optimization": ds_config})


def test_a_base_in_4_bits_needs_kernels(monkeypatch):
    monkeypatch.setattr(adapters_module, "quantization_obstacle", lambda device, dtype: f"none on this {device}")
    with pytest.raises(ConfigError, match="--quantize nf4: none on this cpu"):
        opened("--lora_rank", 4, "--quantize", "nf4")
    assert opened("--lora_rank", 4)[1] is not None


def test_the_base_is_in_4_bits_only_if_it_is_asked_for():
    config = parse_settings(["--lora_rank", "4"]).config
    assert base_source(config, BASE) is BASE
    quantized = base_source(parse_settings(["--lora_rank", "4", "--quantize", "nf4"]).config, BASE)
    assert len(quantized.packed_layers) == 7


@pytest.mark.parametrize("flags", [("--use_dora", 1), ("--lora_dropout", 0.1)])
def test_stacked_experts_have_neither_dropout_nor_dora(flags):
    with pytest.raises(ConfigError, match="stacked experts"):
        opened("--lora_rank", 4, "--lora_targets", "experts", *flags, base=MIXTURE)
    assert opened("--lora_rank", 4, *flags, base=MIXTURE)[1].spec.stacks == ()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--lora_rank", 5), r"--lora_rank is 5, but .*adapter has 4"),
        (("--lora_targets", "q_proj"), "--lora_targets is for new adapters"),
    ],
)
def test_flags_that_contradict_the_files_are_refused(adapter, flags, words):
    with pytest.raises(ConfigError, match=words):
        opened("--from_adapter", adapter, *flags)


def test_two_references_are_refused(adapter):
    flags = ("--from_adapter", adapter, "--lora_reference", "start", "--reference_weight", "other.pth")
    with pytest.raises(ConfigError, match="both name the reference"):
        opened(*flags)


def test_a_folder_that_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(MiniMindError, match="neither a folder with an adapter_config"):
        opened("--from_adapter", tmp_path)


def test_adapters_have_a_learning_rate_of_their_own():
    data = ("--data_path", "pairs.jsonl")
    settings = with_implied(parse_settings([*data, "--lora_rank", "4"]))
    assert (settings.values["learning_rate"], settings.origins["learning_rate"]) == (ADAPTERS_RATE, "adapters")
    assert with_implied(parse_settings([*data])).values["learning_rate"] == 4e-8
    assert (
        with_implied(parse_settings([*data, "--lora_rank", "4", "--learning_rate", "1"])).values["learning_rate"] == 1
    )
