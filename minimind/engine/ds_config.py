"""DeepSpeed files -> the configurations that DeepSpeed gets: no "auto", no unknown key, no disagreement with a flag.

    file + settings + ranks -> resolve_policy -> policy configuration, settings with what the file fixed
                            -> resolve_reference -> reference configuration

DeepSpeed itself drops unknown top-level keys and most "auto"s in silence; here each is a problem, and all problems
are raised together.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from minimind.config import DEEPSPEED_FILE, Settings
from minimind.errors import ConfigError

# Sections whose keys DeepSpeed checks itself, by these models.
_SECTIONS: dict[str, Any] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "bf16": DeepSpeedBF16Config,
    "fp16": DeepSpeedFP16Config,
    "tensorboard": TensorBoardConfig,
    "wandb": WandbConfig,
    "csv_monitor": CSVConfig,
    "comet": CometConfig,
}
_OTHER_KEYS = (
    "activation_checkpointing aio checkpoint comms_logger communication_data_type compile data_types "
    "disable_allgather dump_state flops_profiler gradient_accumulation_steps gradient_allreduce_op "
    "gradient_clipping gradient_predivide_factor log_level memory_breakdown optimizer prescale_gradients "
    "seq_parallel_communication_data_type steps_per_print timers torch_autocast train_batch_size "
    "train_micro_batch_size_per_gpu wall_clock_breakdown zero_allow_untested_optimizer "
    "zero_force_ds_cpu_optimizer"
).split()
# Keys that a flag also sets.
_BOUND = {
    "train_micro_batch_size_per_gpu": "batch_size",
    "gradient_accumulation_steps": "accumulation_steps",
    "gradient_clipping": "grad_clip",
    "optimizer.params.lr": "learning_rate",
}
# AdamW as torch has it, which is what MiniMind trains with.
_ADAMW = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """A DeepSpeed configuration without an open end.

    Attributes:
        values: what `deepspeed.initialize` gets.
        stage: ZeRO stage.
        settings: the run's settings, with what the file fixed.
    """

    values: dict[str, Any]
    stage: int
    settings: Settings


def read_config_file(path: Path) -> dict[str, Any]:
    """The JSON object in a DeepSpeed file.

    Raises:
        ConfigError: missing, broken (with line), a key twice, or no object.
    """

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ConfigError(f"{path}: key {repeated[0]!r} stands there twice")
        return dict(pairs)

    if not path.is_file():
        raise ConfigError(f"{path}: no such DeepSpeed configuration; there are some in ds_configs/")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_repeats)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f", line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else f": {error}"
        raise ConfigError(f"{path}{where}; a DeepSpeed configuration is one JSON object") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a DeepSpeed configuration is one JSON object")
    return values


def resolve_policy(path: Path, settings: Settings, world_size: int, on_cpu: bool) -> ResolvedConfig:
    """The policy's configuration.

    Raises:
        ConfigError: every problem of the file, and every disagreement with flags and ranks, at once.
    """
    values = read_config_file(path)
    problems = _key_problems(values)
    values.setdefault("optimizer", {"type": "AdamW", "params": {"torch_adam": True}})
    settings = _bind_dtype(values, settings, problems)
    settings = _bind_flags(values, settings, problems)
    settings = _bind_batch(values, settings, world_size, problems)
    if "scheduler" in values:
        problems.append("'scheduler' is not taken from the file: use --learning_rate and --warmup_steps")
    _complete_optimizer(values, problems)
    _complete_monitors(values, settings.config.save_dir)
    stage = _resolve_zero(values, problems)
    dtype = settings.config.dtype
    if stage == 0 and dtype == "bfloat16":
        problems.append(
            "bfloat16 at ZeRO stage 0: DeepSpeed would take an optimizer step before the first; use stage 1 "
            "(ds_configs/zero1.json) or --dtype float32"
        )
    if stage == 3 and settings.config.use_compile:
        problems.append("--use_compile 1 needs ZeRO stage 2 or lower: stage 3 gathers weights inside what is compiled")
    if on_cpu and dtype == "float16":
        problems.append("float16 needs a GPU; use --dtype bfloat16 or float32 here")
    problems += _left_over_autos(values)
    if problems:
        raise ConfigError.from_problems([f"{path}: {problem}" for problem in problems])
    return ResolvedConfig(values=values, stage=stage, settings=settings)


def resolve_reference(path: Path, settings: Settings, world_size: int) -> ResolvedConfig:
    """The reference's configuration: always ZeRO-3, never an optimizer, the policy's precision.

    Raises:
        ConfigError: as `resolve_policy`, and another stage or an optimizer.
    """
    values = read_config_file(path)
    problems = _key_problems(values)
    settings = _bind_dtype(values, settings, problems)
    if _is_open(values, "train_micro_batch_size_per_gpu"):
        values["train_micro_batch_size_per_gpu"] = settings.config.batch_size
    values["train_batch_size"] = values["train_micro_batch_size_per_gpu"] * world_size
    values["gradient_accumulation_steps"] = 1
    problems += [f"{key!r} has no place in the reference's file" for key in ("optimizer", "scheduler") if key in values]
    stage = _resolve_zero(values, problems)
    if stage != 3:
        problems.append(f"zero_optimization.stage is {stage}; the reference is always a ZeRO-3 shard")
    problems += _left_over_autos(values)
    if problems:
        raise ConfigError.from_problems([f"{path}: {problem}" for problem in problems])
    return ResolvedConfig(values=values, stage=stage, settings=settings)


def _key_problems(values: Mapping[str, Any]) -> list[str]:
    """Unknown keys, at the top and in the sections that DeepSpeed has models for, and values of the wrong kind."""
    problems = []
    known = [*_SECTIONS, *_OTHER_KEYS, "scheduler"]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            problems.append(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    for name, model in _SECTIONS.items():
        section = values.get(name, {})
        if not isinstance(section, dict):
            problems.append(f"{name!r} is not an object")
            continue
        names = [alias for key, field in model.model_fields.items() for alias in (key, field.alias) if alias]
        for key in section:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean '{name}.{near[0]}'?" if near else ""
                problems.append(f"unknown key '{name}.{key}'{hint}")
        try:
            model(**{key: value for key, value in section.items() if key in names and value != "auto"})
        except ValidationError as error:
            for detail in error.errors():
                where = ".".join(str(part) for part in (name, *detail["loc"]))
                problems.append(f"'{where}': {detail['msg']}")
    return problems


def _get(values: Mapping[str, Any], path: str) -> Any:
    """Value under a dotted path, None where it or a part of the path is missing."""
    current: Any = values
    for part in path.split("."):
        if not isinstance(current, Mapping) or part not in current:
            return None
        current = current[part]
    return current


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        values = values.setdefault(part, {})
    values[last] = value


def _is_open(values: Mapping[str, Any], path: str) -> bool:
    """Whether a key waits for a value: missing or "auto"."""
    return _get(values, path) in (None, "auto")


def _bind_dtype(values: dict[str, Any], settings: Settings, problems: list[str]) -> Settings:
    """Agree on the precision: `bf16.enabled` and `fp16.enabled` against --dtype."""
    switches = {"bfloat16": "bf16.enabled", "float16": "fp16.enabled"}
    fixed = {dtype: _get(values, path) for dtype, path in switches.items() if not _is_open(values, path)}
    on = [dtype for dtype, enabled in fixed.items() if enabled is True]
    if len(on) == 2:
        problems.append("bf16 and fp16 are both enabled; choose one")
        return settings
    dtype = settings.config.dtype
    contradiction = (on and on[0] != dtype) or fixed.get(dtype) is False
    if contradiction and settings.explicit("dtype"):
        problems.append(f"'{switches.get(dtype, switches['bfloat16'])}' contradicts --dtype {dtype}")
    elif contradiction:
        settings = settings.with_values({"dtype": on[0] if on else "float32"}, DEEPSPEED_FILE)
    for name, path in switches.items():
        _set(values, path, name == settings.config.dtype)
    return settings


def _bind_flags(values: dict[str, Any], settings: Settings, problems: list[str]) -> Settings:
    """Fill open keys from flags; take fixed ones over, unless a flag says otherwise."""
    for path, flag in _BOUND.items():
        value, ours = _get(values, path), getattr(settings.config, flag)
        if _is_open(values, path):
            _set(values, path, ours)
            continue
        wanted = (int,) if isinstance(ours, int) else (int, float)
        low = 0 if flag == "grad_clip" else None
        if isinstance(value, bool) or not isinstance(value, wanted) or (value < low if low == 0 else value <= 0):
            kind = (
                "a whole number above 0" if isinstance(ours, int) else f"a number {'from' if low == 0 else 'above'} 0"
            )
            problems.append(f"'{path}' is {value!r}; {kind} or \"auto\" is expected")
        elif value != ours and settings.explicit(flag):
            problems.append(f"'{path}' is {value} but --{flag} is {ours}; drop one, or write \"auto\" in the file")
        elif value != ours:
            settings = settings.with_values({flag: value}, DEEPSPEED_FILE)
    return settings


def _bind_batch(values: dict[str, Any], settings: Settings, world_size: int, problems: list[str]) -> Settings:
    """Make global batch = micro-batch x accumulation steps x ranks hold, or say that it does not."""
    micro, accumulation = settings.config.batch_size, settings.config.accumulation_steps
    total = _get(values, "train_batch_size")
    if total in (None, "auto"):
        values["train_batch_size"] = micro * accumulation * world_size
        return settings
    if isinstance(total, bool) or not isinstance(total, int) or total < 1:
        problems.append(f"'train_batch_size' is {total!r}; a whole number above 0 or \"auto\" is expected")
        return settings
    ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
    if settings.origins["accumulation_steps"] == "default" and total % (micro * world_size) == 0:
        accumulation = total // (micro * world_size)
        values["gradient_accumulation_steps"] = accumulation
        return settings.with_values({"accumulation_steps": accumulation}, DEEPSPEED_FILE)
    if total != micro * accumulation * world_size:
        problems.append(
            f"'train_batch_size' is {total}, but batch_size {micro} x accumulation_steps {accumulation} x {ranks} is "
            f'{micro * accumulation * world_size}; write "auto" or change one of them'
        )
    return settings


def _complete_optimizer(values: dict[str, Any], problems: list[str]) -> None:
    """An Adam section without an open end: what is not given is torch's default, as in MiniMind."""
    optimizer = values["optimizer"]
    if not isinstance(optimizer, dict) or "type" not in optimizer:
        problems.append("'optimizer' needs a 'type', e.g. \"AdamW\"")
        return
    params = optimizer["params"]
    if optimizer["type"] in ("Adam", "AdamW"):
        for name, value in _ADAMW.items():
            if params.get(name, "auto") == "auto":
                params[name] = value


def _complete_monitors(values: dict[str, Any], save_dir: str) -> None:
    """Monitors that write files write into the run's folder."""
    for name, folder in (("tensorboard", "tensorboard"), ("csv_monitor", "csv")):
        section = values.get(name)
        if isinstance(section, dict) and section.get("enabled"):
            if section.get("output_path", "auto") == "auto":
                section["output_path"] = save_dir
            if section.get("job_name", "auto") == "auto":
                section["job_name"] = folder


def _resolve_zero(values: dict[str, Any], problems: list[str]) -> int:
    """The stage; "auto"s within the section (as Hugging Face's examples have them) become DeepSpeed's defaults."""
    section = values.setdefault("zero_optimization", {"stage": 0})
    if not isinstance(section, dict):
        return 0
    for key in [key for key, value in section.items() if value == "auto" and key != "stage"]:
        field = DeepSpeedZeroConfig.model_fields.get(key) or next(
            (field for field in DeepSpeedZeroConfig.model_fields.values() if field.alias == key), None
        )
        if field is not None:
            section[key] = copy.deepcopy(field.get_default(call_default_factory=True))
    stage = section.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        problems.append(f"'zero_optimization.stage' is {stage!r}; it is 0, 1, 2 or 3")
        return 0
    if stage < 3 and isinstance(section.get("offload_param"), dict):
        problems.append(f"'zero_optimization.offload_param' needs stage 3, not {stage}")
    return stage


def _left_over_autos(values: Any, path: str = "") -> list[str]:
    """Problems for every "auto" that nothing resolves."""
    if values == "auto":
        return [f"'{path}' is \"auto\", which nothing here resolves; give a value or drop the key"]
    items: Iterator[tuple[str, Any]] = iter(values.items() if isinstance(values, dict) else ())
    return [p for key, value in items for p in _left_over_autos(value, f"{path}.{key}" if path else key)]
