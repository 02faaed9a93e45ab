"""Rounding to the dtype of a file, and what it costs: how many weights keep their difference to the start weights.

    float32 weight, start weight -> both rounded to float32, bfloat16, float16 -> share of the weights that still differ

At a learning rate of 4e-8 an update is far below the spacing of 16-bit numbers around a weight: after rounding most
weights are those that training started from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from minimind.errors import WeightsError
from minimind.weights.sources import WeightSource

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# A dtype is recommended if it keeps this share of the differences that float32 has.
ENOUGH = 0.99


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as flags have it, `float32`."""
    return str(dtype).removeprefix("torch.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moved:
    """How many weights differ from the start weights, if both are stored in a dtype.

    Attributes:
        weights: number of weights.
        differing: name of a dtype -> how many of them differ.
    """

    weights: int
    differing: Mapping[str, int]

    def share(self, dtype: str) -> float:
        """Share of all weights that differ."""
        return self.differing[dtype] / self.weights

    def kept(self, dtype: str) -> float:
        """Share of the weights that differ in float32 which differ in this dtype too; 1 if none does."""
        moved = self.differing["float32"]
        return min(1.0, self.differing[dtype] / moved) if moved else 1.0

    @property
    def recommended(self) -> str:
        """The dtype of the fewest bytes that keeps `ENOUGH` of the differences; of two the one that keeps more."""
        halves = sorted((name for name in DTYPES if name != "float32"), key=self.kept, reverse=True)
        return halves[0] if self.kept(halves[0]) >= ENOUGH else "float32"


class Rounded:
    """The tensors of a source, rounded to a dtype one at a time and compared with the start weights.

    Args:
        source: the weights.
        dtype: of the file.
        base: the start weights, with the same names; None: unknown, nothing is compared.

    Raises:
        WeightsError: the start weights belong to another model.
    """

    def __init__(self, source: WeightSource, dtype: torch.dtype, base: WeightSource | None) -> None:
        self._source, self._dtype, self._base = source, dtype, base
        if base is not None and dict(base.shapes()) != dict(source.shapes()):
            differing = sorted(set(base.shapes().items()) ^ set(source.shapes().items()))[0][0]
            raise WeightsError(f"{base.origin}: not the start weights of {source.origin}; {differing} differs")
        self._weights = 0
        self._differing = dict.fromkeys(DTYPES, 0)
        self._counted: set[str] = set()
        self._last: tuple[str, Tensor] | None = None

    @torch.no_grad()
    def read(self, name: str) -> Tensor:
        """One tensor in the file's dtype.

        Raises:
            WeightsError: a weight is not finite, or is too large for the dtype.
        """
        # The experts of a stack are asked for one after the other.
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        tensor = self._source.read(name)
        rounded = tensor.to(self._dtype)
        if not torch.isfinite(rounded).all():
            if torch.isfinite(tensor).all():
                largest = tensor.abs().max().item()
                raise WeightsError(
                    f"{self._source.origin}: {name} has a weight of {largest:g}, too large for "
                    f"{dtype_name(self._dtype)}; give --dtype bfloat16 or float32"
                )
            raise WeightsError(f"{self._source.origin}: {name} has weights that are not finite")
        if name not in self._counted:
            self._counted.add(name)
            self._compare(name, tensor)
        self._last = (name, rounded)
        return rounded

    def _compare(self, name: str, tensor: Tensor) -> None:
        if self._base is None:
            return
        start = self._base.read(name)
        self._weights += tensor.numel()
        for dtype_of, dtype in DTYPES.items():
            self._differing[dtype_of] += int((tensor.to(dtype) != start.to(dtype)).sum())

    @property
    def moved(self) -> Moved | None:
        """The comparison of all tensors that were read; None without start weights."""
        return None if self._base is None else Moved(weights=self._weights, differing=dict(self._differing))
