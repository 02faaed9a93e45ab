"""One export: the weights, what they become, and the files.

SOURCE, flags -> Export.open -> write_folder, write_pth -> values of export.json
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from minimind.conversion.architectures import PLAIN, plain_config
from minimind.conversion.base import Base, open_base
from minimind.conversion.flags import ExportFlags
from minimind.conversion.folder import with_special_tokens, write_config, write_tensors
from minimind.conversion.read_back import compare, logits_of_folder, logits_of_source
from minimind.conversion.record import is_export, record, write_record
from minimind.conversion.rounding import DTYPES, Rounded, dtype_name
from minimind.conversion.tensors import as_minimind, stored_tensors
from minimind.conversion.tokenizer_files import copy_tokenizer, open_tokenizer, tokenizer_folder
from minimind.conversion.trained import PTH, ROPE_SCALING, Trained, open_trained
from minimind.durable import whole_folder
from minimind.errors import ConfigError, WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.weights.files import TensorFile, open_pickled
from minimind.weights.inferred_config import NOT_IN_PTH, infer_config
from minimind.weights.io import save_minimind
from minimind.weights.names import EMBEDDING, HEAD
from minimind.weights.sources import MiniMindSource, WeightSource

_ARCHITECTURES = {
    "minimind": "MiniMindForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
# Fields of a configuration that do not change what a model computes from tokens.
_NO_EFFECT = {
    "architectures", "dtype", "transformers_version", "dropout", "initializer_range", "router_aux_loss_coef", "seq_aux",
    "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "auto_map", "_name_or_path",
}  # fmt: skip
_NO_EXPERTS = {"num_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "norm_topk_prob"}


@dataclasses.dataclass(kw_only=True)
class Export:
    """What is exported, and to what.

    Attributes:
        trained: the source.
        weights: its weights under MiniMind's names, with the configuration that is exported.
        to: the form, as --to names it.
        config: configuration of the form; for a `.pth` that of `weights`.
        dtype: of the files.
        base: the start weights.
        flags: the script's own flags.
        tokenizer: the folder of the tokenizer; None for a `.pth`.
        pth_flags: flags with which a `.pth` must be read; empty if none is needed.
    """

    trained: Trained
    weights: WeightSource
    to: str
    config: PretrainedConfig
    dtype: torch.dtype
    base: Base
    flags: ExportFlags
    tokenizer: Path | None
    pth_flags: str = ""

    @classmethod
    def open(cls, source: Path, flags: ExportFlags, model: Mapping[str, Any]) -> Export:
        """Open the source, and check that it has an equal in the form.

        Args:
            flags: the script's own flags; --to is given.
            model: the model flags that were given.

        Raises:
            MiniMindError: it cannot be opened, or has none.
        """
        to = flags.to
        assert to is not None
        given = Path(flags.base) if flags.base else None
        trained = open_trained(source, model, given)
        weights = as_minimind(trained.weights, yarn=bool(model.get(ROPE_SCALING)))
        config = weights.config
        if to in PLAIN:
            plain = plain_config(weights.config, to)
            # A model of this form already keeps everything that its configuration says.
            same = trained.weights.config.model_type == plain.model_type and not model.get(ROPE_SCALING)
            config = copy.deepcopy(trained.weights.config) if same else plain
        tokenizer = None if to == PTH else tokenizer_folder(flags.tokenizer_path, trained.tokenizer, str(source))
        dtype = DTYPES[flags.dtype] if flags.dtype else _dtype_of(weights)
        base = open_base(trained, given, model)
        return cls(
            trained=trained,
            weights=weights,
            to=to,
            config=copy.deepcopy(config),
            dtype=dtype,
            base=base,
            flags=flags,
            tokenizer=tokenizer,
        )


def write_folder(job: Export, folder: Path) -> dict[str, Any]:
    """Write a Hugging Face folder; returns the values of its `export.json`.

    Raises:
        WeightsError: a weight does not fit the dtype, or what was written computes something else.
        OSError, RuntimeError, SafetensorError: a file cannot be written.
    """
    assert job.tokenizer is not None
    tokenizer = open_tokenizer(job.tokenizer)
    if len(tokenizer) > job.config.vocab_size:
        raise ConfigError(
            f"{job.tokenizer}: the tokenizer has {len(tokenizer)} tokens, and the model {job.config.vocab_size}; give "
            "the model's with --tokenizer_path"
        )
    with_special_tokens(job.config, tokenizer)
    rounded = Rounded(job.weights, job.dtype, job.base.weights)
    stored = stored_tensors(job.weights, stacked=job.to not in PLAIN)
    with whole_folder(folder) as partial:
        write_tensors(partial, stored, job.dtype, rounded.read, job.flags.max_shard_size)
        architecture = _ARCHITECTURES[job.config.model_type]
        write_config(job.config, architecture, job.dtype, partial, job.flags.auto_map)
        copy_tokenizer(job.tokenizer, partial)
        difference = None
        if job.flags.check:
            expected = logits_of_source(job.weights, rounded.read)
            difference = compare(expected, logits_of_folder(partial), folder)
        values = _record(job, rounded, difference, [path for path in partial.iterdir() if path.is_file()])
        write_record(values, partial)
    return values


def write_pth(job: Export, out: Path) -> dict[str, Any]:
    """Write MiniMind's `.pth`, and `export.json` beside it; returns the values of the latter.

    Args:
        out: the file, or the folder for a file with MiniMind's name.

    Raises:
        WeightsError: a weight does not fit the dtype, the file cannot be written, or it would be read as another model.
        OSError: `export.json` cannot be written.
    """
    path = out if out.suffix == ".pth" else out / pth_name(job)
    if path.exists() and not is_export(path):
        raise ConfigError(f"--out {path}: is there, and no earlier export; give another path, or remove it")
    job.pth_flags = flags_for_pth(job.weights)
    rounded = Rounded(job.weights, job.dtype, job.base.weights)
    state = {name: rounded.read(name) for name in job.weights.shapes()}
    difference = None

    def check(partial: Path) -> None:
        nonlocal difference
        if job.flags.check:
            expected = logits_of_source(job.weights, rounded.read)
            written = MiniMindSource(open_pickled(partial), job.weights.config)
            difference = compare(expected, logits_of_source(written, written.read), path)

    save_minimind(state, path, job.dtype, check)
    values = _record(job, rounded, difference, [path])
    write_record(values, path.parent)
    return values


def _record(job: Export, rounded: Rounded, difference: float | None, files: Sequence[Path]) -> dict[str, Any]:
    return record(
        job.trained,
        job.base,
        rounded.moved,
        to=job.to,
        dtype=dtype_name(job.dtype),
        logits_differ_by=difference,
        files=files,
    )


def pth_name(job: Export) -> str:
    """MiniMind's name of a file of weights: that of the run, hidden size, _moe for a mixture."""
    config = job.weights.config
    name = job.trained.setting("save_weight") or "export"
    return f"{name}_{config.hidden_size}{'_moe' if config.use_moe else ''}.pth"


def flags_for_pth(weights: WeightSource) -> str:
    """The model flags with which a `.pth` of these weights must be read; empty if it needs none.

    Raises:
        WeightsError: even with flags it would be read as another model.
    """
    config = weights.config
    assert isinstance(config, MiniMindConfig)
    read = _read_config(weights, {})
    needed = {name: getattr(config, name) for name in NOT_IN_PTH if getattr(config, name) != getattr(read, name)}
    again = _read_config(weights, {name: value for name, value in needed.items() if value}).to_dict()
    ignored = _NO_EFFECT if config.use_moe else _NO_EFFECT | _NO_EXPERTS
    # YaRN depends on the length of the context.
    ignored = ignored if config.yarn is None else ignored - {"max_position_embeddings"}
    lost = {
        name: value
        for name, value in config.to_dict().items()
        if name not in ignored and again.get(name, value) != value
    }
    if lost:
        listed = ", ".join(f"{name} {value!r} (it would be {again[name]!r})" for name, value in lost.items())
        raise WeightsError(f"a .pth does not tell {listed}; export --to minimind, whose config.json does")
    # 15 digits: fewer would round a rope_theta.
    shown = {name: int(value) if isinstance(value, bool) else f"{value:.15g}" for name, value in needed.items()}
    return " ".join(f"--{name} {value}" for name, value in shown.items())


def _read_config(weights: WeightSource, given: dict[str, Any]) -> MiniMindConfig:
    """The configuration that a reader infers from a `.pth` of these weights."""
    stored = stored_tensors(weights, stacked=False)
    tensors = {name: torch.empty(one.shape, device="meta") for name, one in stored.items()}
    # A head that has the values of the embedding is read as a tied one.
    tensors |= {name: weights.read(name) for name in (HEAD, EMBEDDING) if HEAD in tensors}
    return infer_config(TensorFile(Path(weights.origin), tensors), given)


def _dtype_of(weights: WeightSource) -> torch.dtype:
    """The widest dtype among the tensors of a source."""
    found = {weights.read(name).dtype for name in weights.shapes()}
    if other := found - set(DTYPES.values()):
        names = ", ".join(sorted(map(dtype_name, other)))
        raise WeightsError(f"{weights.origin}: has tensors of dtype {names}; give --dtype")
    return found.pop() if len(found) == 1 else torch.float32
