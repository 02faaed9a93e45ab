"""What rounding keeps of training."""

from __future__ import annotations

import pytest
import torch

from minimind.conversion.rounding import Moved, Rounded
from minimind.errors import WeightsError
from minimind.weights.sources import WeightSource


class Made(WeightSource):
    """A source of given tensors."""

    def __init__(self, origin: str, **values: torch.Tensor) -> None:
        self.origin, self._values, self.reads = origin, values, []

    def shapes(self):
        return {name: tuple(value.shape) for name, value in self._values.items()}

    def read(self, name):
        self.reads.append(name)
        return self._values[name]


# Spacing at 1: 2**-23 in float32, 2**-10 in float16, 2**-7 in bfloat16. Each row has one weight more that moves.
START = torch.ones(4)
END = torch.tensor([1.0, 1 + 2**-20, 1 + 2**-10, 1 + 2**-7])


def test_a_weight_counts_in_the_dtypes_in_which_it_has_moved():
    rounded = Rounded(Made("end", a=END), torch.float16, Made("start", a=START))
    assert torch.equal(rounded.read("a"), END.half())
    moved = rounded.moved
    assert moved.weights == 4
    assert moved.differing == {"float32": 3, "float16": 2, "bfloat16": 1}
    assert (moved.share("float16"), moved.kept("float16")) == (0.5, pytest.approx(2 / 3))
    assert moved.recommended == "float32"


@pytest.mark.parametrize(
    ("bfloat16", "float16", "best"),
    [(98, 98, "float32"), (99, 98, "bfloat16"), (99, 100, "float16"), (100, 100, "bfloat16")],
)
def test_the_smallest_dtype_that_keeps_99_percent_is_recommended(bfloat16, float16, best):
    moved = Moved(weights=1000, differing={"float32": 100, "bfloat16": bfloat16, "float16": float16})
    assert moved.recommended == best


def test_weights_that_have_not_moved_lose_nothing():
    rounded = Rounded(Made("end", a=START), torch.float16, Made("start", a=START))
    rounded.read("a")
    assert (rounded.moved.share("float32"), rounded.moved.kept("float16")) == (0, 1)


def test_a_tensor_counts_once_and_is_read_once_in_a_row():
    source = Made("end", a=END, b=END)
    rounded = Rounded(source, torch.float32, Made("start", a=START, b=START))
    for name in ("a", "a", "b", "a"):
        rounded.read(name)
    assert source.reads == ["a", "b", "a"]
    assert rounded.moved.weights == 8


def test_without_start_weights_nothing_is_compared():
    rounded = Rounded(Made("end", a=END), torch.float32, None)
    rounded.read("a")
    assert rounded.moved is None


def test_start_weights_of_another_model_are_refused():
    with pytest.raises(WeightsError, match="start: not the start weights of end; a differs"):
        Rounded(Made("end", a=END), torch.float32, Made("start", a=torch.ones(5)))


@pytest.mark.parametrize(
    ("value", "problem"), [(1e5, "100000, too large for float16"), (float("nan"), "not finite")], ids=["large", "nan"]
)
def test_a_weight_that_no_file_can_have_is_refused(value, problem):
    rounded = Rounded(Made("end", a=torch.tensor([1.0, value])), torch.float16, None)
    with pytest.raises(WeightsError, match=problem):
        rounded.read("a")
