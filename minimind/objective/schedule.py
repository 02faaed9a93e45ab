"""Learning-rate schedules: from a global step to the factor by which the learning rate is multiplied.

    settings, number of global steps -> make_schedule -> Schedule; Schedule(step) -> factor

Letters: t a global step, from 1 to S; W steps of warm-up; D steps of decay.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

from minimind.config import DEFAULT, Settings
from minimind.config.optimisation import OptimisationConfig
from minimind.config.settings import Job
from minimind.errors import ConfigError

# Share of the steps in which `wsd` decays: that of MiniCPM (Hu et al., 2024, arXiv 2404.06395, section 4.3).
DECAY_RATIO = 0.1


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """Factor of the learning rate at a global step under MiniMind's schedule.

    Args:
        step: from 1 to total_steps (S).
        total_steps: global steps of the run.
        warmup_steps: during the first W steps the factor is also multiplied by step / W; 0: no warm-up.

    Returns: `0.1 + 0.45 * (1 + cos(pi * step / S))`, as in MiniMind's trainer: 1 at step 0, 0.1 at step S.
    """
    factor = 0.1 + 0.45 * (1 + math.cos(math.pi * step / total_steps))
    return factor * min(1.0, step / warmup_steps) if warmup_steps else factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The factor of the learning rate at each global step t.

    In the warm-up, t <= W, all schedules but `minimind` have the factor t / W: 1 at its last step, never 0. After it:

        minimind    (0.1 + 0.45 * (1 + cos(pi * t / S))) * min(1, t / W)    MiniMind's trainer; W only if it is given
        cosine      (1 + cos(pi * (t - 1 - W) / (S - W))) / 2
        linear      (S - t + 1) / (S - W)
        constant    1
        wsd         min(1, (S - t + 1) / D)    warm-up, stable, decay: Hu et al., 2024, arXiv 2404.06395

    `cosine`, `linear` and `wsd` are those of transformers.optimization (`wsd` with its linear decay): 1 at the first
    step after the warm-up, and 0 only at step S + 1, which a run does not take.

    Attributes:
        name: as in --lr_schedule.
        total_steps, warmup_steps, decay_steps: S, W, D; D is 0 for all but `wsd`.
    """

    name: str
    total_steps: int
    warmup_steps: int = 0
    decay_steps: int = 0

    def __call__(self, step: int) -> float:
        """The factor at a global step, from 1."""
        # MiniMind lets its cosine run through the warm-up, so a run with and one without it have the same rate after W
        # steps.
        if self.name == "minimind":
            return learning_rate_factor(step, self.total_steps, self.warmup_steps)
        if step <= self.warmup_steps:
            return step / self.warmup_steps
        if self.name == "constant":
            return 1.0
        # DeepSpeed also asks for the rate of step S + 1.
        left, decay = max(0, self.total_steps - step + 1), max(1, self.total_steps - self.warmup_steps)
        if self.name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (1 - left / decay)))
        if self.name == "linear":
            return left / decay
        return min(1.0, left / self.decay_steps) if self.decay_steps else 1.0

    def describe(self) -> str:
        """For the console: "wsd over 100 steps, 10 of warm-up, 10 of decay"."""
        parts = [f"{self.name} over {self.total_steps} steps"]
        parts += [f"{self.warmup_steps} of warm-up"] if self.warmup_steps else []
        parts += [f"{self.decay_steps} of decay"] if self.name == "wsd" else []
        return ", ".join(parts)


def choose_schedule(settings: Settings[Job]) -> Settings[Job]:
    """Settings in which the schedule's flags have the values that the run uses.

    Raises:
        ConfigError: the flags contradict each other.
    """
    optimisation = settings.config.optimisation
    name, warmup, decay = optimisation.lr_schedule, optimisation.warmup_ratio, optimisation.decay_ratio
    problems = []
    if warmup is not None and settings.explicit("warmup_steps"):
        problems.append("--warmup_steps and --warmup_ratio both say how long the warm-up is; drop one")
    for flag, ratio in (("warmup_ratio", warmup), ("decay_ratio", decay)):
        if ratio is not None and ratio > 1:
            problems.append(f"--{flag} {ratio:g} is above 1; it is a share of the run's global steps")
    if settings.explicit("decay_ratio") and name != "wsd":
        problems.append(f"--decay_ratio is for --lr_schedule wsd; {name} has no decay of its own; drop it")
    if not problems and name == "wsd" and decay is None:
        decay = DECAY_RATIO
        settings = settings.with_values({"decay_ratio": decay}, DEFAULT)
    if not problems and decay is not None and (warmup or 0) + decay > 1:
        problems.append(f"--warmup_ratio {warmup:g} and --decay_ratio {decay:g} are more than the whole run")
    if problems:
        raise ConfigError.from_problems(problems)
    return settings


def make_schedule(optimisation: OptimisationConfig, total_steps: int) -> Schedule:
    """The schedule of a run of S steps.

    A warm-up by ratio has `ceil(ratio * S)` steps, as in transformers, and a decay `floor(ratio * S)`, so that they
    never overlap if their ratios add up to no more than 1.

    Raises:
        ConfigError: the warm-up leaves no step for what comes after it. MiniMind's cosine does not wait for it.
    """
    name, warmup, decay = optimisation.lr_schedule, optimisation.warmup_steps, 0
    # As decimal fractions: 0.07 * 100 is above 7 in floating point.
    if optimisation.warmup_ratio:
        warmup = math.ceil(Fraction(str(optimisation.warmup_ratio)) * total_steps)
    if name == "wsd":
        decay = math.floor(Fraction(str(optimisation.decay_ratio or DECAY_RATIO)) * total_steps)
    if name in ("cosine", "linear", "wsd") and warmup + decay > total_steps:
        decays = f" and {decay} of decay" if decay else ""
        raise ConfigError(
            f"--lr_schedule {name}: {warmup} steps of warm-up{decays} are more than the run's {total_steps} global "
            "steps; lower --warmup_steps"
        )
    return Schedule(name=name, total_steps=total_steps, warmup_steps=warmup, decay_steps=decay)
