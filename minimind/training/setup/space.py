"""Disk space that a run will need, compared with the free space before anything is loaded.

shapes, dtype, ZeRO stage -> bytes of a checkpoint and of the weights -> check_space
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from minimind.checkpoints.find import complete_checkpoints
from minimind.engine.ds_zero import swaps_to_nvme
from minimind.errors import ConfigError
from minimind.model.family import family_of
from minimind.objective.reference_update import parse_reference_update
from minimind.plan.choice import BYTES
from minimind.training.setup.prepare import Prepared, trained_shapes
from minimind.training.setup.start_weights import weights_name

# Optimizers with two float32 moments per parameter; the others keep one.
_TWO_MOMENTS = ("adam", "adamw", "lamb")


def check_space(prepared: Prepared, start: int, total_steps: int) -> str:
    """Compare the size of the files that the run will write with the free space in save_dir.

    Args:
        start: global step after which the run resumes; 0 for a fresh run.

    Returns:
        A warning if not all checkpoints that the run keeps will fit, else an empty string.

    Raises:
        ConfigError: the files that exist at the same time do not fit: the weights, twice while new ones are written
            (with --save_best those of the best evaluation too), and one checkpoint (with --keep_checkpoints K: K and
            the new one; none where states swap to NVMe).
    """
    config = prepared.settings.config.run
    folder = Path(config.save_dir)
    interval = config.save_interval or total_steps
    saves = max(1, math.ceil(total_steps / interval) - start // interval)
    present = len(complete_checkpoints(folder / "checkpoints")) if start else 0
    at_once, every = 1, saves
    # The oldest checkpoint goes only when the new one is complete, so there is one more than are kept.
    if config.keep_checkpoints is not None:
        at_once = every = max(1, min(saves, config.keep_checkpoints + 1 - present))
    checkpoint = 0 if swaps_to_nvme(prepared.policy_config.values) else checkpoint_bytes(prepared)
    # Weights of the interrupted run take their space already; only the copy that replaces them is new.
    copy_only = bool(start) and _weights_exist(prepared)
    weights = weight_bytes(prepared) * ((1 if copy_only else 2) + (2 if config.save_best else 0))
    # The folder may not exist yet; its parents tell the disk.
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    needed = at_once * checkpoint + weights
    sizes = f"{_shown(checkpoint)} per checkpoint, " if checkpoint else ""
    sizes += f"{_shown(weights)} for {'a copy of the weights' if copy_only else 'the weights and their copy'}; "
    sizes += f"{_shown(free)} are free"
    if needed > free:
        what = f"{at_once} checkpoint{'s' if at_once > 1 else ''} and the weights" if checkpoint else "the weights"
        raise ConfigError(
            f"--save_dir {folder}: {what} do not fit: {sizes}. Free disk space, give another --save_dir"
            f"{', or lower --keep_checkpoints' if at_once > 2 else ''}."
        )
    if every * checkpoint + weights > free:
        return (
            f"  NOT ALL CHECKPOINTS WILL FIT: {every} will be written, {sizes}; --keep_checkpoints K keeps the newest K"
        )
    return ""


def _weights_exist(prepared: Prepared) -> bool:
    config = prepared.settings.config
    folder = Path(config.run.save_dir) / weights_name(config)
    pickled = folder.with_name(f"{folder.name}.pth")
    return folder.exists() and (pickled.exists() or not family_of(prepared.source.config).exports_pth)


def checkpoint_bytes(prepared: Prepared) -> int:
    """Size of a checkpoint on disk, the files of all ranks together.

    It holds float32 weights and moments, and the trained weights in the run's dtype. Stage 3 does not write the latter;
    at stage 0 in float32 they are the only copy.
    """
    dtype, stage = prepared.settings.config.optimisation.dtype, prepared.policy_config.stage
    two = prepared.policy_config.values["optimizer"]["type"].lower() in _TWO_MOMENTS
    masters = 0 if stage == 0 and dtype == "float32" else 4
    trained = 0 if stage == 3 else BYTES[dtype]
    shapes = trained_shapes(prepared) or prepared.source.shapes()
    return _elements(shapes) * (masters + trained + (8 if two else 4) + _moving_bytes(prepared))


def _moving_bytes(prepared: Prepared) -> int:
    """Bytes per parameter of a reference that follows the policy; 0 if it stays."""
    config = prepared.settings.config
    if config.engine.reference_update is None:
        return 0
    return BYTES[config.optimisation.dtype] if parse_reference_update(config.engine.reference_update).hard else 4


def weight_bytes(prepared: Prepared) -> int:
    """Size of the exported weights, which are written with every checkpoint."""
    config = prepared.settings.config
    pickled = BYTES[config.run.save_dtype] if family_of(prepared.source.config).exports_pth else 0
    whole = _elements(prepared.source.shapes()) * (pickled + BYTES[config.optimisation.dtype])
    adapters = trained_shapes(prepared)
    if adapters is None:
        return whole
    return _elements(adapters) * (BYTES["float32"] + pickled) + (whole if config.adapters.merge else 0)


def _elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _shown(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
