"""Resuming: which settings must be the same as in the run that wrote a checkpoint, and which may differ.

    run -> describe -> identity, batch, sharding, attention -> a checkpoint's manifest -> check_same_run

The number of ranks, the ZeRO stage and the split of a global batch may differ. Data, weights, objective and schedule
may not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from minimind.checkpoints.find import Checkpoint
from minimind.config import DEFAULT
from minimind.data.sampler import Sampler
from minimind.engine.ds_zero import swaps_to_nvme
from minimind.errors import CheckpointError
from minimind.model.dropout import dropout_fields
from minimind.model.family import model_identity
from minimind.training.jobs.kinds import KINDS
from minimind.training.setup.prepare import Prepared
from minimind.training.setup.training_data import TrainingData

# Settings that are part of a run's identity.
_IDENTITY = (
    "learning_rate lr_schedule warmup_steps warmup_ratio decay_ratio grad_clip epochs shuffle seed dtype on_bad_row "
    "on_long_row filter_score_gap dedup limit reference reference_update micro_batch_tokens router_aux_loss_coef "
    "empty_think_ratio"
).split()
# What the identity says of a reference that has the start weights.
START_WEIGHTS = "the start weights"
# Optimizer keys that select an implementation; they do not change what is computed.
_IMPLEMENTATION_KEYS = ("torch_adam", "fused", "foreach")
# Values that manifests of earlier versions do not contain, because these were the only ones.
_BEFORE = {
    "job": "dpo",
    "loss": "sigmoid",
    "dropout": True,
    "on_long_row": "cut",
    "mix": ["1"],
    "filter_score_gap": None,
    "dedup": False,
    "adapters": None,
    "limit": None,
    "reference weights": START_WEIGHTS,
    "reference_update": None,
    "lr_schedule": "minimind",
    "warmup_ratio": None,
    "decay_ratio": None,
}


def describe(
    prepared: Prepared, data: TrainingData, fingerprint: str, reference: str = START_WEIGHTS
) -> dict[str, Any]:
    """What a checkpoint's manifest says about this run: identity, batch, sharding, attention.

    Args:
        fingerprint: hash of the start weights.
        reference: what the reference is, from `reference_identity`.
    """
    settings, engine = prepared.settings, prepared.policy_config.values
    values, optimizer = settings.values, engine["optimizer"]
    params = {name: value for name, value in optimizer["params"].items() if name not in _IMPLEMENTATION_KEYS}
    # A job may lack some of the flags.
    identity = {name: values[name] for name in _IDENTITY if name in values}
    if prepared.objective.depends_on_split:
        # The split is then a part of the objective: a mean is taken within each micro-batch.
        identity["batch_size"] = values["batch_size"]
    identity["micro_batch_tokens"] = values["micro_batch_tokens"] or 0
    # Without dropout in the model the flag changes nothing.
    if dropout_fields(prepared.source.config):
        identity["dropout"] = values["dropout"]
    described = {
        "identity": {
            **identity,
            "job": settings.config.name,
            "loss": prepared.objective.name,
            **prepared.objective.options(),
            "optimizer": {**optimizer, "params": params},
            **model_identity(prepared.source.config),
            **data.identity,
            "pairs a step": data.stream.global_batch_size,
            "start weights": fingerprint,
            "reference weights": reference,
            "adapters": _adapters(prepared),
            "total_steps": data.total_steps,
        },
        "batch": {name: values[name] for name in ("batch_size", "accumulation_steps")},
        "sharding": {
            "ranks": data.stream.world_size,
            "zero_optimization": engine["zero_optimization"],
            "optimizer": optimizer,
        },
        # A backend that was neither measured nor asked for must not bind the resumed run.
        "attention": values["attention"] if settings.origins["attention"] != DEFAULT else "",
    }
    # A manifest is read back from JSON, so what is compared with it passes through JSON too (tuples become lists).
    return json.loads(json.dumps(described))


def reference_identity(prepared: Prepared, fingerprint: str, own: str) -> str:
    """The reference's identity: START_WEIGHTS if it is the policy's model with its start weights, else a hash.

    Args:
        fingerprint: hash of the start weights.
        own: hash of the reference's weights.
    """
    policy, reference = (model_identity(one.config) for one in (prepared.source, prepared.reference_source))
    if (own, reference) == (fingerprint, policy):
        return START_WEIGHTS
    return hashlib.sha256(json.dumps([own, reference], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _adapters(prepared: Prepared) -> dict[str, object] | None:
    """What adapters train, and from which values; None: the weights train."""
    if prepared.adapters is None:
        return None
    spec = dataclasses.asdict(prepared.adapters.spec)
    # Long lists that follow from the model and the targets, which are both compared.
    del spec["layers"], spec["stacks"]
    return {
        **spec,
        "targets": prepared.adapters.spec.targets,
        "start": prepared.adapters.fingerprint(),
        "reference": prepared.settings.config.adapters.lora_reference,
        "base": prepared.settings.config.adapters.quantize,
    }


def check_same_run(checkpoint: Checkpoint, described: dict[str, Any], stream: Sampler) -> None:
    """Refuse a checkpoint of another run, a stream that would repeat or skip pairs, and states that swap to NVMe.

    Raises:
        CheckpointError: names what differs.
    """
    # Before all comparisons: no setting would make such a checkpoint readable.
    if swaps_to_nvme(checkpoint.manifest.sharding):
        raise CheckpointError(
            f"{checkpoint.path}: cannot resume: it was written while states swapped to NVMe, and DeepSpeed does not "
            "write all of them; start anew in another --save_dir"
        )
    if swaps_to_nvme(described["sharding"]):
        raise CheckpointError(
            f"{checkpoint.path}: cannot resume: DeepSpeed does not restore all NVMe state; use the DeepSpeed file of "
            "the run that wrote it or ds_configs/zero3_offload.json, or start anew in another --save_dir"
        )
    now = described["identity"]
    # An option that the loss did not have when the checkpoint was written has the value that keeps its numbers.
    defaults = dict(KINDS[now["job"]].default_options(now["loss"]))
    # A ratio that an earlier version did not write is compared by the key of the data, which contains it.
    defaults["empty_think_ratio"] = now.get("empty_think_ratio")
    # From the weakest to the strongest: the option's default, what an old version always did, what the manifest says.
    was = {**defaults, **_before(checkpoint.manifest.identity), **checkpoint.manifest.identity}
    # By the names of now: an entry that only the old manifest has belongs to a flag that is gone.
    differing = [f"{name} was {was.get(name)!r}, is {value!r}" for name, value in now.items() if was.get(name) != value]
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        raise CheckpointError(
            f"{checkpoint.path}: belongs to a run with other settings:\n{listed}\n"
            "Give the same settings to resume, or start anew in another --save_dir."
        )
    # The settings agree, but the order is code: numpy may shuffle differently in another version.
    place = stream.position_after(checkpoint.manifest.step)
    if place != checkpoint.manifest.stream:
        raise CheckpointError(
            f"{checkpoint.path}: pairs would be repeated or skipped: after step {checkpoint.manifest.step} the stream "
            f"was at {checkpoint.manifest.stream}, here it would be at {place}. Another version of this project or of "
            "numpy may order pairs differently: resume with the version that wrote the checkpoint."
        )


def _before(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Values of settings that did not exist when an identity was written."""
    # Before --on_long_row, --on_bad_row keep kept the rows that truncation left without an answer.
    kept = {"on_long_row": "keep"} if identity.get("on_bad_row") == "keep" else {}
    return {**_BEFORE, **kept}


def describe_reshard(checkpoint: Checkpoint, described: dict[str, Any]) -> str:
    """How the states must be redistributed for this run; empty if ranks and ZeRO settings are unchanged."""
    was, now = checkpoint.manifest.sharding, described["sharding"]
    if was == now:
        return ""
    old, new = (f"{one['ranks']} ranks, ZeRO-{one['zero_optimization'].get('stage', 0)}" for one in (was, now))
    return f", resharded: {old} -> {new}" if old != new else ", resharded for other ZeRO settings"
