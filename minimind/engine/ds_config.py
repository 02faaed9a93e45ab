"""Turns DeepSpeed files into complete configurations: no "auto", no unknown key, no contradiction to a flag.

    file + settings + ranks -> resolve_policy -> policy configuration, settings with the file's values
                            -> resolve_reference -> reference configuration

DeepSpeed itself ignores unknown top-level keys and most values "auto" silently. Here each is a problem, and all
problems are raised together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minimind.config import DEEPSPEED_FILE, Settings
from minimind.engine.ds_optimizer import check_under_zero, choose_optimizer
from minimind.engine.ds_schema import checked_keys, read_config_file, value_at
from minimind.engine.ds_zero import has_plain_shards, resolve_overlap, resolve_zero, swaps_to_nvme
from minimind.engine.patches.catalog import PATCHES
from minimind.engine.patches.registry import flag_problems
from minimind.engine.trackers import bind_wandb, run_name
from minimind.errors import ConfigError

# Keys of the file that a flag also sets: key -> flag.
_BOUND = {
    "train_micro_batch_size_per_gpu": "batch_size",
    "gradient_accumulation_steps": "accumulation_steps",
    "gradient_clipping": "grad_clip",
    "optimizer.params.lr": "learning_rate",
}
# Precision -> what DeepSpeed does wrong in it without ZeRO. Seen in 0.19.8: only ZeRO's optimizers scale the loss, and
# that of float16 without ZeRO divides the gradients by the scale all the same.
_WRONG_AT_STAGE_0 = {
    "bfloat16": "would take an optimizer step before the first",
    "float16": "would divide the gradients by a loss scale that the loss does not have",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """A complete DeepSpeed configuration.

    Attributes:
        values: the configuration for `deepspeed.initialize`.
        stage: ZeRO stage.
        settings: the run's settings, with the values that the file sets.
        overridden: keys whose value differs from the file's -> the reason.
    """

    values: dict[str, Any]
    stage: int
    settings: Settings
    overridden: Mapping[str, str] = dataclasses.field(default_factory=dict)


def resolve_policy(path: Path, settings: Settings, world_size: int, on_cpu: bool) -> ResolvedConfig:
    """The policy's configuration.

    Raises:
        ConfigError: lists every problem of the file, and every contradiction to flags and ranks.
    """
    values = read_config_file(path)
    problems = checked_keys(path, values)
    settings = _bind_dtype(values, settings, problems)
    # Before the flags are bound: it may replace the section that has the learning rate, and turn clipping off.
    settings, overridden = choose_optimizer(values, settings, on_cpu, problems)
    # Asked before `_bind_flags` fills the key, because `_bind_batch` may still choose an open value.
    fixed_accumulation = not _is_open(values, "gradient_accumulation_steps")
    settings = _bind_flags(values, settings, problems)
    settings = _bind_batch(values, settings, world_size, fixed_accumulation, problems)
    if "scheduler" in values:
        problems.append("'scheduler' is not taken from the file: use --learning_rate and --lr_schedule")
    _complete_monitors(values, settings, problems)
    settings = bind_wandb(values, settings, problems)
    stage = resolve_zero(values, world_size, on_cpu, problems)
    overridden |= check_under_zero(values, settings, stage, problems)
    if swaps_to_nvme(values) and settings.explicit("keep_checkpoints"):
        problems.append("--keep_checkpoints: no checkpoints are written when states swap to NVMe; remove the flag")
    dtype = settings.config.optimisation.dtype
    if stage == 0 and dtype in _WRONG_AT_STAGE_0:
        problems.append(
            f"{dtype} at ZeRO stage 0: DeepSpeed {_WRONG_AT_STAGE_0[dtype]}; use stage 1 (ds_configs/zero1.json) or "
            "--dtype float32"
        )
    if stage == 3 and settings.config.engine.use_compile:
        problems.append(
            "--use_compile 1 needs ZeRO stage 2 or lower: stage 3 gathers weights inside the compiled blocks"
        )
    if on_cpu and dtype == "float16":
        problems.append("float16 needs a GPU; use --dtype bfloat16 or float32 here")
    problems += flag_problems(settings.config.engine.disable_patches, PATCHES)
    problems += _left_over_autos(values)
    if problems:
        raise ConfigError.from_problems([f"{path}: {problem}" for problem in problems])
    overridden |= resolve_overlap(values, world_size)
    return ResolvedConfig(values=values, stage=stage, settings=settings, overridden=overridden)


def take_batch(path: Path, settings: Settings) -> Settings:
    """Settings with a file's `batch_size` and `accumulation_steps`. Problems are left to `resolve_policy`.

    Raises:
        ConfigError: the file cannot be read.
    """
    batch = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return _bind_flags({key: value for key, value in read_config_file(path).items() if key in batch}, settings, [])


def resolve_reference(path: Path, settings: Settings, world_size: int, on_cpu: bool) -> ResolvedConfig:
    """The reference's configuration: always ZeRO-3, never an optimizer, the policy's precision.

    Raises:
        ConfigError: as `resolve_policy`, and another stage or an optimizer.
    """
    values = read_config_file(path)
    problems = checked_keys(path, values)
    settings = _bind_dtype(values, settings, problems)
    # DeepSpeed requires these keys of every engine, although the reference takes no optimizer step.
    values["train_micro_batch_size_per_gpu"] = settings.config.optimisation.batch_size
    values["train_batch_size"] = settings.config.optimisation.batch_size * world_size
    values["gradient_accumulation_steps"] = 1
    _complete_monitors(values, settings, problems)
    problems += [
        f"{key!r} does not apply to the reference; remove it" for key in ("optimizer", "scheduler") if key in values
    ]
    stage = resolve_zero(values, world_size, on_cpu, problems)
    if swaps_to_nvme(values):
        problems.append(
            "'zero_optimization.offload_param.device' is nvme: the reference would swap to the policy's files; "
            "offload it to CPU memory instead (ds_configs/reference_offload.json)"
        )
    if stage != 3:
        problems.append(f"zero_optimization.stage is {stage}; the reference is always a ZeRO-3 shard")
    if settings.config.engine.reference_update and not has_plain_shards(values):
        problems.append(
            "--reference_update writes the reference's shards, which ZeRO++ keeps twice or quantized; use "
            "ds_configs/reference.json"
        )
    problems += _left_over_autos(values)
    if problems:
        raise ConfigError.from_problems([f"{path}: {problem}" for problem in problems])
    return ResolvedConfig(values=values, stage=stage, settings=settings)


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        values = values.setdefault(part, {})
    values[last] = value


def _is_open(values: Mapping[str, Any], path: str) -> bool:
    """Whether a key has no value yet: it is missing or "auto"."""
    return value_at(values, path) in (None, "auto")


def _bind_dtype(values: dict[str, Any], settings: Settings, problems: list[str]) -> Settings:
    """Match the precision, `bf16.enabled` and `fp16.enabled`, with --dtype."""
    switches = {"bfloat16": "bf16.enabled", "float16": "fp16.enabled"}
    fixed = {dtype: value_at(values, path) for dtype, path in switches.items() if not _is_open(values, path)}
    on = [dtype for dtype, enabled in fixed.items() if enabled is True]
    if len(on) == 2:
        problems.append("bf16 and fp16 are both enabled; choose one")
        return settings
    dtype = settings.config.optimisation.dtype
    # The file turns another precision on, or this one off.
    contradiction = (on and on[0] != dtype) or fixed.get(dtype) is False
    if contradiction and settings.explicit("dtype"):
        problems.append(f"'{switches.get(dtype, switches['bfloat16'])}' contradicts --dtype {dtype}")
    elif contradiction:
        settings = settings.with_values({"dtype": on[0] if on else "float32"}, DEEPSPEED_FILE)
    for name, path in switches.items():
        _set(values, path, name == settings.config.optimisation.dtype)
    return settings


def _bind_flags(values: dict[str, Any], settings: Settings, problems: list[str]) -> Settings:
    """Fill keys without a value from flags; take the file's values into the settings unless a flag contradicts them."""
    for path, flag in _BOUND.items():
        value, ours = value_at(values, path), settings.values[flag]
        if _is_open(values, path):
            _set(values, path, ours)
            continue
        # JSON may have 1 for 1.0. A switch is no number, although Python's bool is an int.
        wanted = (int,) if isinstance(ours, int) else (int, float)
        low = 0 if flag == "grad_clip" else None
        if isinstance(value, bool) or not isinstance(value, wanted) or (value < low if low == 0 else value <= 0):
            kind = (
                "a whole number above 0" if isinstance(ours, int) else f"a number {'from' if low == 0 else 'above'} 0"
            )
            problems.append(f"'{path}' is {value!r}; {kind} or \"auto\" is expected")
        elif value != ours and settings.explicit(flag):
            problems.append(f"'{path}' is {value} but --{flag} is {ours}; drop one, or write \"auto\" in the file")
        elif not settings.explicit(flag):
            settings = settings.with_values({flag: value}, DEEPSPEED_FILE)
    return settings


def _bind_batch(
    values: dict[str, Any], settings: Settings, world_size: int, fixed_accumulation: bool, problems: list[str]
) -> Settings:
    """Make sure that global batch = micro-batch x accumulation steps x ranks; add a problem if it cannot be."""
    micro, accumulation = settings.config.optimisation.batch_size, settings.config.optimisation.accumulation_steps
    total = value_at(values, "train_batch_size")
    if total in (None, "auto"):
        values["train_batch_size"] = micro * accumulation * world_size
        return settings
    if isinstance(total, bool) or not isinstance(total, int) or total < 1:
        problems.append(f"'train_batch_size' is {total!r}; a whole number above 0 or \"auto\" is expected")
        return settings
    ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
    open_accumulation = not fixed_accumulation and not settings.explicit("accumulation_steps")
    if open_accumulation and total % (micro * world_size) == 0:
        accumulation = total // (micro * world_size)
        values["gradient_accumulation_steps"] = accumulation
        return settings.with_values({"accumulation_steps": accumulation}, DEEPSPEED_FILE)
    if total != micro * accumulation * world_size:
        problems.append(
            f"'train_batch_size' is {total}, but batch_size {micro} x accumulation_steps {accumulation} x {ranks} is "
            f'{micro * accumulation * world_size}; write "auto" or change one of them'
        )
    return settings


def _complete_monitors(values: dict[str, Any], settings: Settings, problems: list[str]) -> None:
    """Let monitors that write files write into the run's folder. A run has its name in TensorBoard from its folder."""
    run = settings.config.run
    name, folder = run_name(run), Path(run.save_dir)
    for monitor, path, job in (("tensorboard", str(folder / "tensorboard"), name), ("csv_monitor", str(folder), "csv")):
        section = values.get(monitor)
        if not isinstance(section, dict):
            continue
        given = section.get("job_name", "auto")
        if monitor == "tensorboard" and settings.explicit("run_name") and given not in ("auto", name):
            problems.append(f"'tensorboard.job_name' is {given!r}, but --run_name is {name}; drop one")
        if section.get("output_path", "auto") == "auto":
            section["output_path"] = path
        if given == "auto":
            section["job_name"] = job


def _left_over_autos(values: Any, path: str = "") -> list[str]:
    """A problem for every remaining "auto"."""
    if values == "auto":
        return [f"'{path}' is \"auto\", which is not supported for this key; give a value or remove the key"]
    items: Iterator[tuple[str, Any]] = iter(values.items() if isinstance(values, dict) else ())
    return [p for key, value in items for p in _left_over_autos(value, f"{path}.{key}" if path else key)]
