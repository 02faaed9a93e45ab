"""Tied tensors that a file has under both names: they must have the same values, or its configuration is wrong.

configuration says tied -> pairs of names -> check_ties -> equal, or an error
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from minimind.errors import WeightsError


def tied_names(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Of each tied tensor of a model its first name and another one."""
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (known := first.setdefault(id(parameter), name)) != name:
            yield known, name


def check_ties(pairs: Iterable[tuple[str, str]], tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse tied tensors that differ: a reader would ignore one of them, and transformers would not tie them.

    Raises:
        WeightsError: a file has both names of a pair, with different values.
    """
    for first, other in pairs:
        if first in tensors and other in tensors and not same_content(tensors[first], tensors[other]):
            raise WeightsError(
                f"{origin}: the configuration ties {other} to {first}, but the file has other values for it; if the "
                'file is right, write "tie_word_embeddings": false into config.json'
            )


def same_content(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same content; tensors that share memory are not read."""
    return one.shape == other.shape and (one.data_ptr() == other.data_ptr() or torch.equal(one, other))
