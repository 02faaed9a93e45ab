"""Where the time of steps goes, and how much of the device's peak is used (MFU), without a wait in a step.

    phases of a step -> PhaseClock          ┐
    waits for data   -> host's clock        ├-> reduce, in a logged step -> time/..., mfu, tokens per second and rank
    batches          -> useful operations   ┘

MFU is useful operations per second over the peak rate (Chowdhery et al., 2022, arXiv 2204.02311, appendix B). The peak
is what a GPU's vendor states, on a CPU the fastest of a few products, measured once, in the first logged step.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from minimind.data.packs import Batch
from minimind.native import ops
from minimind.plan.peaks import stated_peak
from minimind.plan.work import ModelWork
from minimind.ranks.collectives import all_reduce
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.jobs.job import Job
from minimind.training.phase_clock import PhaseClock

# Phase as the watch knows it -> metric.
_PHASES = {
    "reference": "time/reference",
    "policy forward": "time/forward",
    "backward": "time/backward",
    "optimizer step": "time/optimizer",
}
_DATA, _STEP = "time/data", "time/step"
# Of the product that is measured on a CPU: (rows, depth) @ (depth, columns). It takes a few hundredths of a second.
_ROWS, _DEPTH, _COLUMNS = 512, 512, 2048
_PRODUCTS, _BUDGET = 4, 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Useful:
    """Useful operations of a job's steps.

    Attributes:
        work: of the model; None: unknown, and so is the MFU.
        passes: forwards that a step is worth: 1, and 2 of the backward (1 if the weights under adapters are frozen),
            and 1 of a reference that is computed.
    """

    work: ModelWork | None
    passes: float

    def of(self, job: Job, batches: Sequence[Batch]) -> float:
        """Operations of a rank's micro-batches, whose tensors are on the host."""
        if self.work is None:
            return 0.0
        return self.passes * sum(self.work.forward_flops(job.trained(batch)) for batch in batches)


class Speed:
    """Measures steps. For `train_step` it stands in for the watch, which hears of the phases through it.

    Args:
        world: the ranks.
        watch: of this rank.
        job: what is trained.
        useful: operations that count.
        dtype: of the products.
        say: prints a line, about the peak.
    """

    def __init__(
        self, *, world: World, watch: Watch, job: Job, useful: Useful, dtype: str, say: Callable[[str], None]
    ) -> None:
        self._world, self._watch, self._job, self._useful, self._say = world, watch, job, useful, say
        self._dtype = dtype
        self._clock = PhaseClock(world.device)
        self._peak: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._clock.reset()
        self._steps, self._tokens, self._flops, self._waited = 0, 0, 0.0, 0.0

    def waiting(self, batches: Iterable[Sequence[Batch]]) -> Iterator[Sequence[Batch]]:
        """The same batches; the time until each is there counts as waiting for data."""
        steps = iter(batches)
        while True:
            started = time.perf_counter()
            try:
                step = next(steps)
            except StopIteration:
                return
            self._waited += time.perf_counter() - started
            yield step

    def begin(self, batches: Sequence[Batch]) -> None:
        """A step begins."""
        # What the device has passed by now is read, so that few events wait.
        self._clock.read()
        self._steps += 1
        self._tokens += sum(batch.row_tokens for batch in batches)
        self._flops += self._useful.of(self._job, batches)

    def enter(self, phase: str, step: int | None = None) -> None:
        """A phase of the step begins."""
        self._watch.enter(phase, step)
        self._clock.mark(_PHASES.get(phase))

    def end(self) -> None:
        """The step is over."""
        self._clock.mark(None)

    def reduce(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Metrics of the steps since the last call; all ranks must call, when the device is idle.

        Args:
            metrics: with `tokens_per_second` of all ranks; tokens as in `Batch.row_tokens`.
        """
        tokens_per_second = metrics["tokens_per_second"]
        self._clock.read()
        if self._peak is None:
            self._peak = self._find_peak()
        spent = {name: self._clock.seconds.get(name, 0.0) for name in _PHASES.values()}
        # Peaks are summed too: a job's ranks may be on different devices, and MFU is over the sum of their peaks.
        values = [self._steps, self._tokens, self._flops, self._peak, self._waited, *spent.values()]
        # float64, since float32 does not count operations exactly.
        totals = all_reduce(torch.tensor(values, dtype=torch.float64).to(self._world.device)).tolist()
        steps, tokens, flops, peak, *times = totals
        found = {name: total / steps for name, total in zip((_DATA, *spent), times, strict=True)}
        if getattr(self._job, "reference", None) is None:
            # The phase is entered, and nothing happens in it.
            # A 0 would read as a reference that costs nothing.
            del found[_PHASES["reference"]]
        # Not the sum of the phases: it has what happens between them. Rates are per second of training, pauses left
        # out, so tokens of an average step over the rate are its seconds.
        found[_STEP] = tokens / (steps / self._world.size) / tokens_per_second
        found["tokens_per_second_per_rank"] = tokens_per_second / self._world.size
        if peak and flops:
            found["mfu"] = flops / tokens * tokens_per_second / peak
        self._reset()
        return found

    def _find_peak(self) -> float:
        """Peak of this rank, in operations per second; 0: unknown. Says where it is from."""
        if self._useful.work is None:
            self._say("  mfu: unknown, because the operations of this model are not known")
            return 0.0
        if self._world.on_cpu:
            peak = measured_peak(getattr(torch, self._dtype))
            self._say(f"  mfu: over {_shown(peak)} a rank, the fastest product measured now")
            return peak
        name = torch.cuda.get_device_name(self._world.device)
        stated = stated_peak(name, self._dtype)
        where = f"{_shown(stated)} as stated for {name}" if stated else f"unknown: no peak of {name} in {self._dtype}"
        self._say(f"  mfu: {f'over {where}' if stated else where}")
        return stated or 0.0


def measured_peak(dtype: torch.dtype) -> float:
    """Operations per second of the fastest of a few products on this rank's CPU, within a fraction of a second."""
    left, right = torch.ones(_ROWS, _DEPTH, dtype=dtype), torch.ones(_DEPTH, _COLUMNS, dtype=dtype)
    fastest = spent = 0.0
    with torch.no_grad():
        # The first one also makes the library ready.
        for number in range(_PRODUCTS):
            started = time.perf_counter()
            ops.matmul(left, right)
            seconds = time.perf_counter() - started
            spent += seconds
            if number or spent > _BUDGET:
                fastest = max(fastest, 2.0 * _ROWS * _DEPTH * _COLUMNS / seconds)
            if spent > _BUDGET:
                break
    return fastest


def _shown(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s"
