"""A training run from the command line to the last file: the top of the house.

argv -> settings -> prepare -> engines -> loop -> weights
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind import demo, native
from minimind.checkpoints.find import Checkpoint, find_checkpoint
from minimind.checkpoints.store import Checkpoints
from minimind.config import JobConfig, Settings, parse_settings
from minimind.data.loader import Layout
from minimind.data.packs import pack, pad
from minimind.data.sampler import PairSampler
from minimind.data.table import PairTable
from minimind.engine.ds_zero import swaps_to_nvme
from minimind.engine.policy import Policy
from minimind.engine.start import start_rank
from minimind.errors import ConfigError
from minimind.model.family import family_of, packing_obstacle
from minimind.model.packed_attention import FLEX, VARLEN
from minimind.objective.schedule import learning_rate_factor
from minimind.ranks import process
from minimind.ranks.preflight import check_alike
from minimind.ranks.process import World
from minimind.training.console import Console
from minimind.training.folder import drop_metrics_after, open_run_folder
from minimind.training.jobs.dpo import layouts_agree
from minimind.training.loop import Run, train
from minimind.training.samples import source_answers
from minimind.training.setup.attention import settle_attention
from minimind.training.setup.prepare import PATH_FLAGS, Prepared, input_paths, load_pairs, prepare, weights_name
from minimind.training.setup.references import open_references
from minimind.training.setup.resume import check_same_run, describe, model_identity, moved
from minimind.training.setup.space import check_space
from minimind.training.startup_report import announce_data, announce_run
from minimind.weights.io import save_huggingface, save_minimind
from minimind.weights.sources import open_weights


def main(argv: Sequence[str] | None = None) -> None:
    """Train; ends the process with status 0 after a finished run, with `process.PREEMPTED` after one that was told to
    stop and has saved, and with another after any failure."""
    with process.user_errors():
        # The ranks of a machine get the same flags, so its first rank reports an error for all of them.
        agreed = os.environ.get("LOCAL_RANK", "0") != "0"
        settings = parse_settings(sys.argv[1:] if argv is None else argv, agreed=agreed)
        world = start_rank(settings.config.run.timeout)
        _check_alike(settings, world)
        world.watch.enter("loading")
        checkpoint = _find_checkpoint(settings.config, world)
        prepared = process.agree(world, lambda: prepare(settings, world, checkpoint))
        assert prepared is not None
        finished = _train(prepared, world)
        process.end(0 if finished else process.PREEMPTED, world)


def _check_alike(settings: Settings, world: World) -> None:
    config = settings.config
    # Each machine may have them in a place of its own; what they hold is compared.
    own = (*PATH_FLAGS, "cache_dir", "num_workers")
    given = {
        f"--{name}": "not given" if value is None else value
        for name, value in settings.values.items()
        if name not in own
    }
    check_alike(world, given, input_paths(config), Path(config.run.save_dir))


def _train(prepared: Prepared, world: World) -> bool:
    """Whether the run was finished, rather than told to stop."""
    config, console = prepared.settings.config, Console(world.is_main)
    announce_run(prepared, console, world)
    world.watch.enter("tokenising")
    assert config.data.data_path is not None  # the demo has set its own
    table = load_pairs(prepared, world, config.data.data_path)
    eval_path = config.data.eval_data_path
    eval_table = None if eval_path is None else load_pairs(prepared, world, eval_path)
    stream = PairSampler(
        num_pairs=len(table),
        epochs=config.optimisation.epochs,
        micro_batch_size=config.optimisation.batch_size,
        accumulation_steps=config.optimisation.accumulation_steps,
        world_size=world.size,
        shuffle=config.data.shuffle,
        seed=config.data.seed,
        costs=table.costs,
        tokens=table.packed_tokens,
        token_budget=config.optimisation.micro_batch_tokens,
    )
    total_steps = process.from_main(world, lambda: _total_steps(stream, config))
    announce_data(console, table, eval_table, stream, total_steps, config.optimisation.max_steps)
    prepared = settle_attention(prepared, world, stream, table, console)
    config = prepared.settings.config
    fingerprint = process.from_main(world, prepared.source.fingerprint)
    described, checkpoint = describe(prepared, table, fingerprint, stream, total_steps), prepared.checkpoint
    if checkpoint is not None:
        process.from_main(world, lambda: check_same_run(checkpoint, described, stream))
    start = checkpoint.manifest.step if checkpoint is not None else 0
    checkpoints = None
    if swaps_to_nvme(prepared.policy_config.values):
        world.watch.hint = "It wrote no checkpoints, since states swap to NVMe: start anew."
    else:
        checkpoints = Checkpoints(_checkpoint_folder(config), world, described, config.run.keep_checkpoints)
    if warning := process.from_main(world, lambda: check_space(prepared, start, total_steps)):
        console.say(warning)
    process.from_main(world, lambda: open_run_folder(prepared, described["identity"], checkpoint is not None))

    world.watch.enter("building")
    process.bound_primitives(world)
    if world.on_cpu:
        native.prepare(
            kernels=config.engine.kernels == native.AUTO and config.optimisation.dtype == "bfloat16",
            heap=config.engine.keep_memory,
        )
    policy = Policy(
        prepared.source,
        prepared.policy_config,
        functools.partial(learning_rate_factor, total_steps=total_steps, warmup_steps=config.optimisation.warmup_steps),
        world,
        config.engine.attention,
    )
    if world.on_cpu and config.engine.keep_memory:
        native.keep_memory()
    layout = _choose_layout(prepared, policy, table, console)
    tables = [table] if eval_table is None else [table, eval_table]
    about = {"weights": fingerprint, **model_identity(prepared)}
    references = open_references(prepared, policy, tables, layout, about, console)
    run = Run(
        config=config,
        world=world,
        policy=policy,
        reference=references[0],
        eval_reference=references[-1],
        table=table,
        eval_table=eval_table,
        stream=stream,
        total_steps=total_steps,
        layout=layout,
        checkpoints=checkpoints,
        export=lambda: _export(prepared, policy),
        unlogged=checkpoint.manifest.unlogged if checkpoint is not None else {},
        console=console,
    )
    if config.run.from_resume:
        _resume(run, checkpoint, described)
    before = (
        source_answers(prepared.source, prepared.tokenizer, demo.SAMPLE_PROMPTS) if _samples(prepared, world) else []
    )
    finished = train(run, start)
    policy.close()
    if not finished:
        return False
    if _samples(prepared, world):
        _show_samples(prepared, before, console)
    console.say(f"\nFinished {total_steps} steps. Everything is in {config.run.save_dir}")
    if (tensorboard := prepared.policy_config.values.get("tensorboard", {})).get("enabled"):
        console.say(f"    tensorboard --logdir {tensorboard['output_path']}")
    return True


def _samples(prepared: Prepared, world: World) -> bool:
    return prepared.is_demo and world.is_main


def _total_steps(stream: PairSampler, config: JobConfig) -> int:
    total, most = stream.total_steps, config.optimisation.max_steps
    if not total:
        raise ConfigError(
            f"{stream.num_pairs} pairs x {stream.epochs} epochs do not fill one global batch of "
            f"{stream.global_batch_size}; lower --batch_size or --accumulation_steps, or use fewer ranks"
        )
    return total if most is None else min(total, most)


def _choose_layout(prepared: Prepared, policy: Policy, table: PairTable, console: Console) -> Layout:
    """Packs wherever the model can take them; where it cannot, rows padded to the longest of a micro-batch."""
    pad_id = prepared.tokenizer.pad_token_id or 0
    padded: Layout = functools.partial(pad, pad_id=pad_id)
    model = prepared.source.config
    if family_of(model).packs_by_construction:
        return pack
    obstacle = packing_obstacle(model, prepared.settings.config.data.max_seq_len)
    if obstacle is None and not layouts_agree(policy, pack([table[0]]), pad([table[0]], pad_id)):
        obstacle = "its log-probs of a pack are not those of the same rows padded"
    if obstacle is None:
        return pack
    settings, asked = prepared.settings, ""
    if settings.config.optimisation.micro_batch_tokens is not None:
        asked = "--micro_batch_tokens counts tokens of packs"
    elif settings.explicit("attention") and settings.config.engine.attention in (VARLEN, FLEX):
        asked = f"--attention {settings.config.engine.attention} is for packs"
    if asked:
        error = ConfigError(f"{asked}, and rows must be padded here: {obstacle}")
        error.agreed = True
        raise error
    console.say(f"  rows are padded, not packed: {obstacle}")
    return padded


def _checkpoint_folder(config: JobConfig) -> Path:
    return Path(config.run.save_dir) / "checkpoints"


def _find_checkpoint(config: JobConfig, world: World) -> Checkpoint | None:
    if not config.run.from_resume:
        return None
    return find_checkpoint(_checkpoint_folder(config), world, config.run.on_bad_checkpoint)


def _resume(run: Run, checkpoint: Checkpoint | None, described: dict[str, Any]) -> None:
    if checkpoint is None:
        run.console.say(f"  nothing to go on from in {run.config.run.save_dir}: starting at step 0")
        return
    for tag, problem in checkpoint.damaged.items():
        run.console.say(f"  {tag} is damaged and put aside as {tag}.damaged: {problem}")
    step = checkpoint.manifest.step
    run.world.watch.enter("resuming")
    assert run.checkpoints is not None  # else check_same_run has refused the one that was found
    run.checkpoints.load(run.policy, checkpoint)
    run.console.say(f"  going on after step {step}{moved(checkpoint, described)}")
    process.from_main(run.world, lambda: drop_metrics_after(Path(run.config.run.save_dir), step))


def _export(prepared: Prepared, policy: Policy) -> None:
    """Write the weights as users exchange them: MiniMind's `.pth` for its models, a Hugging Face folder for all."""
    policy.world.watch.enter("exporting")
    state = policy.full_state()
    process.from_main(policy.world, lambda: _write_weights(prepared, state, policy.world))


def _write_weights(prepared: Prepared, state: dict[str, Tensor], world: World) -> None:
    config, folder = prepared.settings.config, Path(prepared.settings.config.run.save_dir)
    name = weights_name(prepared.settings.config)
    if family_of(prepared.source.config).exports_pth:
        save_minimind(state, folder / f"{name}.pth", getattr(torch, config.run.save_dtype))
        world.watch.tick()
    dtype = getattr(torch, config.optimisation.dtype)
    save_huggingface(prepared.source.config, state, folder / name, prepared.tokenizer, dtype)


def _show_samples(prepared: Prepared, before: list[str], console: Console) -> None:
    trained = open_weights(Path(prepared.settings.config.run.save_dir) / weights_name(prepared.settings.config), {})
    after = source_answers(trained, prepared.tokenizer, demo.SAMPLE_PROMPTS)
    console.say("\nAnswers to held-out prompts, before and after:")
    for prompt, old, new in zip(demo.SAMPLE_PROMPTS, before, after, strict=True):
        console.say(f"\n  {prompt}\n    before  {old}\n    after   {new}")
