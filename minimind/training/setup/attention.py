"""Choice of the attention backend over packs: as --attention says, as before a checkpoint, or the fastest on a GPU.

--attention, device, dtype, model, a pack of the data -> choose_attention_backend -> settings that name one backend
"""

from __future__ import annotations

import dataclasses

import torch
from transformers import PretrainedConfig

from minimind.config import CHECKPOINT, DEFAULT, MEASURED
from minimind.data.packs import pack
from minimind.errors import ConfigError
from minimind.model.backend_choice import AttentionShape, BackendChoice, Segments, check_backend, choose_backend
from minimind.model.family import family_of, packing_obstacle
from minimind.model.packed_attention import SDPA
from minimind.native import AUTO
from minimind.plan.sizes import given_size
from minimind.ranks.collectives import agree, from_main
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.setup.prepare import Prepared
from minimind.training.setup.training_data import TrainingData

# Largest pack that is measured. SDPA runs in float32 beside the measured kernels, which needs memory.
_MEASURED_TOKENS = 2**14


def choose_attention_backend(
    prepared: Prepared, world: World, watch: Watch, data: TrainingData, console: Console
) -> Prepared:
    """The same run with `--attention auto` resolved to one backend for all ranks; the console says which and why.

    Rank 0 tries and measures. The other ranks only verify its choice.

    Raises:
        ConfigError: on all ranks, if the requested backend does not give SDPA's numbers here.
    """
    settings, model = prepared.settings, prepared.source.config
    requested = settings.config.engine.attention
    if packing_obstacle(model, settings.config.data.max_seq_len) is not None:
        # Rows will be padded, and the model's own attention runs. The reason is printed when the layout is chosen.
        name, origin = SDPA, DEFAULT
    else:
        before = prepared.checkpoint.manifest.attention if prepared.checkpoint is not None else ""
        watch.enter("choosing attention")
        if not world.on_cpu and requested != SDPA:
            console.say("  trying attention backends; compiling one may take a minute")
        choice = _agree_on_backend(prepared, world, data, before)
        for line in choice.lines:
            console.say(f"  {line}")
        name, origin = choice.name, DEFAULT if world.on_cpu else MEASURED
        if name == before:
            origin = CHECKPOINT
    if requested != "auto":
        return prepared
    return dataclasses.replace(prepared, settings=settings.with_values({"attention": name}, origin))


def _agree_on_backend(prepared: Prepared, world: World, data: TrainingData, before: str) -> BackendChoice:
    config = prepared.settings.config
    dtype = getattr(torch, config.optimisation.dtype)
    shape = dataclasses.replace(
        attention_shape(prepared.source.config, dtype, world.device, dropout=config.model.dropout),
        kernels=config.engine.kernels == AUTO,
    )
    choice = from_main(world, lambda: _choose(shape, config.engine.attention, before, _measured_pack(data)))
    other = attention_shape(prepared.reference_source.config, dtype, world.device)
    if prepared.other_reference is not None:
        other = dataclasses.replace(other, kernels=shape.kernels)
        choice = from_main(world, lambda: _for_both(choice, other, config.engine.attention, _measured_pack(data)))
    if world.size > 1 and not world.on_cpu:
        # GPUs, compilers and packages of other ranks may differ. This also compiles the backend before the first step.
        agree(world, lambda: _require(shape, choice.name, _measured_pack(data)), runs=not world.is_main)
    if not world.on_cpu:
        torch.cuda.empty_cache()  # leave the memory to the engines, which are built next
    return choice


def _choose(shape: AttentionShape, requested: str, before: str, segments: Segments) -> BackendChoice:
    """The requested backend. For auto: the checkpoint's backend if it agrees with SDPA here, so that a resumed run
    computes the same numbers as an uninterrupted one; else the fastest backend that agrees."""
    if requested != "auto":
        _require(shape, requested, segments)
        note = f"; before the checkpoint it was {before}" if before not in ("", requested) else ""
        return BackendChoice(name=requested, lines=(f"attention over packs: {requested}, from --attention{note}",))
    lines: tuple[str, ...] = ()
    if before:
        problem = check_backend(shape, before, segments)
        if problem is None:
            return BackendChoice(name=before, lines=(f"attention over packs: {before}, as before the checkpoint",))
        lines = (f"attention over packs was {before} before the checkpoint, which is not possible here: {problem}",)
    choice = choose_backend(shape, segments)
    return BackendChoice(name=choice.name, lines=(*lines, *choice.lines))


def _for_both(choice: BackendChoice, other: AttentionShape, requested: str, segments: Segments) -> BackendChoice:
    """The choice if it also serves a reference that is another model, else SDPA, which serves every model.

    Args:
        other: the reference's attention.

    Raises:
        ConfigError: --attention asks for a backend that the reference cannot use.
    """
    problem = check_backend(other, choice.name, segments)
    if problem is None:
        return choice
    if requested != "auto":
        raise ConfigError(f"--attention {requested}: not for the reference: {problem}; use auto or sdpa")
    line = f"attention over packs: {SDPA}, because {choice.name} does not serve the reference: {problem}"
    return BackendChoice(name=SDPA, lines=(*choice.lines, line))


def _require(shape: AttentionShape, name: str, segments: Segments) -> None:
    """Raises ConfigError if a backend cannot be used on this rank."""
    if problem := check_backend(shape, name, segments):
        raise ConfigError(f"--attention {name}: {problem}; use auto or sdpa")


def _measured_pack(data: TrainingData) -> Segments:
    """Segments of the first micro-batch, cut to the measured size; a longer first pair keeps its proportions."""
    segments = pack(data.first_micro_batch()).segments
    tokens = sum(segments[0])
    if tokens > _MEASURED_TOKENS:
        prefix, chosen, rejected = (part * _MEASURED_TOKENS // tokens for part in segments[0])
        return ((prefix, chosen, rejected),)
    number = 1
    while number < len(segments) and sum(map(sum, segments[: number + 1])) <= _MEASURED_TOKENS:
        number += 1
    return segments[:number]


def attention_shape(
    config: PretrainedConfig, dtype: torch.dtype, device: torch.device, dropout: bool = False
) -> AttentionShape:
    """Sizes of a model's attention, from its configuration; where layers differ, the largest.

    Args:
        dropout: the run keeps the model's dropout.
    """
    model = config.get_text_config()
    heads = given_size(model, "num_attention_heads") or 1
    # In multi-head latent attention `head_dim` is only the part of a head that is rotated.
    head_dim = given_size(model, "qk_head_dim") or given_size(model, "head_dim")
    return AttentionShape(
        heads=heads,
        kv_heads=given_size(model, "num_key_value_heads") or heads,
        head_dim=head_dim or given_size(model, "hidden_size") // heads,
        value_dim=given_size(model, "v_head_dim"),
        dtype=dtype,
        device=device,
        dropout=max(getattr(model, name, None) or 0.0 for name in family_of(config).dropout_fields) if dropout else 0.0,
    )
