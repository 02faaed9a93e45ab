"""The registry of losses: `--loss NAME` -> the class with this name."""

from __future__ import annotations

from typing import TypeVar

from minimind.objective.losses.contract import PreferenceLoss

Loss = TypeVar("Loss", bound=type[PreferenceLoss])

_LOSSES: dict[str, type[PreferenceLoss]] = {}


def register_loss(loss: Loss) -> Loss:
    """Class decorator: makes a loss available under its name.

    Raises:
        ValueError: the name is taken by another class.
    """
    # The same class may be registered again: a module can be imported twice under test runners and notebooks.
    known = _LOSSES.setdefault(loss.name, loss)
    if known is not loss and known.__qualname__ != loss.__qualname__:
        raise ValueError(f"two losses are named {loss.name!r}: {known.__qualname__}, {loss.__qualname__}")
    _LOSSES[loss.name] = loss
    return loss


def loss_names() -> tuple[str, ...]:
    """Names of all registered losses, sorted."""
    return tuple(sorted(_LOSSES))


def loss_class(name: str) -> type[PreferenceLoss]:
    """The loss with this name.

    Raises:
        KeyError: no loss has this name.
    """
    return _LOSSES[name]
