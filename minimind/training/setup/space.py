"""Room for what a run will write, asked for before anything is loaded.

shapes, dtype, ZeRO stage -> bytes of a checkpoint and of the weights -> compared with what is free
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from minimind.checkpoints.find import complete_checkpoints
from minimind.engine.ds_zero import swaps_to_nvme
from minimind.errors import ConfigError
from minimind.model.family import family_of
from minimind.training.setup.prepare import Prepared, weights_name

_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Optimizers that keep two float32 numbers a parameter; the others keep one.
_TWO_MOMENTS = ("adam", "adamw", "lamb")


def check_space(prepared: Prepared, start: int, total_steps: int) -> str:
    """Compare what the run will write with what is free in save_dir.

    Args:
        start: the global step that the run goes on after.

    Returns:
        A warning if all the checkpoints that the run keeps will not fit; empty if they will.

    Raises:
        ConfigError: not even what must lie there at once fits: a checkpoint (with --keep_checkpoints K, K and the one
            being written; none where states swap to NVMe) and the weights, of which the old ones stay until the new
            ones are written.
    """
    config = prepared.settings.config
    folder = Path(config.run.save_dir)
    interval = config.run.save_interval or total_steps
    saves = max(1, math.ceil(total_steps / interval) - start // interval)
    present = len(complete_checkpoints(folder / "checkpoints")) if start else 0
    at_once, every = 1, saves
    if config.run.keep_checkpoints is not None:
        at_once = every = max(1, min(saves, config.run.keep_checkpoints + 1 - present))
    checkpoint = 0 if swaps_to_nvme(prepared.policy_config.values) else checkpoint_bytes(prepared)
    there = bool(start) and _weights_are_there(prepared)  # they take their room already: a copy is all that comes
    weights = weight_bytes(prepared) * (1 if there else 2)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    needed = at_once * checkpoint + weights
    told = f"{_shown(weights)} {'a copy of the weights' if there else 'the weights and their copy'}; "
    told = (f"{_shown(checkpoint)} a checkpoint, " if checkpoint else "") + f"{told}{_shown(free)} are free"
    if needed > free:
        what = f"{at_once} checkpoint{'s' if at_once > 1 else ''} and the weights" if checkpoint else "the weights"
        raise ConfigError(
            f"--save_dir {folder}: {what} do not fit: {told}. Make room, give another --save_dir"
            f"{', or lower --keep_checkpoints' if at_once > 2 else ''}."
        )
    if every * checkpoint + weights > free:
        return (
            f"  NOT ALL CHECKPOINTS WILL FIT: {every} will be written, {told}; --keep_checkpoints K keeps the newest K"
        )
    return ""


def _weights_are_there(prepared: Prepared) -> bool:
    config = prepared.settings.config
    folder = Path(config.run.save_dir) / weights_name(config)
    pickled = folder.with_name(f"{folder.name}.pth")
    return folder.exists() and (pickled.exists() or not family_of(prepared.source.config).exports_pth)


def checkpoint_bytes(prepared: Prepared) -> int:
    """Size of a checkpoint on the disk, all ranks' files together: float32 weights and moments, and the weights as they
    are trained, except at stage 3, and in float32 at stage 0, where there is only one copy."""
    config, stage = prepared.settings.config, prepared.policy_config.stage
    two = prepared.policy_config.values["optimizer"]["type"].lower() in _TWO_MOMENTS
    masters = 0 if stage == 0 and config.optimisation.dtype == "float32" else 4
    trained = 0 if stage == 3 else _SIZES[config.optimisation.dtype]
    return _parameters(prepared) * (masters + trained + (8 if two else 4))


def weight_bytes(prepared: Prepared) -> int:
    """Size of the weights that users exchange, written beside every checkpoint."""
    config = prepared.settings.config
    pickled = _SIZES[config.run.save_dtype] if family_of(prepared.source.config).exports_pth else 0
    return _parameters(prepared) * (pickled + _SIZES[config.optimisation.dtype])


def _parameters(prepared: Prepared) -> int:
    return sum(math.prod(shape) for shape in prepared.source.shapes().values())


def _shown(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
