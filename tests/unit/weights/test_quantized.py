"""A base in 4 bits: its linear layers are packed, and its logits are those of the unpacked values."""

from __future__ import annotations

import pytest
import torch

from minimind.model.quantized_layers import packed_bytes, quantization_obstacle, unpack
from minimind.weights.construction import model_from_tensors
from minimind.weights.quantized import QuantizedSource, packed_weights
from tests.unit.weights.adapted import TOKENS, dense, mixture

pytestmark = pytest.mark.skipif(
    bool(quantization_obstacle(torch.device("cpu"), torch.float32)), reason="no 4-bit kernels here"
)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dense", "gpt2"])
def test_logits_are_those_of_the_unpacked_values(kind, small_gpt2):
    base = dense() if kind == "dense" else small_gpt2
    source = QuantizedSource(base, torch.float32)
    state = {name: source.read(name).clone() for name in source.shapes()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == dict(source.shapes())
    model = model_from_tensors(base.config, state, source.packed_layers)
    plain = {name: base.read(name).clone() for name in base.shapes()}
    for layer in source.packed_layers:
        old = base.read(f"{layer}.weight")
        rows, columns = old.shape if kind == "dense" else old.t().shape
        weight = unpack(state[f"{layer}.weight"], (rows, columns), torch.float32)
        plain[f"{layer}.weight"] = weight if kind == "dense" else weight.t().contiguous()
        assert 0.05 < float((plain[f"{layer}.weight"] - old).norm() / old.norm()) < 0.15
    torch.testing.assert_close(model(TOKENS).logits, model_from_tensors(base.config, plain)(TOKENS).logits)


def test_all_linear_layers_but_the_head_are_packed():
    base = dense()
    shapes = QuantizedSource(base, torch.bfloat16).shapes()
    packed = packed_weights(base.config)
    assert packed == {name for name, shape in base.shapes().items() if len(shape) == 2 and "embed" not in name}
    for name, shape in base.shapes().items():
        elements = torch.Size(shape).numel()
        assert shapes[name] == ((packed_bytes(elements),) if name in packed else shape)


def test_stacked_experts_stay_as_they_are():
    base = mixture()
    source = QuantizedSource(base, torch.bfloat16)
    name = next(name for name in base.shapes() if ".experts." in name)
    assert torch.equal(source.read(name), base.read(name))


def test_weights_are_rounded_to_the_dtype_before_they_are_packed():
    base = dense()
    name = sorted(packed_weights(base.config))[0]
    one, other = (QuantizedSource(base, dtype).read(name) for dtype in (torch.float32, torch.bfloat16))
    assert one.shape == other.shape
    assert not torch.equal(one, other)
