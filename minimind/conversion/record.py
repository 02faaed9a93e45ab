"""`export.json`: what exported weights came from, what rounding cost them, and what was written.

Trained, Base, Moved, files -> record -> export.json beside the weights          -> summary -> lines for the console
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minimind.checkpoints.manifest import fingerprint_file
from minimind.conversion.base import Base
from minimind.conversion.rounding import DTYPES, ENOUGH, Moved
from minimind.conversion.trained import EXPORT, Trained
from minimind.version import __version__


def record(
    trained: Trained,
    base: Base,
    moved: Moved | None,
    *,
    to: str,
    dtype: str,
    logits_differ_by: float | None,
    files: Iterable[Path],
) -> dict[str, Any]:
    """The values of `export.json`.

    Args:
        trained: what was exported.
        base: its start weights.
        moved: what rounding keeps of the difference between both; None: the start weights cannot be read.
        to: form of the export, as --to names it.
        dtype: of the files.
        logits_differ_by: largest difference found by reading back; None: not compared.
        files: what was written.

    Raises:
        OSError: a file cannot be read.
    """
    identity, source = trained.identity, trained.weights
    return {
        "to": to,
        "dtype": dtype,
        "source": {"path": source.origin, "kind": trained.kind, "model_type": source.config.model_type},
        "run": {
            "path": str(trained.run) if trained.run else None,
            "step": trained.step,
            "total_steps": identity.get("total_steps"),
            "packed_base": _packed_base(identity),
            "job": {name: identity[name] for name in ("loss", "beta", "learning_rate", "data") if name in identity},
            "versions": trained.record.get("versions", {}),
        },
        "base": {
            "path": base.origin,
            "hash": base.fingerprint,
            "not_compared": base.missing or None,
            "hash_of_the_run": base.other,
        },
        "differ_from_base": None if moved is None else {name: moved.share(name) for name in DTYPES},
        "kept_of_training": None if moved is None else {name: moved.kept(name) for name in DTYPES},
        "recommended_dtype": None if moved is None else moved.recommended,
        "logits_differ_by": logits_differ_by,
        "versions": {"minimind": __version__, **{n: importlib.metadata.version(n) for n in ("torch", "transformers")}},
        "files": {path.name: fingerprint_file(path) for path in sorted(files)},
    }


def _packed_base(identity: Mapping[str, Any]) -> str | None:
    """How the weights under the adapters of a run were packed; None: not at all."""
    packed = (identity.get("adapters") or {}).get("base")
    # The value of --quantize without packing.
    return None if packed == "none" else packed


def write_record(values: dict[str, Any], folder: Path) -> None:
    """Write `export.json`.

    Raises:
        OSError: it cannot be written.
    """
    (folder / EXPORT).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_export(path: Path) -> bool:
    """Whether all that is in a folder, or a file, was written by an export, so that another one may replace it."""
    folder = path if path.is_dir() else path.parent
    try:
        values = json.loads((folder / EXPORT).read_text(encoding="utf-8"))
        written = {*values["files"], EXPORT}
        # A folder with anything else in it, such as that of several `.pth`, is the user's.
        return {one.name for one in path.iterdir()} <= written if path.is_dir() else path.name in written
    except (OSError, ValueError, KeyError, TypeError):
        return False


def summary(values: dict[str, Any]) -> list[str]:
    """What a person must know of an export."""
    dtype, run = values["dtype"], values["run"]
    step = "" if run["step"] is None else f", step {run['step']} of {run['total_steps']}"
    lines = [f"from   {values['source']['path']} ({values['source']['kind']}{step})"]
    if run["packed_base"]:
        lines.append(f"       trained over a base in 4 bits ({run['packed_base']}), merged with the base's own values")
    if values["differ_from_base"] is None:
        lines.append(f"base   not compared: {values['base']['not_compared']}")
    else:
        differ, kept = values["differ_from_base"], values["kept_of_training"]
        shares = ", ".join(f"{name} {differ[name]:.2%}" for name in DTYPES)
        lines.append(f"base   {values['base']['path']} (hash {values['base']['hash']})")
        if values["base"]["hash_of_the_run"]:
            lines.append(f"       WARNING: the run started from others (hash {values['base']['hash_of_the_run']})")
        lines.append(f"       weights that differ from it, by dtype of the file: {shares}")
        best = values["recommended_dtype"]
        if kept[dtype] < ENOUGH:
            lost = f"{dtype} loses {1 - kept[dtype]:.2%} of what training changed"
            lines.append(f"       WARNING: {lost}; --dtype {best} keeps {kept[best]:.2%}")
        else:
            lines.append(f"       recommended: --dtype {best}, which keeps {kept[best]:.2%} of what training changed")
    if values["logits_differ_by"] is not None:
        lines.append(f"check  read back, logits differ by at most {values['logits_differ_by']:.1e}")
    return lines
