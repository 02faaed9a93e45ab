"""Run by one rank: its reference has no collective gather weights, by which gloo's threads would get OpenMP threads of
their own. One argument: the reference's DeepSpeed file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import z3_leaf_module

from minimind.config import parse_settings
from minimind.data.packs import pack
from minimind.engine.ds_config import resolve_reference
from minimind.engine.reference import LiveReference
from minimind.engine.scorer import PairScorer
from minimind.engine.start import start_rank
from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM
from minimind.ranks import process
from minimind.weights.io import fill
from minimind.weights.sources import RandomSource

sys.path.insert(0, str(Path(__file__).parent))
from engines import REPO, random_pair


def counted(name: str, calls: list[str]) -> Callable[..., Any]:
    inner = getattr(dist, name)

    def collective(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return inner(*args, **kwargs)

    return collective


def main() -> None:
    calls: list[str] = []
    # Before DeepSpeed takes hold of them.
    for name in ("all_gather", "all_gather_into_tensor"):
        setattr(dist, name, counted(name, calls))
    world = start_rank().world
    settings = parse_settings(["--dtype", "float32"])
    # An embedding too large to be left whole, as DeepSpeed leaves small tensors.
    config = MiniMindConfig(hidden_size=64, num_hidden_layers=2, vocab_size=6400)
    source, batches = RandomSource(config, seed=7), [pack([random_pair(seed, 30)]) for seed in (1, 2)]
    resolved = resolve_reference(REPO / "ds_configs" / sys.argv[-1], settings, world.size, world.on_cpu)
    reference = LiveReference(source, resolved, world)
    plain = MiniMindForCausalLM(config)
    fill(plain, source)
    for batch in batches:
        with torch.no_grad():
            expected, _ = PairScorer(plain).eval()(batch)
        torch.testing.assert_close(reference.log_probs(batch), expected, rtol=0, atol=1e-5)
    print(f"gathers: {calls}, gathered as one: {z3_leaf_module(reference.engine.module)}")
    process.end(0)


if __name__ == "__main__":
    with process.user_errors():
        main()
