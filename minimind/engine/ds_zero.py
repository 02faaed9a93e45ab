"""Checks the `zero_optimization` section of a DeepSpeed configuration, and sizes its gradient bucket.

section + ranks + device -> resolve_zero -> stage, and problems: settings that DeepSpeed would handle wrongly without a
                                            message, or with a traceback
section + ranks          -> resolve_overlap -> `overlap_comm` off where there is nothing to overlap
configuration + number of trained elements -> fit_bucket -> configuration with a bucket that is not larger than needed
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
    """The ZeRO stage; values "auto" in the section, as in Hugging Face's examples, become DeepSpeed's defaults.

    Args:
        values: the whole configuration, changed in place.
        world_size: number of ranks.
        on_cpu: whether the ranks train on CPUs.
        problems: problems are added to it.
    """
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
        # Seen in 0.19.8 on two ranks: DeepSpeed reads a parameter's float32 weights at another parameter's position.
        problems.append(
            f"'{_KEY}.round_robin_gradients' is true: DeepSpeed then mixes up the float32 weights of different "
            "parameters, so start weights and exported weights would be wrong; remove it"
        )
    if section.get("pipeline_loading_checkpoint") is True:
        problems.append(
            f"'{_KEY}.pipeline_loading_checkpoint' is true: ranks would load checkpoints one after the other, and "
            "wait forever if one of them cannot; remove it"
        )
    problems += _offload_problems(section, stage, on_cpu)
    problems += _zeropp_problems(section, stage, world_size, on_cpu)
    return stage


def resolve_overlap(values: Mapping[str, Any], world_size: int) -> dict[str, str]:
    """Turn `overlap_comm` off, in place, if a single rank has nothing to send and nothing to offload.

    With it, stages 1 and 2 wait for the whole GPU after each micro-batch and allocate a second bucket.

    Returns: the changed key and the reason; empty if nothing is changed.
    """
    section = values[_KEY]
    # With offload, copies to main memory run beside the computation. Stage 3 waits for the stream of its gathers before
    # each module; without `overlap_comm` that is the stream of the computation.
    offloads = (section.get("offload_optimizer") or {}).get("device", "none") != "none"
    if world_size > 1 or section["stage"] not in (1, 2) or offloads or not section.get("overlap_comm"):
        return {}
    section["overlap_comm"] = False
    return {f"{_KEY}.overlap_comm": "one rank has nothing to send; the DeepSpeed file says true"}


def weights_at_hand(values: Mapping[str, Any]) -> bool:
    """Whether a single rank computes with its stored weights directly: not offloaded to CPU or NVMe, not quantized."""
    section = values[_KEY]
    quantized = any(
        section.get(name, False) for name in ("zero_quantized_weights", "zero_quantized_nontrainable_weights")
    )
    return (section.get("offload_param") or {}).get("device", "none") == "none" and not quantized


def has_plain_shards(values: Mapping[str, Any]) -> bool:
    """Whether each rank holds one part of each ZeRO-3 parameter in memory, in the parameter's dtype.

    ZeRO++ keeps a second partition of each tensor, or quantized ones. On NVMe no shard is in memory.
    """
    section = values[_KEY]
    second = section.get("zero_hpz_partition_size", 1) > 1
    quantized = any(section.get(f"zero_quantized_{kind}weights", False) for kind in ("", "nontrainable_"))
    return not (second or quantized or swaps_to_nvme(values))


def swaps_to_nvme(values: Mapping[str, Any]) -> bool:
    """Whether optimizer states or weights swap to an NVMe drive. Such runs write no checkpoints.

    Seen in 0.19.8: DeepSpeed does not restore all NVMe state, so losses after a resume differ, even on one rank.
    """
    sections = (values[_KEY].get(name) or {} for name in ("offload_optimizer", "offload_param"))
    return any(section.get("device") == "nvme" for section in sections)


def fit_bucket(values: Mapping[str, Any], trained: int) -> dict[str, Any]:
    """The configuration with a `reduce_bucket_size` of at most all `trained` elements.

    DeepSpeed allocates the whole bucket, twice if communication overlaps, however few gradients there are: 400 MB for a
    model with 50 MB of gradients. A bucket of all trained elements still holds every gradient.
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
            # Seen in 0.19.8: within three steps the losses of two CPU ranks differ from those without offload.
            problems.append(
                f"'{_KEY}.{name}.device' is nvme: on CPU ranks DeepSpeed trains with wrong numbers under it; use a "
                "GPU, or ds_configs/zero3.json"
            )
        elif not folder or not Path(folder).is_dir():
            problems.append(
                f"'{_KEY}.{name}.nvme_path' is {folder!r}, which is not a folder on this machine; give a folder on "
                "the NVMe drive of every machine"
            )
    return problems


def _zeropp_problems(section: dict[str, Any], stage: int, world_size: int, on_cpu: bool) -> list[str]:
    """Problems of ZeRO++: a second copy of the weights per group of ranks, and quantized communication."""
    group = section.get("zero_hpz_partition_size", 1)
    # 0 is a valid value: no second copy, as 1.
    groups = isinstance(group, int) and group > 1
    used = [name for name in _QUANTIZED if section.get(name) is True]
    if groups:
        used.append("zero_hpz_partition_size")
    if not used:
        return []
    keys = ", ".join(f"'{_KEY}.{name}'" for name in used)
    if on_cpu:
        return [f"ZeRO++ ({keys}) needs GPUs: it has no CPU kernels; use ds_configs/zero3.json"]
    problems = []
    if stage < 3:
        problems.append(f"ZeRO++ ({keys}) needs stage 3, not {stage}")
    if groups and world_size % group:
        problems.append(
            f"'{_KEY}.zero_hpz_partition_size' is {group}, which does not divide {world_size} ranks; give the "
            "number of GPUs per machine"
        )
    return problems
