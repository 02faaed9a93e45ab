"""The precision of a run whose user gives none: bfloat16, or float32 where that is faster.

settings, weights, the ranks' processors, resumed checkpoint -> with_precision -> settings with --dtype
"""

from __future__ import annotations

from minimind.checkpoints.find import Checkpoint
from minimind.config import CHECKPOINT, Settings
from minimind.model.family import family_of
from minimind.native import processor
from minimind.native.processor import Products
from minimind.ranks.world import World
from minimind.weights.sources import WeightSource

NO_BFLOAT16 = "faster on a CPU without bfloat16"


def lacks_bfloat16(world: World) -> bool:
    """Whether this process computes on a CPU that has no instructions for bfloat16."""
    return world.on_cpu and processor.fastest_products() is Products.FLOAT32


def with_precision(
    settings: Settings, source: WeightSource, without_bfloat16: bool, checkpoint: Checkpoint | None
) -> Settings:
    """Settings with the precision of the resumed run, or the one that is faster for this model.

    MiniMind's models are faster in bfloat16 on every CPU: all their operations have kernels. Of other models only the
    linear layers and the attention have.
    """
    if checkpoint is not None:
        was = checkpoint.manifest.identity.get("dtype", settings.values["dtype"])
        return settings.with_defaults({"dtype": was}, CHECKPOINT)
    if without_bfloat16 and not family_of(source.config).has_own_linear_layers:
        return settings.with_defaults({"dtype": "float32"}, NO_BFLOAT16)
    return settings
