"""Flags for answers that are sampled while a run trains."""

from __future__ import annotations

import dataclasses

from minimind.config.fields import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Answers of the policy to a few prompts, at the start, at evaluations and at the end."""

    sample_prompts: str | None = flag(
        None,
        "prompts that the policy answers at the start, at each evaluation and at the end: a number of held-out ones, "
        "or a file: JSON lines with a prompt or messages, or a plain text with a prompt in each line; 0: none",
    )
    sample_interval: int = flag(
        0,
        "global steps between two samplings, besides those at evaluations; without --sample_prompts of 4 held-out "
        "prompts",
        low=0,
    )
    sample_tokens: int = flag(128, "an answer is cut after so many tokens", low=1)
    sample_temperature: float = flag(
        0.0, "0: the most likely token is taken; else tokens are sampled from the logits divided by it", low=0
    )
    sample_top_p: float = flag(
        1.0, "of sampled tokens only the most likely, whose probabilities add up to this, may come", above=0
    )
    sample_seed: int = flag(42, "seed of sampled tokens; prompt number i has seed + i at every sampling", low=0)

    @property
    def is_on(self) -> bool:
        """Whether samples are taken."""
        return bool(self.sample_prompts) and self.number != 0

    @property
    def number(self) -> int | None:
        """The number of held-out prompts; None: a file is named, or nothing."""
        given = self.sample_prompts or ""
        return int(given) if given.isdecimal() else None
