"""The weights in a run's folder: its one Hugging Face folder

save_dir/run.json, save_dir/dpo_512/config.json -> exported_folder -> save_dir/dpo_512
"""

from __future__ import annotations

from pathlib import Path

from minimind.errors import WeightsError


def exported_folder(path: Path) -> Path:
    """The Hugging Face folder in a run's folder; any other path is returned as it is.

    Raises:
        WeightsError: the run has written no weights yet, or under several names.
    """
    if not (path / "run.json").is_file() or (path / "config.json").is_file():
        return path
    # A hidden one is the unfinished folder of a process that was killed.
    found = sorted(file.parent for file in path.glob("[!.]*/config.json"))
    if len(found) != 1:
        listed = ", ".join(folder.name for folder in found) or "none"
        raise WeightsError(f"{path}: a run's folder with one folder of weights is expected, found: {listed}")
    return found[0]
