"""What the checks of a run's settings read: the settings, and what could be opened of the run's files.

flags, files -> Draft -> every check -> errors
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from transformers import PreTrainedTokenizerBase

from minimind.config import Settings
from minimind.errors import MiniMindError
from minimind.objective.interface import AnyObjective
from minimind.ranks.world import World
from minimind.weights.sources import WeightSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """A run's settings and what could be opened of its files.

    Attributes:
        is_demo: the bundled demo runs.
        source: start weights; None if they could not be opened.
        other_reference: weights of a reference that is another model; None if there are none.
        tokenizer: None if it could not be loaded.
        engine_resolved: the policy's DeepSpeed file was read, so settings that it fixes are known.
        objective: None if the flags of the loss are wrong.
    """

    settings: Settings
    world: World
    is_demo: bool
    source: WeightSource | None
    tokenizer: PreTrainedTokenizerBase | None
    engine_resolved: bool
    objective: AnyObjective | None = None
    other_reference: WeightSource | None = None


Check = Callable[[Draft], Iterator[MiniMindError]]
