"""Going on: what must be the same as in the run that wrote a checkpoint, and what may differ.

    run -> describe -> identity, batch, layout, attention -> a checkpoint's manifest -> check_same_run

The number of ranks, the ZeRO stage and how a global batch is split may differ; what is trained on what, and how, not.
"""

from __future__ import annotations

import json
from typing import Any

from minimind.checkpoints.find import Checkpoint
from minimind.config import DEFAULT
from minimind.data.sampler import PairSampler
from minimind.data.table import PairTable
from minimind.engine.ds_zero import swaps_to_nvme
from minimind.errors import CheckpointError
from minimind.training.setup.prepare import Prepared

# How torch or DeepSpeed computes the optimizer's step, not what it computes.
_OPTIMIZER_MEANS = ("torch_adam", "fused", "foreach")


def describe(
    prepared: Prepared, table: PairTable, fingerprint: str, stream: PairSampler, total_steps: int
) -> dict[str, Any]:
    """What a checkpoint's manifest says of this run: identity, batch, layout, attention.

    identity is what must be the same for a run to go on from it: data, weights, objective, schedule.
    """
    values, engine = prepared.settings.values, prepared.policy_config.values
    names = (
        "beta average_log_prob learning_rate warmup_steps grad_clip epochs shuffle seed dtype on_bad_row reference"
    ).split()
    optimizer = engine["optimizer"]
    meant = {name: value for name, value in optimizer["params"].items() if name not in _OPTIMIZER_MEANS}
    described = {
        "identity": {
            **{name: values[name] for name in names},
            # A budget that is not given is 0, as in the manifests that earlier versions wrote.
            "micro_batch_tokens": values["micro_batch_tokens"] or 0,
            "optimizer": {**optimizer, "params": meant},
            **model_identity(prepared),
            "data": table.key,
            "pairs": len(table),
            "pairs a step": stream.global_batch_size,
            "start weights": fingerprint,
            "total_steps": total_steps,
        },
        "batch": {name: values[name] for name in ("batch_size", "accumulation_steps")},
        "layout": {
            "ranks": stream.world_size,
            "zero_optimization": engine["zero_optimization"],
            "optimizer": optimizer,
        },
        # What nobody chose is no reason to choose it again where there is a choice.
        "attention": values["attention"] if prepared.settings.origins["attention"] != DEFAULT else "",
    }
    # As JSON gives it back: what is compared with a manifest has made the same journey.
    return json.loads(json.dumps(described))


def model_identity(prepared: Prepared) -> dict[str, object]:
    """The model's configuration, without what says nothing about its numbers."""
    model = prepared.source.config.to_diff_dict()
    for name in ("transformers_version", "_name_or_path", "dtype", "_attn_implementation"):
        model.pop(name, None)
    return {f"model.{name}": value for name, value in sorted(model.items())}


def check_same_run(checkpoint: Checkpoint, described: dict[str, Any], stream: PairSampler) -> None:
    """Refuse a checkpoint of another run, a stream that would repeat or skip pairs, and states that swap to NVMe.

    Raises:
        CheckpointError: what differs.
    """
    if swaps_to_nvme(checkpoint.manifest.layout):
        raise CheckpointError(
            f"{checkpoint.path}: was written while states swapped to NVMe, and lacks some of them, so that nothing can "
            "go on from it; start anew in another --save_dir"
        )
    if swaps_to_nvme(described["layout"]):
        raise CheckpointError(
            f"{checkpoint.path}: cannot be gone on from where states swap to NVMe, of which DeepSpeed does not bring "
            "all back; take the DeepSpeed file that it was written under or ds_configs/zero3_offload.json, or start "
            "anew in another --save_dir"
        )
    was, now = checkpoint.manifest.identity, described["identity"]
    differing = [f"{name} was {was.get(name)!r}, is {value!r}" for name, value in now.items() if was.get(name) != value]
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        raise CheckpointError(
            f"{checkpoint.path}: belongs to a run with other settings:\n{listed}\n"
            "Give the same again to go on, or start anew in another --save_dir."
        )
    place = stream.position_after(checkpoint.manifest.step)
    if place != checkpoint.manifest.stream:
        raise CheckpointError(
            f"{checkpoint.path}: pairs would be repeated or skipped: after step {checkpoint.manifest.step} the stream "
            f"stood at {checkpoint.manifest.stream}, here it would stand at {place}. Another version of this project "
            "or of numpy may order pairs differently: go on with the one that wrote the checkpoint."
        )


def moved(checkpoint: Checkpoint, described: dict[str, Any]) -> str:
    """How this run is cut otherwise than the one that wrote the checkpoint; empty if it is not."""
    was, now = checkpoint.manifest.layout, described["layout"]
    if was == now:
        return ""
    old, new = (f"{layout['ranks']} ranks, ZeRO-{layout['zero_optimization'].get('stage', 0)}" for layout in (was, now))
    return f", cut anew: {old} -> {new}" if old != new else ", cut anew for other ZeRO settings"
