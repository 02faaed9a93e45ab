"""Split of a resumed run's global batch over its ranks.

flags, DeepSpeed file, manifest, number of ranks -> keep_global_batch -> batch_size, accumulation_steps
"""

from __future__ import annotations

from minimind.checkpoints.manifest import Manifest
from minimind.config import CHECKPOINT, DEEPSPEED_FILE, FLAG, Settings
from minimind.errors import ConfigError


def keep_global_batch(settings: Settings, saved: Manifest, ranks: int) -> Settings:
    """Settings under which ranks x batch_size x accumulation_steps equals the checkpoint's global batch.

    Values that neither a flag nor the DeepSpeed file fixes come from the checkpoint. On another number of ranks
    accumulation_steps is adapted first. batch_size is only made smaller, so that a micro-batch still fits into memory.

    Raises:
        ConfigError: no split fits; the message lists splits that do.
    """
    was = saved.batch
    pairs = saved.sharding["ranks"] * was["batch_size"] * was["accumulation_steps"]
    message = (
        f"the checkpoint has {pairs} {settings.config.items} per global step ({saved.sharding['ranks']} ranks x "
        f"batch_size {was['batch_size']} x accumulation_steps {was['accumulation_steps']})"
    )
    if pairs % ranks:
        raise ConfigError(f"{message}, which {ranks} ranks cannot share equally; {_divisors(pairs)} ranks can")
    share = pairs // ranks
    values, names = settings.values, ("batch_size", "accumulation_steps")
    fixed = {name: values[name] for name in names if settings.origins[name] in (FLAG, DEEPSPEED_FILE)}
    shown = " and ".join(f"{name} {value} ({settings.origins[name]})" for name, value in fixed.items())
    if len(fixed) == 2 and fixed["batch_size"] * fixed["accumulation_steps"] != share:
        raise ConfigError(f"{message}, {share} for each of {ranks} ranks; {shown} give another number; drop one")
    if any(share % value for value in fixed.values()):
        raise ConfigError(
            f"{message}, {share} for each of {ranks} ranks, which {shown} does not divide; drop it, or give one of "
            f"{_divisors(share)}"
        )
    largest = max(size for size in range(1, was["batch_size"] + 1) if share % size == 0)
    accumulation_steps = fixed.get("accumulation_steps", share // fixed.get("batch_size", largest))
    split = {"batch_size": share // accumulation_steps, "accumulation_steps": accumulation_steps}
    return settings.with_values({name: value for name, value in split.items() if name not in fixed}, CHECKPOINT)


def _divisors(number: int) -> str:
    return ", ".join(str(divisor) for divisor in range(1, number + 1) if number % divisor == 0)
