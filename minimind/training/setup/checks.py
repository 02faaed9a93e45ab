"""Checks of a run's settings against its files, before anything is loaded.

    Draft -> every function of CHECKS -> errors, which `prepare` raises together

A check is one function of a draft that yields user errors. Add it to CHECKS, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from minimind.data.selection import KEEP
from minimind.data.sets import plain_words
from minimind.data.sources import find_sources
from minimind.engine.trackers import tracker_name
from minimind.errors import ConfigError, DataError, MiniMindError
from minimind.model.backend_choice import backend_obstacle
from minimind.model.dropout import dropout_fields
from minimind.model.family import family_of, model_identity
from minimind.model.router_loss import has_router_loss
from minimind.native import processor
from minimind.objective.losses import Need
from minimind.training.jobs.kinds import kind_of
from minimind.training.setup.device import device_problem
from minimind.training.setup.draft import Check, Draft
from minimind.training.setup.evaluation_checks import EVALUATION_CHECKS
from minimind.training.setup.sample_prompts import SAMPLE_CHECKS
from minimind.training.setup.start_weights import MODEL_SETTINGS, adapter_name, model_setting, weights_name
from minimind.training.setup.streaming_checks import STREAMING_CHECKS
from minimind.training.setup.tokenizers import read_vocabulary


def data_files_exist(draft: Draft) -> Iterator[MiniMindError]:
    """Data files are given, are there and hold rows; weights are for training data."""
    config, data = draft.settings.config, draft.settings.config.data
    if not (kind_of(config).has_demo or data.data_path):
        yield ConfigError(f"--data_path is missing: files with {config.items}")
    for flag, words in (("data_path", data.data_path), ("eval_data_path", plain_words(data.eval_data_path))):
        try:
            sources = find_sources(words)
        except DataError as error:
            yield DataError(f"--{flag} {error}")
            continue
        weighted = [source.word for source in sources if source.weight != 1]
        if flag == "eval_data_path" and weighted:
            yield DataError(f"--{flag} {weighted[0]}: an evaluation takes each pair once; leave the weight out")


def flags_have_their_partner(draft: Draft) -> Iterator[MiniMindError]:
    """A flag that only works together with another one is not given alone."""
    settings, config = draft.settings, draft.settings.config
    if settings.explicit("on_bad_checkpoint") and not config.run.from_resume:
        yield ConfigError("--on_bad_checkpoint needs --from_resume 1")
    if settings.explicit("wandb_project") and not config.run.use_wandb:
        yield ConfigError("--wandb_project needs --use_wandb 1")


def run_name_names_a_folder(draft: Draft) -> Iterator[MiniMindError]:
    """--run_name can be the name of a folder, which is where TensorBoard finds it."""
    name = draft.settings.config.run.run_name
    if name is not None and (name != Path(name).name or name in (".", "..")):
        yield ConfigError(f"--run_name {name}: TensorBoard takes it from a folder of this name; leave out the path")


def ledger_has_pairs(draft: Draft) -> Iterator[MiniMindError]:
    """--ledger 1 is for losses of pairs."""
    objective = draft.objective
    if draft.settings.config.run.ledger and objective is not None and Need.LABELS in objective.needs:
        yield ConfigError(
            f"--ledger 1: a ledger is of pairs, and --loss {objective.name} takes answers with labels; drop --ledger"
        )


def tracker_is_installed(draft: Draft) -> Iterator[MiniMindError]:
    """A package for --use_wandb is installed where rank 0 runs."""
    if draft.settings.config.run.use_wandb and draft.world.is_main and tracker_name() is None:
        yield ConfigError("--use_wandb 1: neither swanlab nor wandb is installed; pip install swanlab, or wandb")


def device_is_that_of_the_launcher(draft: Draft) -> Iterator[MiniMindError]:
    """--device names the device that this rank has."""
    given, world = draft.settings.config.engine.device, draft.world
    if given is not None and (problem := device_problem(given, world.device, world.size)):
        yield ConfigError(f"--device {given}: {problem}")


def one_flag_names_the_shape(draft: Draft) -> Iterator[MiniMindError]:
    """--data_format, which reads no dataset_info.json, is not given beside one."""
    data = draft.settings.config.data
    if data.dataset_info and data.data_format != "auto":
        yield ConfigError(f"--data_format {data.data_format} and --dataset_info both name the shape; drop one")


def row_policies_agree(draft: Draft) -> Iterator[MiniMindError]:
    """--on_bad_row keep, which stands for --on_long_row keep too, is not given beside another --on_long_row."""
    data = draft.settings.config.data
    if data.on_bad_row == KEEP and data.on_long_row != KEEP:
        yield ConfigError(
            f"--on_bad_row keep means --on_long_row keep, but --on_long_row is {data.on_long_row}; for rows that are "
            "wrong give --on_bad_row skip"
        )


def demo_keeps_its_weights(draft: Draft) -> Iterator[MiniMindError]:
    """The demo's pairs are not trained on with other weights under the demo's tokenizer."""
    settings, given = draft.settings, draft.settings.config.model.from_weight
    foreign = settings.explicit("from_weight") and given != "none" and not settings.explicit("tokenizer_path")
    if draft.is_demo and foreign:
        yield ConfigError(
            f"--from_weight {given} without --data_path: the demo's pairs are made for the demo's weights; "
            "give your pairs with --data_path, or leave --from_weight out"
        )


def weights_are_complete(draft: Draft) -> Iterator[MiniMindError]:
    """The weight file holds the tensors of its model."""
    if draft.source is None:
        return
    try:
        draft.source.check_fit()
    except MiniMindError as error:
        yield error


def sizes_are_those_of_the_weights(draft: Draft) -> Iterator[MiniMindError]:
    """Flags of model sizes agree with the weights, and rows are not longer than the model's positions."""
    if draft.source is None:
        return
    settings = draft.settings
    for name in MODEL_SETTINGS:
        given, value = getattr(settings.config.model, name), model_setting(draft.source, name)
        # A 0 on the command line means "not given", except for a switch.
        if settings.explicit(name) and given != value and (given or name == "use_moe"):
            found = f"has {_shown(value)}" if value is not None else "has no such setting"
            yield ConfigError(f"--{name} is {_shown(given)}, but {draft.source.origin} {found}; drop the flag")
    longest, wanted = model_setting(draft.source, "max_position_embeddings"), settings.config.data.max_seq_len
    if longest is not None and wanted > longest:
        yield ConfigError(f"--max_seq_len is {wanted}, but the model has {longest} positions")


def tokenizer_fits_the_model(draft: Draft) -> Iterator[MiniMindError]:
    """Every token id of the tokenizer is in the model's vocabulary."""
    if draft.source is None or draft.tokenizer is None:
        return
    largest = max(draft.tokenizer.get_vocab().values()) + 1
    known = model_setting(draft.source, "vocab_size")
    if known is not None and largest > known:
        yield ConfigError(
            f"the tokenizer at {draft.tokenizer.name_or_path} has {largest} tokens, {draft.source.origin} only "
            f"{known}; they do not belong together"
        )


def reference_reads_the_same_tokens(draft: Draft) -> Iterator[MiniMindError]:
    """A reference that is another model is complete, knows the run's tokens by the same ids, and rows of their length.

    Its own tokenizer is compared where its folder has one. A `.pth` has none: then the two embeddings must be equally
    large.
    """
    reference, source, tokenizer = draft.other_reference, draft.source, draft.tokenizer
    if reference is None or source is None or tokenizer is None:
        return
    try:
        reference.check_fit()
        own = read_vocabulary(reference.tokenizer_path)
    except MiniMindError as error:
        yield error
        return
    shown, tokens = f"--reference_weight {reference.origin}", tokenizer.get_vocab()
    sizes = [model_setting(one, "vocab_size") for one in (reference, source)]
    if own is not None:
        different = sorted(token for token, number in tokens.items() if own.get(token) != number)
        if different:
            yield ConfigError(
                f"{shown}: its tokenizer is another one: {len(different)} of {len(tokens)} tokens have other ids there "
                f"or none, the first is {different[0]!r}; a reference must have the policy's vocabulary"
            )
    elif sizes[0] != sizes[1]:
        yield ConfigError(
            f"{shown}: its vocabulary has {sizes[0]} tokens, {source.origin} {sizes[1]}; a reference must have the "
            "policy's vocabulary"
        )
    if sizes[0] is not None and max(tokens.values()) >= sizes[0]:
        yield ConfigError(f"{shown}: it has {sizes[0]} embeddings, and the tokenizer {max(tokens.values()) + 1} tokens")
    longest, wanted = model_setting(reference, "max_position_embeddings"), draft.settings.config.data.max_seq_len
    if longest is not None and wanted > longest:
        yield ConfigError(f"--max_seq_len is {wanted}, but the reference {reference.origin} has {longest} positions")


def reference_can_follow(draft: Draft) -> Iterator[MiniMindError]:
    """A reference that moves towards the policy has its configuration."""
    reference, source = draft.other_reference, draft.source
    if reference is None or source is None or not draft.settings.config.engine.reference_update:
        return
    if model_identity(reference.config) != model_identity(source.config):
        yield ConfigError(
            f"--reference_update: {reference.origin} has another configuration than {source.origin}, so its weights "
            "cannot move towards the policy's; drop --reference_update or --reference_weight"
        )


def mixture_has_its_loss(draft: Draft) -> Iterator[MiniMindError]:
    """A coefficient of the experts' auxiliary loss is given only for a model that has this loss."""
    given = draft.settings.config.model.router_aux_loss_coef
    if draft.source is not None and given and not has_router_loss(draft.source.config):
        name = family_of(draft.source.config).label(draft.source.config)
        yield ConfigError(
            f"--router_aux_loss_coef {given:g}: {draft.source.origin} is a {name} model, which has no experts or no "
            "auxiliary loss of them; drop the flag"
        )


def attention_is_available(draft: Draft) -> Iterator[MiniMindError]:
    """The attention backend that a flag names can exist on this device; it is tried later."""
    config = draft.settings.config
    if not draft.engine_resolved or config.engine.attention == "auto":
        return
    dtype = getattr(torch, config.optimisation.dtype)
    if problem := backend_obstacle(config.engine.attention, draft.world.device, dtype):
        yield ConfigError(f"--attention {config.engine.attention}: {problem}; use auto or sdpa")


def dropout_allows_a_look_ahead(draft: Draft) -> Iterator[MiniMindError]:
    """A loss of the global batch computes several micro-batches twice, which dropout would make two results."""
    config, objective = draft.settings.config, draft.objective
    if draft.source is None or objective is None or not draft.engine_resolved or not config.model.dropout:
        return
    optimisation = config.optimisation
    several = optimisation.accumulation_steps > 1 or optimisation.micro_batch_tokens is not None
    if Need.GLOBAL_BATCH in objective.needs and several and dropout_fields(draft.source.config):
        yield ConfigError(
            f"--dropout 1: --loss {objective.name} computes each of several micro-batches twice, and dropout makes the "
            "two differ; use --accumulation_steps 1 without --micro_batch_tokens, or --dropout 0"
        )


def start_weights_are_not_overwritten(draft: Draft) -> Iterator[MiniMindError]:
    """The run does not write over the weights or the adapter that it starts from, or over its reference."""
    if draft.source is None:
        return
    config = draft.settings.config
    start, written = config.adapters.from_adapter, (Path(config.run.save_dir) / adapter_name(config)).absolute()
    if start and Path(start).absolute() in (written, written.with_name(f"{written.name}.pth")):
        yield ConfigError(
            f"--from_adapter {start} would be overwritten by this run; give another --save_weight or --save_dir"
        )
    target = (Path(config.run.save_dir) / weights_name(config)).absolute()
    for flag, read in (("from_weight", draft.source), ("reference_weight", draft.other_reference)):
        if read is None or Path(read.origin).absolute() not in (target, target.with_name(f"{target.name}.pth")):
            continue
        yield ConfigError(
            f"--{flag} {read.origin} would be overwritten by this run; give another --save_weight or --save_dir"
        )


def processor_is_known(draft: Draft) -> Iterator[MiniMindError]:
    """MINIMIND_CPU names instructions that this machine may have."""
    if draft.world.on_cpu and (problem := processor.problem()):
        yield ConfigError(problem)


CHECKS: Sequence[Check] = (
    data_files_exist,
    *EVALUATION_CHECKS,
    *STREAMING_CHECKS,
    *SAMPLE_CHECKS,
    flags_have_their_partner,
    run_name_names_a_folder,
    ledger_has_pairs,
    tracker_is_installed,
    device_is_that_of_the_launcher,
    one_flag_names_the_shape,
    row_policies_agree,
    demo_keeps_its_weights,
    weights_are_complete,
    sizes_are_those_of_the_weights,
    tokenizer_fits_the_model,
    reference_reads_the_same_tokens,
    reference_can_follow,
    mixture_has_its_loss,
    attention_is_available,
    dropout_allows_a_look_ahead,
    start_weights_are_not_overwritten,
    processor_is_known,
)


def _shown(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
