"""The `zero_optimization` section: its stage, and which of its keys do here what they say.

section + ranks + device -> resolve_zero -> stage; what DeepSpeed would get wrong in silence, or meet with a traceback,
                                            is a problem
configuration + parameters -> fit_bucket -> the same with a bucket for gradients that is no larger than all of them
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

_KEY = "zero_optimization"
_QUANTIZED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


def resolve_zero(values: dict[str, Any], world_size: int, on_cpu: bool, problems: list[str]) -> int:
    """The stage; "auto"s within the section (as Hugging Face's examples have them) become DeepSpeed's defaults."""
    section = values.setdefault(_KEY, {"stage": 0})
    for key in [key for key, value in section.items() if value == "auto" and key != "stage"]:
        field = DeepSpeedZeroConfig.model_fields.get(key) or next(
            (field for field in DeepSpeedZeroConfig.model_fields.values() if field.alias == key), None
        )
        if field is not None:
            section[key] = copy.deepcopy(field.get_default(call_default_factory=True))
    stage = section.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        problems.append(f"'{_KEY}.stage' is {stage!r}; it is 0, 1, 2 or 3")
        return 0
    if section.get("round_robin_gradients") is True:
        # Seen in 0.19.8 on two ranks: a parameter's float32 weights are looked up where another's lie.
        problems.append(
            f"'{_KEY}.round_robin_gradients' is true: DeepSpeed then confuses whose float32 weights are whose, and the "
            "weights that the run starts from and writes would be wrong; drop it"
        )
    if section.get("pipeline_loading_checkpoint") is True:
        problems.append(
            f"'{_KEY}.pipeline_loading_checkpoint' is true: ranks would load one after the other, and wait without "
            "an end for one that cannot; drop it"
        )
    problems += _offload_problems(section, stage, on_cpu)
    problems += _zeropp_problems(section, stage, world_size, on_cpu)
    return stage


def weights_at_hand(values: Mapping[str, Any]) -> bool:
    """Whether a rank that is alone computes with the weights as they rest: not in CPU memory, on NVMe or quantised."""
    section = values[_KEY]
    quantized = any(
        section.get(name, False) for name in ("zero_quantized_weights", "zero_quantized_nontrainable_weights")
    )
    return (section.get("offload_param") or {}).get("device", "none") == "none" and not quantized


def swaps_to_nvme(values: Mapping[str, Any]) -> bool:
    """Whether optimizer or weights rest on an NVMe drive. Such runs write no checkpoints.

    Seen in 0.19.8: DeepSpeed does not bring back all that was swapped out, and losses after going on are others, on one
    rank too.
    """
    sections = (values[_KEY].get(name) or {} for name in ("offload_optimizer", "offload_param"))
    return any(section.get("device") == "nvme" for section in sections)


def fit_bucket(values: Mapping[str, Any], trained: int) -> dict[str, Any]:
    """The configuration with a `reduce_bucket_size` of at most all `trained` elements.

    DeepSpeed takes the whole bucket, twice where communication overlaps, however few gradients there are to fill it:
    400 MB for a model whose gradients are 50. A bucket that held them all holds them still.
    """
    section = values[_KEY]
    bucket = section.get("reduce_bucket_size", DeepSpeedZeroConfig.model_fields["reduce_bucket_size"].default)
    return {**values, _KEY: {**section, "reduce_bucket_size": min(int(bucket), trained)}}


def _offload_problems(section: dict[str, Any], stage: int, on_cpu: bool) -> list[str]:
    problems = []
    for name, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        offload = section.get(name)
        if offload is None:
            continue
        device, folder = offload.get("device", "none"), offload.get("nvme_path")
        if stage < lowest:
            problems.append(f"'{_KEY}.{name}' needs stage {lowest}{' or higher' if lowest < 3 else ''}, not {stage}")
        if device != "nvme":
            continue
        if stage < 3:
            problems.append(f"'{_KEY}.{name}.device' is nvme, which needs stage 3, not {stage}")
        if on_cpu:
            # Seen in 0.19.8: the losses of two CPU ranks drift apart from those without offload within three steps.
            problems.append(
                f"'{_KEY}.{name}.device' is nvme: on CPU ranks DeepSpeed trains with wrong numbers under it; use a "
                "GPU, or ds_configs/zero3.json"
            )
        elif not folder or not Path(folder).is_dir():
            problems.append(
                f"'{_KEY}.{name}.nvme_path' is {folder!r}, which is no folder here; give one on every machine's drive"
            )
    return problems


def _zeropp_problems(section: dict[str, Any], stage: int, world_size: int, on_cpu: bool) -> list[str]:
    """ZeRO++: weights kept whole once per group of ranks, and quantised communication."""
    group = section.get("zero_hpz_partition_size", 1)
    used = [name for name in _QUANTIZED if section.get(name) is True]
    if isinstance(group, int) and group > 1:
        used.append("zero_hpz_partition_size")
    if not used:
        return []
    keys = ", ".join(f"'{_KEY}.{name}'" for name in used)
    if on_cpu:
        return [f"ZeRO++ ({keys}) needs GPUs: its kernels are not there for a CPU; use ds_configs/zero3.json"]
    problems = []
    if stage < 3:
        problems.append(f"ZeRO++ ({keys}) needs stage 3, not {stage}")
    if world_size % group:
        problems.append(
            f"'{_KEY}.zero_hpz_partition_size' is {group}, which does not divide {world_size} ranks; give the "
            "number of GPUs of a machine"
        )
    return problems
