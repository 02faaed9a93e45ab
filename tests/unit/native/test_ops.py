"""The table: which implementation an operation chooses, and that a model gives torch's numbers under torch's way."""

from __future__ import annotations

import math

import pytest
import torch

from minimind import MiniMindConfig, MiniMindForCausalLM, native
from minimind.native import functions, library, ops, products, torch_ops
from minimind.objective.log_probs import target_log_probs


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def rotary(batch: int, tokens: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.randn(batch, tokens, size // 2, generator=torch.Generator().manual_seed(2))
    return angles.cos(), angles.sin()


SEGMENTS = ((3, 2, 4), (0, 5, 0))
# Arguments of each operation, bfloat16 tensors that its kernel takes.
ARGUMENTS = {
    "rms_norm": lambda: (numbers(5, 16), numbers(16, seed=1), 1e-5),
    "rms_norm_with_residual": lambda: (numbers(5, 16), numbers(16, seed=1), 1e-5),
    "rotate": lambda: (numbers(1, 5, 2, 8), *rotary(1, 5, 8)),
    "norm_rotate": lambda: (numbers(1, 5, 2, 8), numbers(8, seed=1), 1e-5, *rotary(1, 5, 8)),
    "swiglu": lambda: (numbers(5, 16), numbers(5, 16, seed=1)),
    "packed_attention": lambda: (*(numbers(1, 2, 14, 8, seed=seed) for seed in range(3)), SEGMENTS, 0.3),
    "matmul": lambda: (numbers(40, 16), numbers(16, 8, seed=1), None),
    "linear": lambda: (numbers(40, 16), numbers(8, 16, seed=1), numbers(40, 8, seed=2)),
    "linears": lambda: (numbers(40, 16), numbers(8, 16, seed=1), numbers(6, 16, seed=2)),
    "feed_forward": lambda: (numbers(40, 16), numbers(8, 16), numbers(8, 16, seed=1), numbers(16, 8), numbers(40, 16)),
    "log_sum_gradient": lambda: (numbers(4, 8), torch.arange(4) + 5, 2, torch.ones(4), torch.linspace(-1, 1, 4)),
}


def results(function, arguments) -> list[torch.Tensor]:
    """Outputs, then the gradients of all inputs if the function has them; from copies, since some work in place."""
    copies = [
        a.clone().requires_grad_(a.dtype == torch.bfloat16) if isinstance(a, torch.Tensor) else a for a in arguments
    ]
    without_gradient = function in (ops.matmul, ops.log_sum_gradient)
    with torch.set_grad_enabled(not without_gradient):
        out = function(*(a.detach() if without_gradient and isinstance(a, torch.Tensor) else a for a in copies))
    outs = list(out) if isinstance(out, tuple) else [out]
    if not without_gradient:
        torch.autograd.backward(
            outs, [torch.linspace(-1, 1, one.numel()).view(one.shape).to(one.dtype) for one in outs]
        )
    leaves = [] if without_gradient else [a for a in copies if isinstance(a, torch.Tensor) and a.requires_grad]
    return [*(one.detach() for one in outs), *(leaf.grad for leaf in leaves)]


def test_every_operation_is_tested_here():
    by_hand = {"cast_and_sum_squares", "log_sum"}
    assert set(ops.TABLE) == {*ARGUMENTS, *by_hand}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_kernel_gives_the_numbers_of_torch(name, cpu_kernels):
    function = getattr(ops, name)
    ours = results(function, ARGUMENTS[name]())
    with native.using(native.TORCH):
        theirs = results(function, ARGUMENTS[name]())
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype == torch.bfloat16
        assert one.shape == other.shape
        # Some roundings to 8 bits apart.
        assert (one.float() - other.float()).norm() <= 2**-6 * other.float().norm()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_choice_follows_the_selection(name, cpu_kernels):
    tensors = [a for a in ARGUMENTS[name]() if isinstance(a, torch.Tensor) and a.dtype == torch.bfloat16]
    op = ops.TABLE[name]
    assert ops.implementation(name, *tensors) is op.cpu
    assert ops.implementation(name, *tensors, cpu_fits=False) is op.torch
    assert ops.implementation(name, *(tensor.float() for tensor in tensors)) is op.torch
    assert ops.implementation(name, *(tensor.to("meta") for tensor in tensors)) is op.torch
    with native.using(native.TORCH):
        assert ops.implementation(name, *tensors) is op.torch


def test_a_gpu_kernel_is_chosen_for_tensors_on_a_gpu(monkeypatch):
    """No GPU here: a tensor that says it is on one is enough to choose."""

    class OnGpu:
        dtype, is_cpu, is_cuda = torch.bfloat16, False, True

    def on_gpu(x, weight, eps):
        raise AssertionError("only looked up")

    op = ops.TABLE["rms_norm"]
    with native.using(native.AUTO):
        assert ops.implementation("rms_norm", OnGpu(), OnGpu()) is op.torch
        with_gpu = ops.Op(torch=op.torch, cpu=op.cpu, gpu=on_gpu)
        monkeypatch.setattr(ops, "TABLE", {"rms_norm": with_gpu})
        assert ops.implementation("rms_norm", OnGpu(), OnGpu()) is on_gpu
        assert ops.implementation("rms_norm", torch.zeros(2), torch.zeros(2)) is op.torch
    with native.using(native.TORCH):
        assert ops.implementation("rms_norm", OnGpu(), OnGpu()) is op.torch


@pytest.fixture
def kernels_called(monkeypatch, cpu_kernels) -> list[str]:
    """Names of the C++ functions that were called."""
    called: list[str] = []
    call = functions.call

    def noted(name, *arguments):
        called.append(name)
        return call(name, *arguments)

    for module in (functions, products):
        monkeypatch.setattr(module, "call", noted)
    return called


def test_rotary_of_several_sequences_is_torchs_and_its_norm_the_kernels(kernels_called):
    x, weight, cos_sin = numbers(2, 5, 2, 8), numbers(8, seed=1), rotary(2, 5, 8)
    out = ops.norm_rotate(x, weight, 1e-5, *cos_sin)
    assert kernels_called == ["rms_norm_forward"]
    assert torch.equal(out, torch_ops.rotate(functions.rms_norm(x, weight, 1e-5), *cos_sin))
    assert torch.equal(ops.rotate(x, *cos_sin), torch_ops.rotate(x, *cos_sin))


@pytest.mark.parametrize(("size", "value_size"), [(16, 8), (15, 15)])
def test_attention_that_the_kernel_does_not_know_is_torchs(size, value_size, kernels_called):
    """Values narrower than keys (multi-head latent attention), heads of an odd size."""
    tensors = [numbers(1, 2, 14, size), numbers(1, 2, 14, size, seed=1), numbers(1, 2, 14, value_size, seed=2)]
    out = ops.packed_attention(*tensors, SEGMENTS, 0.3)
    assert torch.equal(out, torch_ops.packed_attention(*tensors, SEGMENTS, 0.3))
    assert kernels_called == []


def test_torchs_attention_uses_the_mask_that_it_is_given():
    asked = []

    def mask(prefix, rejected, device):
        asked.append((prefix, rejected))
        return torch_ops.rejected_mask(prefix, rejected, device)

    tensors = [numbers(1, 2, 14, 8, seed=seed).float() for seed in range(3)]
    ops.packed_attention(*tensors, SEGMENTS, 0.3, mask)
    assert asked == [(3, 4)]  # the second pair has no rejected half


def test_cast_and_sum_squares(cpu_kernels):
    """The sum is known only where the kernel makes it: of contiguous bfloat16. 3^2 + 4^2 is 25."""
    x, out = torch.tensor([3.0, 4.0], dtype=torch.bfloat16), torch.empty(2)
    assert ops.cast_and_sum_squares(x, out) == 25.0
    assert out.tolist() == [3.0, 4.0]
    strided = torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.bfloat16)[:, 0]
    for given in (strided, torch.tensor([3.0, 4.0], dtype=torch.float16)):
        out = torch.empty(2)
        assert ops.cast_and_sum_squares(given, out) is None
        assert out.tolist() == [3.0, 4.0]
    with native.using(native.TORCH):
        assert ops.cast_and_sum_squares(x, out) is None


def test_log_sum_and_the_dtype_of_its_blocks(cpu_kernels):
    """ln(e^0 + e^ln(3) + e^ln(4)) is ln(8), over blocks of one and two tokens."""
    hidden, targets = numbers(1, 4), torch.tensor([2])
    logits = torch.tensor([[1.0, 3.0, 4.0]]).log()
    # Products in float32 make blocks in float32 first.
    kernels_dtype = torch.float32 if products.widens() else torch.bfloat16
    for kernels, kind, block_dtype in (
        (native.AUTO, functions.LogSum, kernels_dtype),
        (native.TORCH, torch_ops.LogSum, torch.float32),
    ):
        with native.using(kernels):
            total = ops.log_sum(hidden, hidden, targets, torch.float32)
            assert type(total) is kind
            assert ops.log_sum_dtype(hidden, torch.float32) == block_dtype
            for start, end in ((0, 1), (1, 3)):
                total.add(logits[:, start:end].bfloat16().contiguous(), start)
            log_sum, at_target = total.result()
        assert log_sum.item() == pytest.approx(math.log(8), abs=4e-3)
        assert at_target.item() == pytest.approx(math.log(4), abs=4e-3)


def step(model: torch.nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    """Log-probs of the next tokens and all gradients of a tiny training step."""
    hidden = model.model(ids)[0][:, :-1].flatten(0, 1)
    log_probs = target_log_probs(hidden, model.lm_head.weight, ids[:, 1:].flatten())
    log_probs.sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return [log_probs.detach(), *gradients]


def tiny_model(dtype: torch.dtype, **fields) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    config = MiniMindConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, **fields)
    return MiniMindForCausalLM(config).to(dtype).train()


@pytest.mark.parametrize("fields", [{"generation": 2, "dropout": 0.0}, {"generation": 3}])
def test_training_under_torch_is_the_plain_model(fields, monkeypatch, kernels_called):
    """Bit for bit torch's own functions, without a kernel; and close to the kernels' numbers."""
    model = tiny_model(torch.bfloat16, vocab_size=70, **fields)
    ids = torch.randint(0, 70, (1, 12), generator=torch.Generator().manual_seed(1))
    by_kernels = step(model, ids)
    assert "rms_norm_forward" in kernels_called
    kernels_called.clear()
    with native.using(native.TORCH):
        by_torch = step(model, ids)
    assert kernels_called == []
    for one, other in zip(by_kernels, by_torch, strict=True):
        assert (one.float() - other.float()).norm() <= 0.1 * other.float().norm()
    # As on a machine without a compiler.
    monkeypatch.setattr(library, "compiled_kernels", lambda: None)
    without_compiler = step(model, ids)
    assert kernels_called == []
    assert all(torch.equal(one, other) for one, other in zip(without_compiler, by_torch, strict=True))
