"""The batch layout of a run: packed wherever the model computes the same on packs, else padded."""

from __future__ import annotations

import functools

from minimind.data.loader import Layout
from minimind.data.packs import pack, pad
from minimind.data.table import PairTable
from minimind.engine.policy import Policy
from minimind.errors import ConfigError
from minimind.model.family import family_of, packing_obstacle
from minimind.model.packed_attention import FLEX, VARLEN
from minimind.training.console import Console
from minimind.training.setup.prepare import Prepared
from minimind.training.setup.start_check import layouts_agree


def choose_layout(prepared: Prepared, policy: Policy, table: PairTable, console: Console) -> Layout:
    """Packed rows if the model can take them, else rows padded to the longest of a micro-batch.

    Raises:
        ConfigError: on all ranks, if rows must be padded and a flag was given that only works on packs.
    """
    # Any id serves where a tokenizer has no padding token: padded positions are masked.
    pad_id = prepared.tokenizer.pad_token_id or 0
    padded: Layout = functools.partial(pad, pad_id=pad_id)
    model = prepared.source.config
    if family_of(model).packs_by_construction:
        return pack
    config = prepared.settings.config
    obstacle = packing_obstacle(model, config.data.max_seq_len)
    # A configuration does not show every deviation, so one real pair is compared in both layouts.
    if obstacle is None and not layouts_agree(policy, pack([table[0]]), pad([table[0]], pad_id)):
        obstacle = "its log-probs of a pack differ from those of the same rows padded"
    if obstacle is None:
        return pack
    flag = ""
    if config.optimisation.micro_batch_tokens:
        flag = "--micro_batch_tokens counts tokens of packs"
    elif prepared.settings.explicit("attention") and config.engine.attention in (VARLEN, FLEX):
        flag = f"--attention {config.engine.attention} is for packs"
    if flag:
        raise ConfigError(f"{flag}, and rows must be padded here: {obstacle}", agreed=True)
    console.say(f"  rows are padded, not packed: {obstacle}")
    return padded
