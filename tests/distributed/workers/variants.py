"""Run by all ranks: takes the same steps under several DeepSpeed files and writes the results for the test to compare.

Arguments: folder for the results, start weights ("moe" or a Hugging Face folder), dtype, variants. A variant is the
name of a file in ds_configs/, with changes behind colons: `zero2_offload:torch_adam`, `zero3:checkpointing`. `off=NAME`
is without a patch of DeepSpeed, `off=all` without any, `unclipped` with a clipping too high for any gradient,
`overlap` with `overlap_comm` on. `changed=NAME` is with one of `CHANGED`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero import stage_1_and_2
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from engines import REPO, loss, random_pair  # beside this script

from minimind import native
from minimind.config import parse_settings
from minimind.data.packs import pack
from minimind.engine.ds_config import resolve_policy, resolve_reference
from minimind.engine.patches import optimizer
from minimind.engine.policy import Policy
from minimind.engine.reference import LiveReference
from minimind.engine.start import start_rank
from minimind.errors import TrainingError
from minimind.model.configuration import MiniMindConfig
from minimind.ranks import process
from minimind.ranks.world import World
from minimind.weights.sources import RandomSource, WeightSource, open_weights

# Each global step has two micro-batches, or three, as a token budget makes them; clipping is always at work.
MICRO_BATCHES = (2, 3, 2, 2)
SAVE_AFTER = 2
# Methods of DeepSpeed's optimizer that engine/patches/optimizer.py replaces.
PATCHED = ("check_overflow", "get_flat_partition", "get_grad_norm_direct", "unscale_and_clip_grads")


# Changes that a later DeepSpeed could have, and a wrong patch: owner, name, a function of the owner's own function.
CHANGED: dict[str, tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
    "reduction": (
        DeepSpeedZeroOptimizer,
        "average_tensor",
        lambda own: lambda self, tensor, *a: (own(self, tensor, *a), tensor.mul_(0.5)),
    ),
    "cast": (
        DeepSpeedZeroOptimizer,
        "_get_preflattened_grad_partition",
        lambda own: lambda self, group: _doubled(self, own(self, group), group),
    ),
    "norm": (
        DeepSpeedZeroOptimizer,
        "get_grad_norm_direct",
        lambda own: lambda self, gradients, *a: own(self, gradients, *a) * (1 + 1e-3 * gradients[0].numel()),
    ),
    "clipping": (
        DeepSpeedZeroOptimizer,
        "unscale_and_clip_grads",
        lambda own: lambda self, gradients, norm: (own(self, gradients, norm), [g.mul_(0.5) for g in gradients]),
    ),
    "overflow": (stage_1_and_2, "is_invalid_grad_norm", lambda own: lambda norm: False),
    "patch": (optimizer, "_cast", lambda own: lambda gradient, out: own(gradient * 1.5, out)),
}


def _doubled(zero: DeepSpeedZeroOptimizer, flat: torch.Tensor | None, group: int) -> torch.Tensor:
    return 2 * zero.flatten(zero.averaged_gradients[group]) if flat is None else flat


@contextlib.contextmanager
def deepspeed_as(variant: str) -> Iterator[None]:
    """Within the block DeepSpeed, or a patch, is changed as the variant says."""
    with contextlib.ExitStack() as undo:
        for name in (change[8:] for change in variant.split(":") if change.startswith("changed=")):
            owner, function, change = CHANGED[name]
            own = getattr(owner, function)
            setattr(owner, function, change(own))
            undo.callback(setattr, owner, function, own)
        yield


def make_policy(source: WeightSource, variant: str, dtype: str, folder: Path, world: World) -> Policy:
    name, *changes = variant.split(":")
    flags = ["--dtype", dtype, "--batch_size", "1", "--learning_rate", "1e-3"]
    flags += ["--grad_clip", "100" if "unclipped" in changes else "0.05"]
    if "checkpointing" in changes:
        flags += ["--gradient_checkpointing", "1"]
    flags += [flag for change in changes if change.startswith("off=") for flag in ("--disable_patches", change[4:])]
    values = json.loads((REPO / f"ds_configs/{name}.json").read_text())
    values["tensorboard"]["enabled"] = False
    if "torch_adam" in changes:
        values["optimizer"]["params"]["torch_adam"] = True
    path = folder / f"rank{world.rank}.json"
    path.write_text(json.dumps(values))
    resolved = resolve_policy(path, parse_settings(flags), world.size, world.on_cpu)
    if "overlap" in changes:  # which the resolver turns off on one rank
        resolved.values["zero_optimization"]["overlap_comm"] = True
    if "round_robin" in changes:  # which the resolver refuses
        resolved.values["zero_optimization"]["round_robin_gradients"] = True
    policy = Policy(source, resolved, lambda step: 1.0, world)
    policy.train()
    return policy


def take_steps(policy: Policy, steps: Sequence[int]) -> list[tuple[list[float], float]]:
    """Losses of each step's micro-batches on this rank, and its gradient norm."""
    out = []
    for step in steps:
        losses = []
        for number in range(count := MICRO_BATCHES[step]):
            batch = pack([random_pair(100 * step + 10 * number + policy.world.rank, 40)])
            # A reference other than the policy, so that the gradient has no symmetry to hide behind.
            value = loss(policy.engine, batch, torch.linspace(-6, -4, len(batch.target_ids)))
            policy.backward(value / count, last=number == count - 1)
            policy.step()
            losses.append(value.item())
        out.append((losses, float(policy.grad_norm)))
    return out


def stops_at_nan(policy: Policy) -> bool:
    """Whether a gradient that is not finite on one rank alone stops this rank."""
    batch = pack([random_pair(1, 40)])
    value = loss(policy.engine, batch, torch.zeros(len(batch.target_ids)))
    policy.backward(value * (float("nan") if policy.world.rank == policy.world.size - 1 else 1), last=True)
    try:
        policy.step()
    except TrainingError:
        return True
    return False


def run(source: WeightSource, variant: str, dtype: str, folder: Path, world: World) -> dict[str, Any]:
    policy = make_policy(source, variant, dtype, folder, world)
    out: dict[str, Any] = {"start": policy.full_state()}
    if "round_robin" in variant:
        return out
    steps = take_steps(policy, range(SAVE_AFTER))
    policy.engine.save_checkpoint(str(folder), tag=variant)
    steps += take_steps(policy, range(SAVE_AFTER, len(MICRO_BATCHES)))
    out |= {"bucket": getattr(policy.engine.optimizer, "contiguous_gradients", None)}
    out |= {"patched": [name for name in PATCHED if name in vars(policy.engine.optimizer)]}
    out |= {"losses": [s[0] for s in steps], "norms": [s[1] for s in steps], "end": policy.full_state()}
    out |= {"stopped": stops_at_nan(policy), "after_nan": policy.full_state()}
    other = make_policy(source, variant, dtype, folder, world)
    other.engine.load_checkpoint(str(folder), tag=variant)
    steps[SAVE_AFTER:] = take_steps(other, range(SAVE_AFTER, len(MICRO_BATCHES)))
    out["resumed"] = {"losses": [s[0] for s in steps], "norms": [s[1] for s in steps], "end": other.full_state()}
    return out


def reference_rows(source: WeightSource, name: str, dtype: str, world: World) -> torch.Tensor:
    settings = parse_settings(["--dtype", dtype, "--batch_size", "1"])
    resolved = resolve_reference(REPO / f"ds_configs/{name}.json", settings, world.size, world.on_cpu)
    reference = LiveReference(source, resolved, world)
    assert reference.engine.optimizer.offload_device == ("cpu" if name == "reference_offload" else None)
    return torch.cat([scores.sums for scores in reference.score([pack([random_pair(seed, 40)]) for seed in (1, 2)])])


def main() -> None:
    folder, weights, dtype, *variants = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    world = start_rank().world
    native.prepare(heap=False)
    if weights == "moe":
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 640}
        config = MiniMindConfig(generation=3, use_moe=True, num_experts_per_tok=1, **sizes)
        source: WeightSource = RandomSource(config, seed=7)
    else:
        source = open_weights(Path(weights), {})
    results = {}
    for variant in variants:
        with deepspeed_as(variant):
            results[variant] = run(source, variant, dtype, Path(folder), world)
    if world.is_main:
        results["source"] = {name: source.read(name).float() for name in source.shapes()}
    for name in ("reference", "reference_offload"):
        results[name] = reference_rows(source, name, dtype, world)
    torch.save(results, Path(folder) / f"results{world.rank}.pt")
    process.end(0)


if __name__ == "__main__":
    with process.user_errors():
        main()
