"""Opens what the run would open: settings, tokenizer, weights, as far as they are there.

Settings -> open_inputs -> Inputs, with what would stop the run
"""

from __future__ import annotations

import dataclasses

import torch
from transformers import PreTrainedTokenizerBase

from minimind.config import Settings, model_defaults
from minimind.config.generations import with_model_defaults
from minimind.data.sets import plain_words
from minimind.data.sources import find_sources
from minimind.errors import MiniMindError
from minimind.ranks.world import World
from minimind.training.setup.precision import lacks_bfloat16
from minimind.training.setup.prepare import Prepared, prepare, with_implied
from minimind.training.setup.start_weights import defaults_of, open_start_weights
from minimind.training.setup.tokenizers import load_tokenizer
from minimind.weights.sources import WeightSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the run would open.

    Attributes:
        settings: every setting resolved, as far as the run's files can be opened.
        tokenizer: with the chat template of the run.
        prepared: None if the run would stop.
        obstacle: why it would; None if it would not.
    """

    settings: Settings
    tokenizer: PreTrainedTokenizerBase
    prepared: Prepared | None
    obstacle: str | None


def open_inputs(settings: Settings, world: World) -> Inputs:
    """Open what a run with these settings would open.

    Data can be looked at without weights, as long as there is a tokenizer.

    Raises:
        MiniMindError: all that would stop the run, if the data or the tokenizer are among it.
    """
    try:
        prepared = prepare(settings, world, without_bfloat16=lacks_bfloat16(world))
    except MiniMindError as error:
        known = with_implied(settings)
        source = _weights_or_none(known)
        generation = known.config.model.generation
        if source is not None or generation is not None:
            known = with_model_defaults(known, model_defaults(generation) if source is None else defaults_of(source))
        if not known.config.data.data_path:
            raise
        try:
            tokenizer = load_tokenizer(known.config, source)
            for words in (known.config.data.data_path, plain_words(known.config.data.eval_data_path)):
                find_sources(words)
        except MiniMindError:
            # It is one of the problems that `prepare` has listed.
            raise error from None
        return Inputs(settings=known, tokenizer=tokenizer, prepared=None, obstacle=str(error))
    return Inputs(settings=prepared.settings, tokenizer=prepared.tokenizer, prepared=prepared, obstacle=None)


def planned_world(nodes: int, ranks_per_node: int) -> World:
    """Rank 0 of the run that is planned, with this machine's kind of device."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    size = nodes * ranks_per_node
    return World(rank=0, local_rank=0, size=size, device=device, hosts=("localhost",) * size)


def _weights_or_none(settings: Settings) -> WeightSource | None:
    try:
        return open_start_weights(settings.config)
    except MiniMindError:
        return None
