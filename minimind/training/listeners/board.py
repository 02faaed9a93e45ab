"""TensorBoard beside its curves: settings, histograms of the held-out pairs, the guard's findings, and hyperparameters.

Start     -> where this process begins; of a run that is not resumed: settings as a text, hyperparameters, charts
Evaluated -> histograms of margins, log-ratios and lengths       (values that are on the host already)
          -> held-out values of the few metrics by which runs are compared
Log       -> (Save) those of training
Found     -> a text
End       -> the run is finished, for the comparison of runs
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from minimind.engine import summaries
from minimind.engine.monitor import RunMonitor
from minimind.training.events import End, Evaluated, Found, Listener, Log, Save, Start

# The six charts that come first in the tab CUSTOM SCALARS, and what else tells how the run is doing.
_LEARNING: Mapping[str, Sequence[str]] = {
    "loss: falls, on held-out pairs too": ("train/loss", "eval/loss"),
    "accuracy: rises": ("rewards/accuracies", "eval/rewards/accuracies"),
    "margin: grows": ("rewards/margins", "eval/rewards/margins"),
    "rewards: chosen should stay above 0": ("eval/rewards/chosen", "eval/rewards/rejected"),
    "nll of chosen, in nats: should not rise": ("train/nll", "eval/nll"),
    "gradient norm: of one magnitude": ("optimizer/grad_norm",),
}
_TOKENS: Mapping[str, Sequence[str]] = {
    "loss: falls, on held-out rows too": ("train/loss", "eval/loss"),
    "accuracy of the next token: rises": ("train/token_accuracy", "eval/token_accuracy"),
    "perplexity: falls": ("train/perplexity", "eval/perplexity"),
    "entropy, in nats": ("train/entropy", "eval/entropy"),
    "gradient norm: of one magnitude": ("optimizer/grad_norm",),
    "seconds of a step": ("time/step",),
}
_OPTIMIZER: Mapping[str, Sequence[str]] = {
    "learning rate": ("optimizer/learning_rate",),
    "share of steps with a clipped gradient": ("optimizer/grad_clipped",),
}
_SPEED: Mapping[str, Sequence[str]] = {
    "tokens per second": ("speed/tokens_per_second",),
    "useful operations over the peak (mfu)": ("speed/mfu",),
    "seconds of a step": ("time/data", "time/reference", "time/forward", "time/backward", "time/optimizer"),
    "memory, GiB": ("memory/memory_gib", "memory/peak_memory_gib"),
}
SETTINGS, GUARD = "settings", "guard"
# Metrics by which runs of pairs and of tokens are compared: those of held-out data, or without any those of training.
# TensorBoard shows five metrics of a run unless it is told otherwise.
COMPARED = ("loss", "rewards/accuracies", "rewards/margins")
COMPARED_TOKENS = ("loss", "perplexity", "token_accuracy")
# Metrics of training that every run is compared by.
_TRAINED = ("loss", "tokens_per_second")


class Board(Listener):
    """Writes what TensorBoard shows besides curves. Rank 0 alone has this listener.

    Args:
        monitor: the engine's monitor.
        values: every setting.
        origins: where each comes from.
        facts: what else is worth knowing of the run: name -> value.
        beta: by which a reward is divided to get a log-ratio to the reference; None: rewards are something else.
        pairs: the job trains on pairs, rather than on tokens.
        held_out: the run evaluates.
    """

    name = "board"

    def __init__(
        self,
        *,
        monitor: RunMonitor,
        values: Mapping[str, Any],
        origins: Mapping[str, str],
        facts: Mapping[str, object],
        beta: float | None,
        pairs: bool,
        held_out: bool,
    ) -> None:
        self._monitor, self._values, self._origins, self._facts = monitor, values, origins, facts
        self._beta, self._pairs, self._held_out = beta, pairs, held_out
        self._compared = COMPARED if pairs else COMPARED_TOKENS
        # Last values of training.
        self._trained: dict[str, float] = {}

    def on_start(self, event: Start) -> None:
        # TensorBoard forgets the steps that a resumed run repeats.
        self._monitor.restart(event.step + 1 if event.step else 0)
        if event.step:
            return  # the first process has written what follows
        rows = [(name, _shown(value), self._origins[name]) for name, value in self._values.items()]
        facts = summaries.table(("", ""), list(self._facts.items()))
        settings = summaries.table(("setting", "value", "from"), rows)
        charts: dict[str, Mapping[str, Sequence[str]]] = {
            "Is it learning?": _LEARNING if self._pairs else _TOKENS,
            "The optimizer": _OPTIMIZER,
            "How fast is it?": _SPEED,
        }
        written = [summaries.text(SETTINGS, f"{facts}\n\n{settings}"), summaries.layout(charts)]
        self._monitor.write_summaries(written, 0)
        self._write_final([summaries.session_start(self._values)], 0)

    def _write_final(self, written: Sequence[Any], step: int) -> None:
        self._monitor.write_summaries(written, step, folder=summaries.FINAL)

    def on_log(self, event: Log) -> None:
        self._trained |= _among(event.metrics, _TRAINED if self._held_out else (*self._compared, *_TRAINED))

    def on_save(self, event: Save) -> None:
        # Once in a while, the end included: a run can be compared before it is over, and after a kill.
        self._write_final(summaries.finals(self._trained), event.step)

    def on_evaluated(self, event: Evaluated) -> None:
        # At once: the last evaluation of a run that ends early comes after its last save.
        compared = _among(event.metrics, [f"{event.prefix}{name}" for name in self._compared])
        self._write_final(summaries.finals(compared), event.step)
        written = [one for one in self._histograms(event) if one is not None]
        if written:
            self._monitor.write_summaries(written, event.step)

    def _histograms(self, event: Evaluated) -> Iterator[Any]:
        if event.pairs is None:
            return
        pairs, scale, what = event.pairs, 1.0, "rewards"
        if self._beta is not None:
            scale, what = 1 / self._beta, "log_ratios"
        prefix = f"{event.prefix}pairs/"
        yield summaries.histogram(f"{prefix}margins", pairs.margins)
        yield summaries.histogram(f"{prefix}{what}_chosen", pairs.chosen * scale)
        yield summaries.histogram(f"{prefix}{what}_rejected", pairs.rejected * scale)
        if event.step == 0:  # they stay the same
            yield summaries.histogram(f"{prefix}lengths_chosen", pairs.chosen_tokens)
            yield summaries.histogram(f"{prefix}lengths_rejected", pairs.rejected_tokens)

    def on_found(self, event: Found) -> None:
        self._monitor.write_summaries([summaries.text(f"{GUARD}/{event.finding.rule}", event.line)], event.step)

    def on_end(self, event: End) -> None:
        # Without an end TensorBoard shows a run as going on, which a killed one may well do.
        if event.finished:
            self._write_final([summaries.session_end()], event.step)


def _among(metrics: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Those of the metrics with one of the names."""
    return {name: metrics[name] for name in names if name in metrics}


def _shown(value: object) -> str:
    if value in (None, "", ()):
        return "-"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
