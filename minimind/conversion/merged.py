"""Adapters merged with their base: the weights that both compute together.

adapter's folder, MiniMind's lora_*.pth or a checkpoint, base -> MergedSource: float32, in memory
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from minimind.errors import WeightsError
from minimind.weights.adapter_files import merged_state
from minimind.weights.adapters import AdapterSource, adapter_shapes
from minimind.weights.files import open_pickled
from minimind.weights.sources import WeightSource

_CONFIG = "adapter_config.json"
_MINIMIND_PART = ".lora.A.weight"


class MergedSource(WeightSource):
    """A base's weights with an adapter merged into them by peft, in float32.

    Args:
        adapter: the adapter.
        base: the weights that it is for.

    Raises:
        ConfigError: peft is not installed.
    """

    def __init__(self, adapter: AdapterSource, base: WeightSource) -> None:
        self.config, self.tokenizer_path = base.config, base.tokenizer_path
        self.origin = f"{adapter.origin} on {base.origin}"
        state = {name: adapter.read(name) for name in adapter_shapes(base.config, adapter.spec)}
        self._state = merged_state(base, adapter.spec, state)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._state.items()}

    def read(self, name: str) -> Tensor:
        return self._state[name]


def is_adapter(path: Path) -> bool:
    """Whether a path is an adapter's folder, or MiniMind's `lora_*.pth`."""
    if path.is_dir():
        return (path / _CONFIG).is_file()
    try:
        return any(name.endswith(_MINIMIND_PART) for name in open_pickled(path))
    except WeightsError:
        # Whoever opens it as weights says what is wrong with it.
        return False


def adapter_in_run(run: Path) -> Path:
    """The adapter that a run with adapters has written.

    Raises:
        WeightsError: there is none yet, or there are several.
    """
    found = sorted(file.parent for file in run.glob(f"[!.]*/{_CONFIG}"))
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "none, and no checkpoint"
        raise WeightsError(
            f"{run}: a run with adapters, and one folder of an adapter is expected in it, found {listed}"
        )
    return found[0]


def named_base(adapter: Path) -> str | None:
    """The base that an adapter's configuration names; None if it names none."""
    try:
        return json.loads((adapter / _CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
