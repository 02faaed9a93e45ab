"""How a checkpoint's global batch is split over the ranks that go on from it.

flags and DeepSpeed file + manifest + ranks -> batch_size, accumulation_steps
"""

from __future__ import annotations

from minimind.checkpoints.manifest import Manifest
from minimind.config import CHECKPOINT, DEEPSPEED_FILE, FLAG, Settings
from minimind.errors import ConfigError


def keep_global_batch(settings: Settings, saved: Manifest, ranks: int) -> Settings:
    """Settings under which ranks x batch_size x accumulation_steps is what it was when the checkpoint was written.

    What flags and DeepSpeed file do not fix is the checkpoint's. On another number of ranks accumulation_steps gives
    way, then batch_size, which only shrinks: what fitted into memory still does.

    Raises:
        ConfigError: nothing fits; it says what would.
    """
    was = saved.batch
    pairs = saved.layout["ranks"] * was["batch_size"] * was["accumulation_steps"]
    told = (
        f"the checkpoint has {pairs} pairs a step ({saved.layout['ranks']} ranks x batch_size {was['batch_size']} x "
        f"accumulation_steps {was['accumulation_steps']})"
    )
    if pairs % ranks:
        raise ConfigError(f"{told}, which {ranks} ranks cannot share; {_divisors(pairs)} can")
    share = pairs // ranks
    names = ("batch_size", "accumulation_steps")
    fixed = {n: settings.values[n] for n in names if settings.origins[n] in (FLAG, DEEPSPEED_FILE)}
    shown = " and ".join(f"{name} {value} ({settings.origins[name]})" for name, value in fixed.items())
    if len(fixed) == 2 and fixed["batch_size"] * fixed["accumulation_steps"] != share:
        raise ConfigError(f"{told}, {share} for each of {ranks} now; {shown} make another number: drop one of the two")
    if any(share % value for value in fixed.values()):
        raise ConfigError(
            f"{told}, {share} for each of {ranks} now, which {shown} does not divide; drop it, or give one of "
            f"{_divisors(share)}"
        )
    largest = max(size for size in range(1, was["batch_size"] + 1) if share % size == 0)
    accumulation_steps = fixed.get("accumulation_steps", share // fixed.get("batch_size", largest))
    values = {"batch_size": share // accumulation_steps, "accumulation_steps": accumulation_steps}
    return settings.with_values({name: value for name, value in values.items() if name not in fixed}, CHECKPOINT)


def _divisors(number: int) -> str:
    return ", ".join(str(divisor) for divisor in range(1, number + 1) if number % divisor == 0)
