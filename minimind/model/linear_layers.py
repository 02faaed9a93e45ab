"""Linear layers of Hugging Face models: they multiply bfloat16 matrices by the CPU's kernels.

    built model -> use_kernels -> the same model; its linear layers are of the classes below

What the kernels do not take (another dtype, a GPU, `--kernels torch`) is computed by the layer's own forward.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from minimind.native import ops
from minimind.native.selection import kernels_take


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if not kernels_take(input, self.weight):
            return super().forward(input)
        return _plus(ops.linear(input, self.weight), self.bias)


class _Conv1D(Conv1D):
    """GPT-2's linear layer: its weight is (in, out)."""

    def forward(self, x: Tensor) -> Tensor:
        if not kernels_take(x, self.weight):
            return super().forward(x)
        return _plus(ops.linear(x, self.weight.t()), self.bias)


def _plus(out: Tensor, bias: Tensor | None) -> Tensor:
    return out if bias is None else out + bias


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, Conv1D: _Conv1D}


def use_kernels(model: nn.Module) -> None:
    """Replace the class of every linear layer; layers of derived classes, which may compute something else, stay."""
    for module in model.modules():
        if own := _CLASSES.get(type(module)):
            module.__class__ = own


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes what torch's linear layer computes, by its own forward or by the kernels."""
    return isinstance(module, nn.Linear) and type(module).forward in (nn.Linear.forward, _Linear.forward)
