"""A job's configuration together with the origin of each value.

    command line -> Settings -> values from demo, weights, DeepSpeed file and checkpoint -> Settings

Callers name a flag without its section; `Settings` finds the section.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic

from typing_extensions import TypeVar

from minimind.config.fields import flat_values, replace_values
from minimind.config.jobs import JobConfig

FLAG, DEFAULT, DEMO, DEEPSPEED_FILE, WEIGHTS = "flag", "default", "demo", "DeepSpeed file", "weights"
CHECKPOINT, MEASURED, ENVIRONMENT, BAD_ROWS_KEPT = "checkpoint", "measured", "environment", "--on_bad_row keep"
STREAMING = "--streaming 1"

Job = TypeVar("Job", bound=JobConfig, default=JobConfig, covariant=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Generic[Job]):
    """A configuration with the origin of each value.

    Attributes:
        config: the values, by section.
        origins: flag name -> "flag", "default", "demo", "DeepSpeed file", "weights", "checkpoint", "measured",
            "environment", what the value is a default of ("generation 3"), or another flag that implies the value.
    """

    config: Job
    origins: Mapping[str, str]

    @property
    def values(self) -> dict[str, Any]:
        """Flag name -> value, of all sections."""
        return flat_values(self.config)

    def explicit(self, name: str) -> bool:
        """Whether the user gave the flag on the command line."""
        return self.origins.get(name) == FLAG

    def with_values(self, values: Mapping[str, Any], origin: str) -> Settings[Job]:
        """Settings in which these values replace the present ones.

        Args:
            values: flag name -> value.
            origin: where these values come from.
        """
        return Settings(
            config=replace_values(self.config, values), origins={**self.origins, **dict.fromkeys(values, origin)}
        )

    def with_defaults(self, values: Mapping[str, Any], origin: str) -> Settings[Job]:
        """Like `with_values`, but flags that the user gave keep their values."""
        return self.with_values({k: v for k, v in values.items() if not self.explicit(k)}, origin)
