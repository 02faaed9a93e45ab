"""The oracle's verdict on disk, so that a second start of the same model does not pay for it again.

what the verdict depends on -> VerdictStore -> cache_dir/verdicts/HASH.json -> Verdict, or None: ask the oracle

A verdict is trusted only where everything that it depends on is the same. A file that cannot be read or written costs a
new comparison and nothing else. Refusals are not stored: they may be the fault of damaged weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

from minimind.data.table import PreferencePair
from minimind.model.family import model_identity
from minimind.training.setup.oracle import PACKED, PADDED, Verdict
from minimind.training.setup.prepare import Prepared
from minimind.version import __version__

# Increase it when the oracle compares something else.
_FORMAT = 1
# Flags that change what a forward computes, or how.
_FLAGS = (
    *("dtype", "attention", "kernels", "dropout", "router_aux_loss_coef", "gradient_checkpointing", "use_compile"),
    *("lora_rank", "lora_targets", "use_dora", "quantize"),
)
# The code that computes packs and padded rows, below `minimind/`.
_CODE = ("model", "native", "engine/scorer.py", "engine/plain_row.py", "data/packs.py", "objective/log_probs.py")
_PACKAGE = Path(__file__).resolve().parents[2]


def describe_verdict(
    prepared: Prepared,
    config: PretrainedConfig,
    stage: int,
    pairs: Sequence[PreferencePair],
    obstacle: str | None,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that a verdict depends on but the weights.

    Args:
        config: of the model: the policy's, or that of a reference that is another model.
        stage: ZeRO stage of its engine.
        pairs: what the oracle compares. Their lengths count by powers of two.
        obstacle: a known reason against packs.
    """
    values = prepared.settings.values
    longest = max(max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    about = {
        "format": _FORMAT,
        "minimind": __version__,
        "code": _code_digest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "class": type(config).__qualname__,
        "own attention": config._attn_implementation,
        "zero stage": stage,
        "obstacle": obstacle,
        "length": longest.bit_length(),
        **{name: values[name] for name in _FLAGS},
        **model_identity(config),
    }
    # As it is read back: tuples become lists.
    return json.loads(json.dumps(about, sort_keys=True, default=str))


class VerdictStore:
    """Reads and writes one verdict.

    Args:
        folder: of all verdicts.
        about: what this one depends on.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self._about = dict(about)
        name = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()[:32]
        self.path = folder / f"{name}.json"

    def read(self) -> Verdict | None:
        """The stored verdict; None if there is none, or if the file is damaged or of something else."""
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            if stored["about"] != self._about or stored["layout"] not in (PACKED, PADDED):
                return None
            return Verdict(layout=stored["layout"], reason=str(stored["reason"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, verdict: Verdict) -> None:
        """Store a verdict, unless it is a refusal. A reader sees the whole file or none."""
        if verdict.layout not in (PACKED, PADDED):
            return
        stored = {"layout": verdict.layout, "reason": verdict.reason, "about": self._about}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=self.path.parent, suffix=".partial")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(stored, file, indent=1)
                os.replace(partial, self.path)
            except OSError:
                Path(partial).unlink(missing_ok=True)


def _code_digest() -> str:
    """Hash of the project's code that a verdict is about: during development the version stays the same."""
    digest = hashlib.sha256()
    for path in (_PACKAGE / name for name in _CODE):
        for file in sorted(path.glob("*.*")) if path.is_dir() else [path]:
            digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
