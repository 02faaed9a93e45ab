"""--device of MiniMind's command line, compared with the device that the launcher gave to the rank.

--device, device of the rank -> device_problem -> what is wrong and how to get that device, or None
"""

from __future__ import annotations

import os
import re

import torch


def device_problem(given: str, device: torch.device, ranks: int) -> str | None:
    """Why the run is not on the device that a flag names; None if it is.

    Args:
        given: value of --device.
        device: of this rank.
        ranks: number of ranks.
    """
    match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", given)
    if match is None or (match[1] == "cpu" and match[2]):
        return "expected cpu, cuda or cuda:N"
    kind, number = match.groups()
    if kind == "cpu" and device.type != "cpu":
        return (
            f"the ranks are on {device.type}; put DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= in front of the command to "
            "train on the CPU"
        )
    if kind == "cuda" and device.type != "cuda":
        return (
            f"the ranks are on {device.type}: torch {torch.__version__} sees no CUDA GPU here, or DS_ACCELERATOR or "
            "CUDA_VISIBLE_DEVICES hide it; drop the flag to train on what there is"
        )
    if number and ranks > 1:
        return f"{ranks} ranks have a device each; choose them with deepspeed --include localhost:0,1,..."
    if number and number not in _numbers(device):
        return f"the launcher gave this rank {device}; choose another with deepspeed --include localhost:{number}"
    return None


def _numbers(device: torch.device) -> set[str]:
    """Numbers of a GPU: torch's, and the machine's if the launcher made only this one visible."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return {str(device.index or 0), *(visible if len(visible) == 1 else ())}
