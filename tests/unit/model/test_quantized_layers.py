"""4-bit weights: packed as bitsandbytes packs them, and layers that compute with them."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from minimind.model import quantized_layers
from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM
from minimind.model.quantized_layers import (
    _LEVELS,
    PackedLinear,
    pack,
    packed_bytes,
    quantization_obstacle,
    unpack,
    use_packed_weights,
)

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(bool(quantization_obstacle(CPU, torch.float32)), reason="no 4-bit kernels here")


def test_a_block_of_known_values():
    """Levels of a block are its largest absolute value times the nearest level; two indices are in a byte."""
    weight = torch.zeros(64)
    weight[:4] = torch.tensor([2.0, -2.0, 0.2, 0.85])
    packed = pack(weight)
    # 1 is level 15, -1 level 0, 0.1 is next to 0.0796 (8), 0.425 next to 0.4407 (12), and 0 is level 7.
    assert packed[:3].tolist() == [0xF0, 0x8C, 0x77]
    assert packed[32:].view(torch.float32).tolist() == [2.0]
    assert len(packed) == packed_bytes(64) == 36


@pytest.mark.parametrize(("elements", "size"), [(64, 36), (65, 33 + 8), (1, 1 + 4), (4096, 2048 + 256)])
def test_sizes_of_packed_weights(elements, size):
    assert packed_bytes(elements) == len(pack(torch.ones(elements))) == size


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 128), (5, 13), (700, 300)])
def test_packed_weights_are_those_of_bitsandbytes(shape, dtype):
    import bitsandbytes.functional as theirs

    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    weight[0] = 0
    packed = pack(weight)
    indices, state = theirs.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(packed, torch.cat([indices.flatten(), state.absmax.view(torch.uint8)]))


@needs_kernels
@pytest.mark.parametrize("shape", [(64, 128), (32, 32), (96, 48), (5, 13), (100, 80)])
def test_unpacked_values_are_levels_times_scales(shape):
    """Where rows end within a block too, which bitsandbytes' kernel for CPUs does not expect.

    For an odd number of values it has torch operations instead, which it would compile for half a minute.
    """
    torch.manual_seed(0)
    packed = pack(torch.randn(shape))
    elements = shape[0] * shape[1]
    indices = torch.stack([packed >> 4, packed & 15], 1).flatten()[:elements].long()
    scales = packed[-(-elements // 2) :].clone().view(torch.float32).repeat_interleave(64)[:elements]
    expected = (torch.tensor(_LEVELS)[indices] * scales).view(shape)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(unpack(packed, shape, torch.float32), expected)
        rounded = unpack(packed, shape, torch.bfloat16)
    torch.testing.assert_close(rounded.float(), expected, rtol=2**-7, atol=0)


def packed_linear(rows: int, columns: int, bias: bool) -> tuple[PackedLinear, nn.Linear]:
    """A packed layer, and a plain one of the same values."""
    torch.manual_seed(1)
    plain = nn.Linear(columns, rows, bias=bias)
    layer = PackedLinear(columns, rows)
    layer.weight.data, layer.bias = pack(plain.weight), plain.bias
    plain.weight.data = layer.unpacked(torch.float32)
    return layer, plain


@needs_kernels
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_computes_what_a_layer_of_its_values_does(bias):
    layer, plain = packed_linear(48, 32, bias)
    inputs = torch.randn(2, 5, 32)
    x, y = (inputs.clone().requires_grad_() for _ in range(2))
    torch.testing.assert_close(layer(x), plain(y))
    layer(x).square().sum().backward()
    plain(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert layer.weight.grad is None


@needs_kernels
def test_a_packed_layer_keeps_neither_its_input_nor_an_unpacked_weight():
    layer, _ = packed_linear(48, 32, bias=False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(3, 32, requires_grad=True))
    assert kept == []


@needs_kernels
def test_a_gathered_weight_may_begin_at_any_address():
    layer, plain = packed_linear(48, 32, bias=False)
    buffer = torch.empty(len(layer.weight) + 1, dtype=torch.uint8)
    buffer[1:] = layer.weight
    layer.weight.data = buffer[1:]
    x = torch.randn(3, 32)
    torch.testing.assert_close(layer(x), plain(x))


def test_layers_of_a_model_are_replaced_by_name():
    config = MiniMindConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=64)
    model = MiniMindForCausalLM(config)
    use_packed_weights(model, ["model.layers.0.mlp.down_proj"])
    layer = model.model.layers[0].mlp.down_proj
    assert isinstance(layer, PackedLinear)
    assert (layer.in_features, layer.out_features) == (config.intermediate_size, 32)
    assert not layer.weight.requires_grad
    assert not isinstance(model.model.layers[0].mlp.up_proj, PackedLinear)


@pytest.fixture
def fresh_answers():
    """Answers are kept for the process."""
    caches = (quantized_layers._bitsandbytes, quantization_obstacle)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_a_missing_package_is_named_with_its_installation(monkeypatch, fresh_answers):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    assert "bitsandbytes cannot be imported" in quantization_obstacle(CPU, torch.float32)
    assert 'pip install -e ".[qlora]"' in quantization_obstacle(CPU, torch.float32)


@needs_kernels
@pytest.mark.parametrize(
    ("unpacked", "words"), [(NotImplementedError("no\nkernel"), r"no 4-bit kernel .* \(no\)"), (None, "wrongly")]
)
def test_kernels_that_fail_or_are_wrong_are_an_obstacle(unpacked, words, monkeypatch, fresh_answers):
    def kernel(packed, shape, dtype):
        if unpacked is not None:
            raise unpacked
        return torch.ones(shape, dtype=dtype)

    monkeypatch.setattr(quantized_layers, "unpack", kernel)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(quantization_obstacle(CPU, torch.float32))
