"""Switches in environment variables, for comparing a whole test run or benchmark with the plain way.

    MINIMIND_NATIVE=0      torch's operations only, nothing is compiled: --kernels torch --keep_memory 0
    MINIMIND_SHORTCUTS=0   DeepSpeed runs unchanged: --disable_patches all

They have the effect of these flags, in every command that they surround.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from minimind.config.settings import ENVIRONMENT, Job, Settings
from minimind.errors import ConfigError

# Variable -> the flags that 0 stands for.
_SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "MINIMIND_NATIVE": {"kernels": "torch", "keep_memory": False},
    "MINIMIND_SHORTCUTS": {"disable_patches": "all"},
}


def with_switches(settings: Settings[Job]) -> Settings[Job]:
    """The settings under the switches of this process's environment.

    Raises:
        ConfigError: a switch is neither 0 nor 1.
    """
    for variable, values in _SWITCHES.items():
        value = os.environ.get(variable) or "1"
        if value not in ("0", "1"):
            raise ConfigError(f"{variable}={value}: use 0 (off) or 1 (on, the default)", agreed=True)
        if value == "0":
            settings = settings.with_values(values, ENVIRONMENT)
    return settings
