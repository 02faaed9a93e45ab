"""Events of a run, and the listeners that react to them.

    loop: Start -> (Step, [Log])* -> End              raised by loop.train, in this order
    listeners: Evaluated, Sampled, Save, Saved, Found  raised by evaluation, by sampling, by saving and by the guard

A listener is a small object with a method per event. Evaluation, saving, metrics files and the console are listeners,
so a new one (samples, best checkpoint, early stop) needs no edit of the loop. Listeners hear each event in their list
order, on all ranks. A listener's state is saved in every checkpoint's manifest and restored on resume.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.diagnosis.curves import Finding
from minimind.diagnosis.pair_signals import HeldOut, Values
from minimind.training.samples import Sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Training is about to begin.

    Attributes:
        step: global steps already done; 0 for a fresh run.
        total_steps: the last global step of the run.
    """

    step: int
    total_steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A global step is done.

    Attributes:
        step: from 1.
        last: it is the run's last step.
        stopping: a signal asked for a stop; `End` follows, and periodic work is skipped.
    """

    step: int
    last: bool
    stopping: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """Metrics of the steps since the last logged one.

    Attributes:
        metrics: name -> mean over all items of all ranks, or rate.
    """

    step: int
    metrics: Mapping[str, float]


def prefix_of(name: str) -> str:
    """What the metrics of a set of held-out data begin with; the set without a name has an empty one."""
    return f"eval/{name}/" if name else "eval/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Held-out data was evaluated.

    Attributes:
        metrics: `eval/name`, or `eval/set/name` of a set with a name -> mean over all held-out items of the set.
        items: number of these items.
        name: of the set; empty for one without.
        pairs: the single pairs of the set; None where they were not kept.
        kept: name -> (items,) values of the set's items in their order, for who asked the evaluation to keep them.
    """

    step: int
    metrics: Mapping[str, float]
    items: int
    name: str = ""
    pairs: HeldOut | None = None
    kept: Mapping[str, Values] = dataclasses.field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """What all metrics begin with."""
        return prefix_of(self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """The policy has answered the prompts.

    Attributes:
        step: 0 before the first step.
        metrics: name -> mean over all answers.
        samples: one for each prompt.
    """

    step: int
    metrics: Mapping[str, float]
    samples: Sequence[Sample]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Save:
    """A save begins: what a resumed run will not write again must be on the disk before the checkpoint is."""

    step: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
    """A save has been attempted.

    Attributes:
        checkpoint: the new checkpoint; None if none was written.
        failures: why files were not written; empty if all were.
        metrics: what the written weights have kept of the training, by name; empty if no weights were written.
    """

    step: int
    checkpoint: Path | None
    failures: Sequence[str] = ()
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The guard has found something that goes wrong.

    Attributes:
        step: at which it was noticed; the finding may be about an earlier one.
        name: of the set of held-out data; empty for one without, and for findings of training.
    """

    step: int
    finding: Finding
    name: str = ""

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.name}: {self.finding}" if self.name else str(self.finding)


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
    """Training is over.

    Attributes:
        step: the last global step that was done.
        finished: False if a signal asked for a stop before the run's last step.
        reason: the signal, or why a listener ended the run (`Halt`); empty after the run's last step.
    """

    step: int
    finished: bool
    reason: str = ""


class Halt:
    """How a listener ends a run early, which then counts as finished: weights and checkpoint are written.

    Every rank's listener must ask at the same step.

    Attributes:
        step: the last global step; None while the run goes on.
        reason: why, for people.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.reason = ""

    def ask(self, step: int, reason: str) -> None:
        """End the run after this step; the first reason is kept."""
        if self.step is None:
            self.step, self.reason = step, reason


Event = Start | Step | Log | Evaluated | Sampled | Save | Saved | Found | End


class Listener:
    """Base of all listeners: reacts to nothing and has no state.

    Attributes:
        name: key of its state in manifests; must be unique among a run's listeners.
    """

    name = ""

    def on_start(self, event: Start) -> None: ...

    def on_step(self, event: Step) -> None: ...

    def on_log(self, event: Log) -> None: ...

    def on_evaluated(self, event: Evaluated) -> None: ...

    def on_sampled(self, event: Sampled) -> None: ...

    def on_save(self, event: Save) -> None: ...

    def on_saved(self, event: Saved) -> None: ...

    def on_found(self, event: Found) -> None: ...

    def on_end(self, event: End) -> None: ...

    def state(self) -> dict[str, Any]:
        """State to restore on resume, as JSON values; empty if there is none. The same on all ranks."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the state from the checkpoint that the run resumes."""


class Events:
    """Delivers events to listeners."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def add(self, *listeners: Listener) -> None:
        """Append listeners; they hear events in this order."""
        self._listeners += listeners
        # Manifests store states by name; two equal names would overwrite each other.
        names = [listener.name for listener in self._listeners]
        assert len(set(names)) == len(names), f"two listeners share a name: {names}"

    def emit(self, event: Event) -> None:
        """Call every listener's method for this event."""
        for listener in self._listeners:
            # The method is named after the event's class: Step -> on_step.
            handler: Callable[[Any], None] = getattr(listener, f"on_{type(event).__name__.lower()}")
            handler(event)

    def states(self) -> dict[str, dict[str, Any]]:
        """State of every listener that has one, by name."""
        return {listener.name: state for listener in self._listeners if (state := listener.state())}

    def restore(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Give each listener its state; states of listeners that this run does not have are ignored."""
        for listener in self._listeners:
            if listener.name in states:
                listener.restore(states[listener.name])
