"""Reads a DeepSpeed file and checks its keys: unknown, unsupported and wrongly typed keys are problems.

file -> read_config_file -> dictionary -> checked_keys -> problems
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig
from pydantic import BaseModel, PositiveInt, ValidationError

from minimind.errors import ConfigError


class _AsyncIO(BaseModel):
    """Keys of section `aio`, for which DeepSpeed has no pydantic model."""

    block_size: PositiveInt = 2**20
    queue_depth: PositiveInt = 8
    intra_op_parallelism: PositiveInt = 1
    single_submit: bool = False
    overlap_events: bool = True
    use_gds: bool = False


# Section -> model of its keys. DeepSpeed's own models ignore unknown keys silently, so keys are checked here.
_SECTIONS: dict[str, Any] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
    "aio": _AsyncIO,
    "bf16": DeepSpeedBF16Config,
    "fp16": DeepSpeedFP16Config,
    "tensorboard": TensorBoardConfig,
    "wandb": WandbConfig,
    "csv_monitor": CSVConfig,
    "comet": CometConfig,
    "comms_logger": CommsLoggerConfig,
}
_OTHER_KEYS = (
    "communication_data_type disable_allgather dump_state flops_profiler gradient_accumulation_steps "
    "gradient_allreduce_op gradient_clipping gradient_predivide_factor log_level memory_breakdown optimizer "
    "prescale_gradients seq_parallel_communication_data_type steps_per_print timers train_batch_size "
    "train_micro_batch_size_per_gpu wall_clock_breakdown zero_allow_untested_optimizer zero_force_ds_cpu_optimizer"
).split()
# Keys that DeepSpeed knows and this project refuses: key -> why, or the flag to use instead.
_UNSUPPORTED = {
    "activation_checkpointing": "use --gradient_checkpointing 1",
    "amp": "use bf16",
    "autotuning": "it starts runs of its own",
    "checkpoint": "checkpoints are in save_dir, complete before `latest` names them, and load under any ranks",
    "compile": "use --use_compile 1",
    "curriculum_learning": "the order of pairs is --shuffle and --seed",
    "data_efficiency": "the order of pairs is --shuffle and --seed",
    "data_types": "the precision is --dtype; it would change the numbers",
    "sparse_attention": "attention over packs is exact",
    "hybrid_engine": "nothing is generated while training",
    "elasticity": "ranks do not change within a run",
    "torch_autocast": "the precision is --dtype; it would change the policy's numbers, and not the reference's",
}
# Sections that must be JSON objects, with an example for the message.
_OBJECTS: dict[str, Any] = {
    **{name: {"enabled": True} for name in _SECTIONS},
    "zero_optimization": {"stage": 2},
    "zero_optimization.offload_optimizer": {"device": "cpu"},
    "zero_optimization.offload_param": {"device": "cpu"},
    "aio": {"queue_depth": 32},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
}
# Types of top-level values that DeepSpeed does not check.
_KINDS: dict[str, Any] = {
    "steps_per_print": int,
    "gradient_predivide_factor": (int, float),
    "prescale_gradients": bool,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "disable_allgather": bool,
    "zero_allow_untested_optimizer": bool,
    "zero_force_ds_cpu_optimizer": bool,
}


def read_config_file(path: Path) -> dict[str, Any]:
    """The JSON object in a DeepSpeed file.

    Raises:
        ConfigError: the file is missing, is not valid JSON (with the line), has a duplicate key, or is no object.
    """

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ConfigError(f"{path}: duplicate key {repeated[0]!r}")
        return dict(pairs)

    def no_constant(name: str) -> float:
        raise ConfigError(f"{path}: {name} is not valid JSON")

    if not path.is_file():
        raise ConfigError(f"{path}: no such DeepSpeed configuration; see ds_configs/ for examples")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text, object_pairs_hook=without_repeats, parse_constant=no_constant)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f", line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else f": {error}"
        raise ConfigError(f"{path}{where}; a DeepSpeed configuration is one JSON object") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a DeepSpeed configuration is one JSON object")
    return values


def value_at(values: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None if any part of the path is missing."""
    current: Any = values
    for part in path.split("."):
        if not isinstance(current, Mapping) or part not in current:
            return None
        current = current[part]
    return current


def checked_keys(path: Path, values: dict[str, Any]) -> list[str]:
    """Problems of the keys.

    Raises:
        ConfigError: a section is not an object. Then no other check is possible.
    """
    wrong = [
        f"{name!r} is {json.dumps(section)}; an object is expected, e.g. {json.dumps(example)}"
        for name, example in _OBJECTS.items()
        if not isinstance(section := value_at(values, name), dict) and (section is not None or name in values)
    ]
    optimizer = values.get("optimizer", {})
    if isinstance(optimizer, dict):
        # DeepSpeed's files may lack it; whatever completes the section finds an object.
        params = optimizer.setdefault("params", {})
        if not isinstance(params, dict):
            wrong.append(f"'optimizer.params' is {json.dumps(params)}; an object is expected")
    if wrong:
        raise ConfigError.from_problems([f"{path}: {problem}" for problem in wrong])
    return _key_problems(values)


def _key_problems(values: Mapping[str, Any]) -> list[str]:
    """Unknown keys, at the top level and in sections, and values of the wrong type."""
    problems = []
    known = [*(name for name in _SECTIONS if "." not in name), *_OTHER_KEYS, "scheduler"]
    for key in values:
        if key in _UNSUPPORTED:
            problems.append(f"{key!r} is DeepSpeed's, but not supported here: {_UNSUPPORTED[key]}")
        elif key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            problems.append(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    for key, kind in _KINDS.items():
        value = values.get(key)
        # Python's bool is an int: a switch is no number, and a number no switch.
        if value not in (None, "auto") and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
            problems.append(f"{key!r} is {json.dumps(value)}; a {'switch' if kind is bool else 'number'} is expected")
    for name, model in _SECTIONS.items():
        section = value_at(values, name) or {}
        names = [alias for key, field in model.model_fields.items() for alias in (key, field.alias) if alias]
        for key in section:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean '{name}.{near[0]}'?" if near else ""
                problems.append(f"unknown key '{name}.{key}'{hint}")
        if "." in name:
            continue  # its values are checked with the section that contains it
        try:
            model(**{key: value for key, value in section.items() if key in names and value != "auto"})
        except ValidationError as error:
            for detail in error.errors():
                where = ".".join(str(part) for part in (name, *detail["loc"]))
                problems.append(f"'{where}': {detail['msg']}")
    return problems
