"""Estimate, before the first step, of how far a run can move its margin and its loss; a warning if it cannot.

    learning rates, beta, lengths of answers, number of parameters -> Outlook -> lines for the console

Adam moves each weight by about the learning rate in a step, whatever the size of the gradient. So the difference of the
two answers' log-ratios grows by `rates x ||g||_1` at most, where `rates` is the sum of the learning rates of all steps
and g its gradient. `||g||_1` grows with the square root of the number of parameters, and with that of the number of
tokens in a sum of log-probs; a mean divides each answer by its length. What all pairs have in common moves, the rest
of their gradients cancels: `_SHARE` is that part. It depends on the pairs and on the weights: on runs of six models
(tests/unit/training/test_outlook.py) the estimate was between a twelfth and ten times the margin. Above a few tenths
margins grow faster than estimated, because the gradient of a token grows while it becomes unlikely.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch

from minimind.config import JobConfig
from minimind.data.pair_tables import PairTables
from minimind.objective.losses import Objective, RatioLoss
from minimind.objective.schedule import make_schedule
from minimind.training.console import Console
from minimind.training.setup.prepare import Prepared
from minimind.training.setup.training_data import TrainingData

_SHARE = 0.1
# Below this margin a warning is printed: the loss of DPO moves by half of it. Ten times it would be hardly more.
_LEAST_MARGIN = 0.001
# Margin that the recipes aim at: the loss of DPO falls from 0.693 to 0.644.
_GOOD_MARGIN = 0.1
# Pairs of which the answers' tokens are counted.
_MOST_PAIRS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlook:
    """What the margin depends on.

    Attributes:
        rates: sum of the learning rates of all steps.
        parameters: number of weights.
        chosen, rejected: mean number of tokens of an answer that count.
    """

    rates: float
    parameters: int
    chosen: float
    rejected: float

    def log_ratio(self, average_log_prob: bool) -> float:
        """How far the log-ratio of chosen can move from that of rejected, in nats."""
        tokens = 1 / self.chosen + 1 / self.rejected if average_log_prob else self.chosen + self.rejected
        return _SHARE * self.rates * math.sqrt(self.parameters * tokens)


def report_outlook(prepared: Prepared, data: TrainingData, console: Console) -> None:
    """Print how far the margin of a loss over pairs can move.

    Other optimizers than Adam move weights by other amounts: nothing is said.
    """
    objective = prepared.objective
    is_adam = str(prepared.policy_config.values["optimizer"]["type"]).lower().startswith("adam")
    if not (is_adam and isinstance(objective, Objective)):
        return
    config, steps = prepared.settings.config, data.total_steps
    parameters = sum(math.prod(shape) for shape in prepared.source.shapes().values())
    outlook = outlook_of(config, data.table, parameters, steps)
    for message in outlook_messages(outlook, objective, config.optimisation.learning_rate, steps):
        console.say(f"  {message}")


def outlook_of(config: JobConfig, table: PairTables, parameters: int, total_steps: int) -> Outlook:
    """The outlook of a run under Adam."""
    optimisation = config.optimisation
    schedule = make_schedule(optimisation, total_steps)
    pairs = [table[index] for index in range(0, len(table), math.ceil(len(table) / _MOST_PAIRS))]
    # The first token of a row is predicted from nothing, so it does not count.
    counts = [[int(mask[1:].sum()) for mask in (pair.chosen_mask, pair.rejected_mask)] for pair in pairs]
    chosen, rejected = (max(1.0, sum(of_half) / len(pairs)) for of_half in zip(*counts, strict=True))
    return Outlook(
        rates=optimisation.learning_rate * sum(map(schedule, range(1, total_steps + 1))),
        parameters=parameters,
        chosen=chosen,
        rejected=rejected,
    )


def outlook_messages(outlook: Outlook, objective: Objective, learning_rate: float, total_steps: int) -> Iterator[str]:
    """Lines for the console; none for mixes and for losses that are no function of log-ratios alone."""
    loss = objective.parts[0].loss
    start = objective.start_value()
    if objective.is_mix or not isinstance(loss, RatioLoss) or start is None:
        return
    moved = outlook.log_ratio(loss.average_log_prob)
    # All losses of log-ratios have a beta; for most it scales the margin.
    margin = loss.beta * moved
    end = float(loss.of_ratios(torch.tensor([[moved / 2, -moved / 2]], dtype=torch.float64)))
    reads = f"read {start:.4f} throughout" if f"{start:.4f}" == f"{end:.4f}" else f"end at about {end:.4f}"
    if margin >= _LEAST_MARGIN:
        yield f"the margin can reach about {margin:.0e} in {total_steps} steps (estimate)"
        return
    kind = "mean" if loss.average_log_prob else "summed"
    yield (
        f"WARNING: {kind} log-probs, beta {loss.beta:g}, learning rate {learning_rate:g}, {total_steps} steps: the "
        f"margin can reach about {margin:.0e}; the loss will {reads} (estimate). Recipes that learn in so many steps: "
        f"{_recipes(outlook, loss, learning_rate)}"
    )


def _recipes(outlook: Outlook, loss: RatioLoss, learning_rate: float) -> str:
    """Flags with which the margin reaches `_GOOD_MARGIN`."""
    kinds = (False, True) if loss.name == "sigmoid" else (loss.average_log_prob,)
    rates = {kind: learning_rate * _GOOD_MARGIN / (loss.beta * outlook.log_ratio(kind)) for kind in kinds}
    which = {kind: f"--average_log_prob {int(kind)} " if len(kinds) > 1 else "" for kind in kinds}
    return ", or ".join(f"{which[kind]}--learning_rate {rate:.1e}" for kind, rate in rates.items())
