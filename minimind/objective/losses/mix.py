"""The objective of a run: a weighted sum of losses, `--loss NAME[:weight][,NAME[:weight]...]`.

    "sigmoid:0.8,bco_pair:0.2,sft:1" -> (build.py) Objective
    LossInputs -> Objective -> weighted sum of its losses, metrics of all of them

One loss of weight 1 is an objective too: the same numbers and metrics as the loss alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from minimind.objective.losses.contract import BatchShare, LossInputs, Need, PairLosses, PreferenceLoss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A loss of a mix with its weight, above 0."""

    loss: PreferenceLoss
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A weighted sum of losses, each with another name.

    Each metric is that of the first loss that has it. A mix also has the metric `loss/NAME` of each part, unweighted.
    """

    depends_on_split: ClassVar[bool] = False

    parts: tuple[Part, ...]

    @property
    def is_mix(self) -> bool:
        """Whether it is anything but one loss of weight 1."""
        return len(self.parts) > 1 or self.parts[0].weight != 1

    @functools.cached_property
    def name(self) -> str:
        """The value of `--loss`, in one spelling."""
        if not self.is_mix:
            return self.parts[0].loss.name
        return ",".join(f"{part.loss.name}:{_number(part.weight)}" for part in self.parts)

    @functools.cached_property
    def needs(self) -> frozenset[Need]:
        """What any of its losses needs."""
        return frozenset().union(*(part.loss.needs for part in self.parts))

    @functools.cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of its metrics, in the order in which they are logged."""
        names = (name for part in self.parts for name in part.loss.metrics)
        return (*dict.fromkeys(names), *self.part_metrics)

    @functools.cached_property
    def metric_parts(self) -> Mapping[str, str]:
        """Metric -> metric with the weight of each item in it, for means over a part of the items."""
        return {name: weight for part in reversed(self.parts) for name, weight in part.loss.parts.items()}

    @functools.cached_property
    def part_metrics(self) -> tuple[str, ...]:
        """Names of the metrics that are the losses of a mix's parts."""
        return tuple(f"loss/{part.loss.name}" for part in self.parts) if self.is_mix else ()

    @functools.cached_property
    def statistics(self) -> Mapping[str, float]:
        """`NAME.value` -> weight of the past, of the running means that its losses need."""
        found: dict[str, float] = {}
        for part in self.parts:
            found |= {f"{part.loss.name}.{name}": past for name, past in part.loss.statistics.items()}
        return found

    def start_value(self) -> float | None:
        """Loss of a pair while policy and reference are the same model; None if it depends on the pair."""
        values = [part.loss.start_value() for part in self.parts]
        if None in values:
            return None
        return sum(part.weight * (value or 0.0) for part, value in zip(self.parts, values, strict=True))

    def options(self) -> dict[str, Any]:
        """Options of its losses: `option` -> value of a single loss, `NAME.option` -> value of a mix."""
        return {
            f"{part.loss.name}.{name}" if self.is_mix else name: value
            for part in self.parts
            for name, value in dataclasses.asdict(part.loss).items()
        }

    def describe(self) -> str:
        """For people: the losses with their weights and options."""
        return " + ".join(
            (f"{_number(part.weight)} " if self.is_mix else "") + f"{part.loss.name} ({_described(part.loss)})"
            for part in self.parts
        )

    def __call__(self, inputs: LossInputs) -> PairLosses:
        """The weighted sum of the losses of N pairs."""
        results = [_result(part.loss, inputs) for part in self.parts]
        # Reversed, so that the first loss that has a metric wins.
        metrics = {name: value for result in reversed(results) for name, value in result.metrics.items()}
        metrics |= {name: result.losses.detach() for name, result in zip(self.part_metrics, results, strict=False)}
        statistics = {
            f"{part.loss.name}.{name}": value
            for part, result in zip(self.parts, results, strict=True)
            for name, value in result.statistics.items()
        }
        return PairLosses(
            losses=_weighted_sum(self.parts, results),
            metrics={name: metrics[name] for name in self.metrics},
            statistics=statistics,
        )

    def shares(self, inputs: LossInputs) -> dict[str, BatchShare]:
        """What each of its losses over the global batch gives to every pair.

        Args:
            inputs: of all pairs of the global batch.
        """
        wide = (part.loss for part in self.parts if Need.GLOBAL_BATCH in part.loss.needs)
        return {loss.name: _share(loss, inputs) for loss in wide}


def _result(loss: PreferenceLoss, inputs: LossInputs) -> PairLosses:
    share = inputs.shares.get(loss.name)
    return loss(_own_inputs(loss, inputs)) if share is None else share.attached_to(inputs.policy)


# Also in an evaluation, which computes without gradients: autograd makes the slopes.
@torch.enable_grad()
def _share(loss: PreferenceLoss, inputs: LossInputs) -> BatchShare:
    own = _own_inputs(loss, inputs)
    sums = own.policy.sums.detach().requires_grad_()
    result = loss(dataclasses.replace(own, policy=dataclasses.replace(own.policy, sums=sums)))
    # The loss is made linear at this point: slope times a pair's own sums has the gradient of the global loss, and each
    # micro-batch can take its part by itself.
    (slopes,) = torch.autograd.grad(result.losses.sum(), sums)
    return BatchShare(
        losses=result.losses.detach(), slopes=slopes, metrics=result.metrics, statistics=result.statistics
    )


def _own_inputs(loss: PreferenceLoss, inputs: LossInputs) -> LossInputs:
    """The inputs with the running means of one loss, under the loss's own names."""
    own = f"{loss.name}."
    means = {key.removeprefix(own): mean for key, mean in inputs.statistics.items() if key.startswith(own)}
    return dataclasses.replace(inputs, statistics=means)


def _weighted_sum(parts: Sequence[Part], results: Sequence[PairLosses]) -> Tensor:
    """(N,) losses. A single loss of weight 1 keeps its numbers bit for bit."""
    weighted = [r.losses if p.weight == 1 else p.weight * r.losses for p, r in zip(parts, results, strict=True)]
    return functools.reduce(Tensor.add, weighted)


def _described(loss: PreferenceLoss) -> str:
    values = dataclasses.asdict(loss)
    rows = "mean" if values.pop("average_log_prob") else "summed"
    shown = [f"{name} {_number(value)}" for name, value in values.items()]
    return ", ".join([*shown, f"{rows} log-probs"])


def _number(value: float) -> str:
    """The shortest text that reads back as the same number."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
