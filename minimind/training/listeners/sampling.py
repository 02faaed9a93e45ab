"""Samples answers of the policy while it trains (--sample_prompts).

Start, Step -> prompts, cut into ranks -> generate in batches -> answers of all ranks -> Sampled

It changes nothing of the run: no generator of random numbers is drawn from but its own, and the policy is as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from minimind.diagnosis.answer_signals import GeneratedAnswer, answer_signals
from minimind.engine.patches.registry import PatchSelection
from minimind.engine.policy import Policy
from minimind.engine.whole_model import needs_all_ranks, with_model
from minimind.generation.batch import Answer, generate
from minimind.generation.decoding import Decoding
from minimind.ranks.collectives import gather
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.events import End, Event, Listener, Sampled, Start, Step
from minimind.training.metrics import StepMetrics
from minimind.training.samples import Sample, SamplePrompt

PREFIX = "samples/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSchedule:
    """When samples are taken: at the start, at the end, and every so many global steps; 0: never between.

    Attributes:
        interval: of samples alone.
        eval_interval: of evaluations.
    """

    interval: int
    eval_interval: int

    def due(self, step: int) -> bool:
        """Whether samples are taken after this global step, from 1, wherever the run ends."""
        return any(every and step % every == 0 for every in (self.interval, self.eval_interval))


class Sampling(Listener):
    """Lets the policy answer the prompts.

    Args:
        seed: of the first prompt; the others have the next ones.
        batch_size: prompts of a rank in one batch.
        keeps_weights: see `with_model`.
        start: the answers before the first step of a run that is resumed, None for each that is not known.
        steps: training metrics, whose clock stands meanwhile.
        emit: raises an event.
    """

    name = "sampling"

    def __init__(
        self,
        *,
        prompts: Sequence[SamplePrompt],
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        seed: int,
        batch_size: int,
        schedule: SampleSchedule,
        policy: Policy,
        keeps_weights: PatchSelection | None,
        start: Callable[[], Sequence[str | None]],
        world: World,
        watch: Watch,
        steps: StepMetrics,
        emit: Callable[[Event], None],
    ) -> None:
        self._prompts, self._tokenizer, self._decoding, self._seed = prompts, tokenizer, decoding, seed
        self._batch_size, self._schedule, self._policy = batch_size, schedule, policy
        self._keeps_weights, self._read_start = keeps_weights, start
        self._world, self._watch, self._steps, self._emit = world, watch, steps, emit
        self._start: Sequence[str | None] = [None] * len(prompts)
        # Global steps of the last samples, and of the checkpoint that the run resumes.
        self._latest = self._resumed = -1

    def on_start(self, event: Start) -> None:
        self._resumed = event.step
        if event.step:
            self._start = self._read_start()
        else:
            self.sample(0)

    def on_step(self, event: Step) -> None:
        if event.stopping:
            return  # a stop must not wait for samples
        if event.last or self._schedule.due(event.step):
            self._steps.pause()
            self.sample(event.step)
            self._steps.resume()

    def on_end(self, event: End) -> None:
        # Where a listener has ended the run, the last step was not known to be the last.
        if event.finished and event.reason and event.step not in (self._latest, self._resumed):
            self._steps.pause()
            self.sample(event.step)

    def sample(self, step: int) -> None:
        """Take samples and raise `Sampled`; nothing if the run was asked to stop meanwhile. All ranks must call."""
        self._watch.enter("sampling")
        answers = self._answers()
        if answers is None:
            return
        self._latest = step
        if step == 0:
            self._start = [answer.text.strip() for answer in answers]
        samples = [
            Sample(prompt=prompt, start=start, answer=one.text.strip(), ids=tuple(one.ids), ended=one.ended)
            for prompt, start, one in zip(self._prompts, self._start, answers, strict=True)
        ]
        signals = answer_signals(
            [
                GeneratedAnswer(
                    ids=one.ids, text=one.answer, ended=one.ended, expected=one.prompt.expected or one.prompt.text
                )
                for one in samples
            ]
        )
        metrics = {f"{PREFIX}{name}": value for name, value in signals.items()}
        self._emit(Sampled(step=step, metrics=metrics, samples=samples))

    def _answers(self) -> list[Answer] | None:
        """Answers to all prompts, in their order, on every rank; None if a rank was asked to stop."""
        size, number = self._world.size, len(self._prompts)
        # Ranks that have one prompt less answer one again: under ZeRO-3 all take the same number of batches.
        own = [(self._world.rank + size * turn) % number for turn in range(-(-number // size))]
        found: list[tuple[int, Answer]] = []
        for first in range(0, len(own), self._batch_size):
            # A rank that left the loop alone would leave the others waiting in a collective of `generate`.
            if any(gather(self._world, self._watch.stop_reason is not None)):
                return None
            batch = own[first : first + self._batch_size]
            found += zip(batch, self._generate(batch), strict=True)
        # A prompt that two ranks answered is the same answer twice: seeds belong to prompts, not to ranks.
        everything = dict(one for of_rank in gather(self._world, found) for one in of_rank)
        return [everything[index] for index in range(number)]

    def _generate(self, batch: Sequence[int]) -> list[Answer]:
        prompts, seeds = [self._prompts[index].ids for index in batch], [self._seed + index for index in batch]
        return with_model(
            self._policy,
            lambda model: generate(
                model,
                self._tokenizer,
                prompts,
                self._decoding,
                seeds=seeds,
                on_token=self._watch.tick,
                synced=needs_all_ranks(self._policy),
            ),
            keeps_weights=self._keeps_weights,
        )
