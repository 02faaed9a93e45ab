"""Puts the sampling of a run together: its prompts, how they are answered, and whether ZeRO-3 gathers once for it.

Prepared, TrainingData, Policy -> sampling -> Sampling
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from minimind.engine.patches.registry import PatchSelection, select_patches
from minimind.engine.policy import Policy
from minimind.errors import ConfigError, WeightsError
from minimind.generation.decoding import Decoding
from minimind.plan.check import this_machine
from minimind.plan.choice import StepLoad, ZeroChoice
from minimind.plan.memory import rank_memory
from minimind.plan.options import USABLE
from minimind.plan.sizes import ModelSizes
from minimind.ranks.collectives import from_main
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.listeners.sampling import SampleSchedule, Sampling
from minimind.training.loop import Run
from minimind.training.samples import SamplePrompt, read_start
from minimind.training.setup.prepare import Prepared, policy_sizes
from minimind.training.setup.sample_prompts import file_prompts, held_out_prompts
from minimind.training.setup.training_data import TrainingData


def sampling(prepared: Prepared, data: TrainingData, policy: Policy, run: Run, console: Console) -> Sampling:
    """The listener that samples; all ranks must call.

    Raises:
        ConfigError: on all ranks, if no held-out prompt can be answered.
    """
    config, world = prepared.settings.config, run.world
    samples, folder = config.samples, Path(config.run.save_dir)
    prompts = _prompts(prepared, data, world, console)
    return Sampling(
        prompts=prompts,
        tokenizer=prepared.tokenizer,
        decoding=Decoding(
            max_new_tokens=samples.sample_tokens,
            temperature=samples.sample_temperature,
            top_p=samples.sample_top_p,
        ),
        seed=samples.sample_seed,
        batch_size=StepLoad.of(config).sample_rows,
        schedule=SampleSchedule(
            interval=samples.sample_interval,
            eval_interval=config.run.eval_interval if data.eval_table is not None else 0,
        ),
        policy=policy,
        keeps_weights=_keeps_weights(prepared, prompts, world) if policy.stage == 3 else None,
        start=lambda: from_main(world, lambda: read_start(folder, prompts)),
        world=world,
        watch=run.watch,
        steps=run.metrics,
        emit=run.events.emit,
    )


def _prompts(prepared: Prepared, data: TrainingData, world: World, console: Console) -> list[SamplePrompt]:
    config, given = prepared.settings.config, prepared.settings.config.samples
    if given.number is None:
        # Rank 0 alone needs the file.
        return from_main(world, lambda: file_prompts(config, prepared.objective, prepared.tokenizer, prepared.source))
    assert data.eval_table is not None  # checked by `samples_can_be_taken`
    prompts = held_out_prompts(config, prepared.objective, data.eval_table, prepared.tokenizer, prepared.source)
    if not prompts:
        raise ConfigError(
            f"--sample_prompts {given.number}: no held-out prompt has an answer and leaves room for "
            f"--sample_tokens {given.sample_tokens}; give fewer tokens, or a file with prompts",
            agreed=True,
        )
    if len(prompts) < given.number:
        console.say(
            f"  samples: {len(prompts)} held-out prompts of {given.number}; the others are too long or not there"
        )
    return prompts


def _keeps_weights(prepared: Prepared, prompts: Sequence[SamplePrompt], world: World) -> PatchSelection | None:
    """The patches, if a generation may keep the whole model on each rank; None: it does not fit."""
    config, policy = prepared.settings.config, prepared.policy_config.values

    def fits() -> bool:
        try:
            sizes = policy_sizes(prepared)
        except WeightsError:
            return False  # a model that cannot be planned
        return whole_model_fits(sizes, prepared, prompts, world)

    # The ranks of a slow machine must gather as often as the others.
    if policy["zero_optimization"].get("stage3_module_granularity_threshold") or not from_main(world, fits):
        return None
    return select_patches(config.engine.disable_patches, speaks=world.is_main)


def whole_model_fits(sizes: ModelSizes, prepared: Prepared, prompts: Sequence[SamplePrompt], world: World) -> bool:
    """Whether a rank has memory for its states, all weights and a generation, by the plan."""
    choice, reference = (ZeroChoice.of(one.values) for one in (prepared.policy_config, prepared.reference_config))
    ranks_per_node = max(1, world.size // len(set(world.hosts)))
    machine = this_machine(world.device, world.size, ranks_per_node)
    config = prepared.settings.config
    longest = max(len(prompt.ids) for prompt in prompts)
    load = dataclasses.replace(StepLoad.of(config), sample_length=longest + config.samples.sample_tokens)
    memory = rank_memory(sizes, choice, reference, load, machine)
    whole = load.width * sizes.parameters - sizes.saved(load.width)
    # On a CPU the free memory is that beside what the run has allocated already.
    states = 0 if machine.on_cpu else memory.states + memory.buckets
    return states + whole + memory.sampling <= USABLE * machine.device_memory
