"""What attends over packs in this run: asked for, as before a checkpoint, or the fastest that a GPU has.

--attention, device, dtype, model, a pack of the data -> settle_attention -> settings that name one backend
"""

from __future__ import annotations

import dataclasses

import torch
from transformers import PretrainedConfig

from minimind.config import CHECKPOINT, DEFAULT, MEASURED
from minimind.data.packs import pack
from minimind.data.sampler import PairSampler
from minimind.data.table import PairTable
from minimind.errors import ConfigError
from minimind.model.backends import AttentionShape, Choice, Segments, choose_backend, verify
from minimind.model.family import family_of, packing_obstacle
from minimind.model.packed_attention import SDPA
from minimind.native import AUTO
from minimind.plan.sizes import given_size
from minimind.ranks import process
from minimind.ranks.process import World
from minimind.training.console import Console
from minimind.training.setup.prepare import Prepared

# Tokens that are measured with at most: beside the kernels SDPA has to run in float32.
_MEASURED_TOKENS = 2**14


def settle_attention(
    prepared: Prepared, world: World, stream: PairSampler, table: PairTable, console: Console
) -> Prepared:
    """The same run with `--attention auto` resolved to one backend for all ranks, which the console is told of. Rank 0
    tries and measures, the others try what it has chosen.

    Raises:
        ConfigError: on all ranks, if the backend that was asked for does not give SDPA's numbers here.
    """
    settings, model = prepared.settings, prepared.source.config
    asked = settings.config.engine.attention
    if packing_obstacle(model, settings.config.data.max_seq_len) is not None:
        name, origin = SDPA, DEFAULT  # for rows that will be padded, which the run is yet to say
    else:
        before = prepared.checkpoint.manifest.attention if prepared.checkpoint is not None else ""
        shape = dataclasses.replace(
            attention_shape(model, getattr(torch, settings.config.optimisation.dtype), world.device),
            kernels=settings.config.engine.kernels == AUTO,
        )
        world.watch.enter("choosing attention")
        if not world.on_cpu and asked != SDPA:
            console.say("  trying what can attend over packs; where it is compiled that may take a minute")
        choice = process.from_main(world, lambda: _choose(shape, asked, before, _measured_pack(stream, table)))
        if world.size > 1 and not world.on_cpu:
            # Their GPUs, compilers and packages may be others; and what must be compiled is, before the first step.
            process.agree(
                world, lambda: _require(shape, choice.name, _measured_pack(stream, table)), runs=not world.is_main
            )
        if not world.on_cpu:
            torch.cuda.empty_cache()  # the engines are yet to come
        for line in choice.lines:
            console.say(f"  {line}")
        name, origin = choice.name, DEFAULT if world.on_cpu else MEASURED
        if name == before:
            origin = CHECKPOINT
    if asked != "auto":
        return prepared
    return dataclasses.replace(prepared, settings=settings.with_values({"attention": name}, origin))


def _choose(shape: AttentionShape, asked: str, before: str, segments: Segments) -> Choice:
    """The backend that was asked for; for auto the one before the checkpoint, if it agrees, so that the run that goes
    on is the one that never stopped; else the fastest."""
    if asked != "auto":
        _require(shape, asked, segments)
        was = f"; before the checkpoint it was {before}" if before not in ("", asked) else ""
        return Choice(name=asked, lines=(f"attention over packs: {asked}, as --attention says{was}",))
    told: tuple[str, ...] = ()
    if before:
        problem = verify(shape, before, segments)
        if problem is None:
            return Choice(name=before, lines=(f"attention over packs: {before}, as before the checkpoint",))
        told = (f"attention over packs was {before} before the checkpoint, and cannot be here: {problem}",)
    choice = choose_backend(shape, segments)
    return Choice(name=choice.name, lines=(*told, *choice.lines))


def _require(shape: AttentionShape, name: str, segments: Segments) -> None:
    """Raises ConfigError if a backend cannot be used on this rank."""
    if problem := verify(shape, name, segments):
        raise ConfigError(f"--attention {name}: {problem}; use auto or sdpa")


def _measured_pack(stream: PairSampler, table: PairTable) -> Segments:
    """The first micro-batch, or as much of it as is measured; of one longer pair its proportions."""
    segments = pack([table[index] for index in stream.micro_batches(1, 0)[0]]).segments
    tokens = sum(segments[0])
    if tokens > _MEASURED_TOKENS:
        prefix, chosen, rejected = (part * _MEASURED_TOKENS // tokens for part in segments[0])
        return ((prefix, chosen, rejected),)
    number = 1
    while number < len(segments) and sum(map(sum, segments[: number + 1])) <= _MEASURED_TOKENS:
        number += 1
    return segments[:number]


def attention_shape(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> AttentionShape:
    """What a model asks of attention, by its configuration; where its layers differ, the largest of them."""
    model = config.get_text_config()
    heads = given_size(model, "num_attention_heads") or 1
    # Multi-head latent attention calls the rotated part of a head its head_dim.
    head_dim = given_size(model, "qk_head_dim") or given_size(model, "head_dim")
    return AttentionShape(
        heads=heads,
        kv_heads=given_size(model, "num_key_value_heads") or heads,
        head_dim=head_dim or given_size(model, "hidden_size") // heads,
        value_dim=given_size(model, "v_head_dim"),
        dtype=dtype,
        device=device,
        dropout=max(getattr(model, name, None) or 0.0 for name in family_of(config).dropout_fields),
    )
