"""The golden models on a GPU: MiniMind's own numbers in float32; in bfloat16 no further from them than on a CPU.

Log-probs, auxiliary loss, DPO loss and every gradient. tests/parity/test_golden_models.py has the same on a CPU.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minimind import MiniMindConfig, MiniMindForCausalLM, dpo_loss, load_weights, logits_to_log_probs
from minimind.weights.names import minimind_state
from tests.gpu.support import DEVICE, figure, needs_gpu

pytestmark = needs_gpu

NAMES = ("minimind2_dense", "minimind2_moe", "minimind3_dense", "minimind3_moe")
# Products of a GPU in float32 add in another order than a CPU's.
ABSOLUTE, RELATIVE = 1e-4, 1e-3


@pytest.fixture(scope="module", params=NAMES)
def golden(shared, request):
    """Name, configuration, tensors of MiniMind, folder."""
    folder = shared / "golden"
    info = json.loads((folder / f"{request.param}.json").read_text())
    return request.param, info, load_file(folder / f"{request.param}.safetensors"), folder


def computed(golden, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """What MiniMind's loop computes in a step, by name, in float32 on the CPU."""
    name, info, data, folder = golden
    models = []
    for part in ("policy", "ref"):
        model = MiniMindForCausalLM(MiniMindConfig(**info["config"]))
        load_weights(model, folder / f"{name}_{part}.pth")
        models.append(model.to(device, dtype))
    x, y, mask = (data[key].to(device) for key in ("x", "y", "mask"))
    with torch.no_grad():
        reference = logits_to_log_probs(models[1].eval()(x).logits, y)
    out = models[0].train()(x)
    log_probs = logits_to_log_probs(out.logits, y)
    loss = dpo_loss(reference, log_probs, mask, info["beta"], True)
    (loss + out.aux_loss).backward()
    gradients = minimind_state({key: parameter.grad for key, parameter in models[0].named_parameters()})
    values = {"log_probs": log_probs, "ref_log_probs": reference, "aux_loss": out.aux_loss, "loss": loss, **gradients}
    return {key: value.detach().float().cpu() for key, value in values.items()}


def expected(golden) -> dict[str, Tensor]:
    """The same by MiniMind's own code, in float32."""
    _, _, data, _ = golden
    gradients = {key.removeprefix("grad_mean."): value for key, value in data.items() if key.startswith("grad_mean.")}
    return {
        "log_probs": data["policy_log_probs"],
        "ref_log_probs": data["ref_log_probs"],
        "aux_loss": data["aux_loss"][0],
        "loss": data["dpo_loss_mean"][0],
        **gradients,
    }


def is_router_of_one_expert(golden, key: str) -> bool:
    """Whether rounding alone decides this gradient (see the test on a CPU)."""
    _, info, _, _ = golden
    return info["generation"] == 3 and info["config"]["use_moe"] and key.endswith("mlp.gate.weight")


def test_float32_has_minimind_s_numbers(golden):
    ours, largest = computed(golden, DEVICE, torch.float32), 0.0
    for key, value in expected(golden).items():
        if key in ("log_probs", "ref_log_probs", "aux_loss", "loss"):
            torch.testing.assert_close(
                ours[key], value, rtol=0, atol=ABSOLUTE, msg=lambda text, key=key: f"{key}: {text}"
            )
            largest = max(largest, float((ours[key] - value).abs().max()))
        elif not is_router_of_one_expert(golden, key):
            assert (ours[key] - value).norm() <= RELATIVE * value.norm(), key
    figure(f"{largest:.0e} from MiniMind")


def test_bfloat16_is_no_further_from_minimind_than_on_a_cpu(golden):
    """Rounding may send a token to another expert on either device: gradients are compared in dense models only."""
    gpu, cpu = (computed(golden, device, torch.bfloat16) for device in (DEVICE, torch.device("cpu")))
    dense = not golden[1]["config"]["use_moe"]
    for key, value in expected(golden).items():
        if key in ("log_probs", "ref_log_probs", "loss") or (dense and key != "aux_loss"):
            ours, theirs = ((one[key] - value).norm() for one in (gpu, cpu))
            assert ours <= 2 * theirs + 1e-2 * value.norm(), f"{key}: {ours:.2e} from MiniMind, a CPU {theirs:.2e}"
    figure(f"loss {float((gpu['loss'] - expected(golden)['loss']).abs()):.0e} from MiniMind")
