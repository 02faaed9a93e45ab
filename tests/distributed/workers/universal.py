"""Run by one rank: does DeepSpeed's own conversion take a ZeRO-2 checkpoint of test_reshard.py to ZeRO-3?

Two arguments: the folder of the checkpoints, and which. Prints UNIVERSAL and how it went.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from minimind.checkpoints.reshard import MASTER, SavedStates
from minimind.config import parse_settings
from minimind.engine.ds_config import resolve_policy
from minimind.engine.policy import Policy
from minimind.engine.start import start_rank
from minimind.model.configuration import MiniMindConfig
from minimind.ranks import process
from minimind.weights.sources import RandomSource

REPO = Path(__file__).resolve().parents[3]


def main() -> None:
    folder, tag = Path(sys.argv[-2]), sys.argv[-1]
    world = start_rank().world
    resolved = resolve_policy(
        REPO / "ds_configs/zero3.json", parse_settings(["--dtype", "float32"]), world.size, world.on_cpu
    )
    resolved.values["tensorboard"]["enabled"] = False
    resolved.values["checkpoint"] = {"load_universal": True}
    config = MiniMindConfig(hidden_size=40, num_hidden_layers=2, num_attention_heads=4)
    policy = Policy(RandomSource(config, seed=1), resolved, lambda step: 1.0, world)
    try:
        ds_to_universal.main(
            argparse.Namespace(
                input_folder=str(folder / tag),
                output_folder=str(folder / "universal"),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )
        policy.engine.load_checkpoint(str(folder), tag="universal")
    except Exception as error:  # noqa: BLE001 - whatever it is, it does not work
        print(f"UNIVERSAL FAILED: {error!r}", flush=True)
        return
    parameters = dict(policy.engine.module.named_parameters())
    saved = SavedStates(folder / tag, list(parameters))
    for name, parameter in parameters.items():
        for key, got in (
            (MASTER, safe_get_full_fp32_param(parameter)),
            ("exp_avg", safe_get_full_optimizer_state(parameter, "exp_avg")),
        ):
            if not torch.equal(got.flatten(), saved.read(name, key, 0, got.numel())):
                print(f"UNIVERSAL WRONG: {key} of {name}", flush=True)
                return
    print("UNIVERSAL LOADED", flush=True)


if __name__ == "__main__":
    with process.user_errors():
        main()
    process.end(0)
