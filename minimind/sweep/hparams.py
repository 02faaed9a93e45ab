"""The sweep in TensorBoard's HPARAMS tab: one experiment, in which the runs can be compared.

    save_dir/events...                            the experiment: which flags differ, which metrics count
    save_dir/RUN/tensorboard/RUN/final/events...  the run: its settings and its last metrics; it writes both

`tensorboard --logdir save_dir` shows them. A run whose DeepSpeed file writes no TensorBoard files is left out.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minimind.engine.monitor import EventFile
from minimind.engine.summaries import final_tag
from minimind.sweep.results import RunResult


def write_hparams(folder: Path, results: Sequence[RunResult]) -> list[str]:
    """Write the experiment anew.

    Returns:
        Names of finished runs without TensorBoard files.

    Raises:
        OSError: a file cannot be written.
    """
    differing = results[0].plan.differing
    finished = [result for result in results if result.finished]
    if not differing or not finished:
        return []
    # Imported only here: slow, and not needed to train.
    from torch.utils.tensorboard.summary import hparams

    words = {name: list(dict.fromkeys(one.plan.differing[name] for one in results)) for name in differing}
    domains = {name: _typed(found) for name, found in words.items()}
    metrics = {final_tag(name): 0.0 for result in finished for name in result.logged}
    experiment, _, _ = hparams({name: found[0] for name, found in domains.items()}, metrics, domains)
    _mark_differing(experiment)
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    file = EventFile(folder)
    file.add_summary(experiment, step=0)
    file.flush()
    return [result.plan.name for result in finished if _events_folder(result.plan.folder) is None]


def _mark_differing(experiment: Any) -> None:
    """Mark all flags of the experiment as different between runs: TensorBoard hides the columns of others."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    plugin = experiment.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    for info in data.experiment.hparam_infos:
        # Earlier versions of TensorBoard do not know the field, and hide nothing.
        if "differs" in info.DESCRIPTOR.fields_by_name:
            info.differs = True
    plugin.content = data.SerializeToString()


def _events_folder(run: Path) -> Path | None:
    """Where a run has written its TensorBoard events; None if nowhere below its own folder."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        section = json.loads((run / "ds_config.json").read_text(encoding="utf-8"))["tensorboard"]
        folder = Path(section["output_path"], section["job_name"])
        if section["enabled"] and folder.absolute().is_relative_to(run.absolute()) and folder.is_dir():
            return folder
    return None


def _typed(words: Sequence[str]) -> Sequence[float | str]:
    """Numbers if all are, as in the runs' own settings: TensorBoard draws them on a numeric axis and mixes no types."""
    try:
        return list(map(float, words))
    except ValueError:
        return words
