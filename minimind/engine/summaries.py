"""What TensorBoard shows besides curves: texts, histograms, hyperparameters, and which curves come first.

    name of a metric -> tag_of -> tag of its curve: `loss` -> `train/loss`, for TensorBoard groups curves by what is
                                  before the slash
    values           -> text, histogram, layout             -> Summary -> RunMonitor.write_summaries
    values           -> finals, session_start, session_end  -> Summary -> the same, in the folder FINAL

The protocol buffers are made by torch's functions. They are imported late: slow, and not needed without TensorBoard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Bars of a histogram.
_BINS = 40
# Group of the metrics without one; of the others, whose names have a slash, it is what is before the first.
_GROUPS = {
    **dict.fromkeys(("grad_norm", "grad_clipped", "learning_rate"), "optimizer"),
    **dict.fromkeys(("memory_gib", "peak_memory_gib"), "memory"),
    "mfu": "speed",
}
_TRAINED, _RATES = "train", "_per_second"
# Folder and group of what compares runs.
FINAL = "final"


def tag_of(name: str) -> str:
    """TensorBoard's tag of a metric."""
    if "/" in name:
        return name
    group = "speed" if _RATES in name else _GROUPS.get(name, _TRAINED)
    return f"{group}/{name}"


def final_tag(name: str) -> str:
    """Tag of the last value of a metric, for the tab HPARAMS."""
    return f"{FINAL}/{name}"


def finals(metrics: Mapping[str, float]) -> list[Any]:
    """Last values of metrics, by name."""
    from torch.utils.tensorboard import summary

    return [summary.scalar(final_tag(name), value) for name, value in metrics.items()]


def text(tag: str, markdown: str) -> Any:
    """A text of the tab TEXT."""
    from torch.utils.tensorboard import summary

    return summary.text(tag, markdown)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown, for `text`."""

    def line(cells: Sequence[object]) -> str:
        # A bar or a line break would end a cell.
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"

    return "\n".join((line(header), line(["---"] * len(header)), *map(line, rows)))


def histogram(tag: str, values: NDArray[np.float64]) -> Any | None:
    """A histogram of the finite values; None if there are none."""
    from torch.utils.tensorboard import summary

    finite = values[np.isfinite(values)]
    return summary.histogram(tag, finite, bins=_BINS) if len(finite) else None


def session_start(values: Mapping[str, Any]) -> Any:
    """The settings of a run for the tab HPARAMS, which compares runs: numbers and words, without what is not set."""
    from torch.utils.tensorboard.summary import hparams

    shown = {name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}
    _, start, _ = hparams({name: value for name, value in shown.items() if value not in (None, "")}, {})
    return start


def session_end() -> Any:
    """The end of a run that is finished, for the tab HPARAMS."""
    from torch.utils.tensorboard.summary import hparams

    *_, end = hparams({}, {})
    return end


def layout(categories: Mapping[str, Mapping[str, Sequence[str]]]) -> Any:
    """The tab CUSTOM SCALARS: category -> title of a chart -> tags of its curves."""
    from torch.utils.tensorboard.summary import custom_scalars

    # TensorBoard takes tags as regular expressions that need not match to the end.
    charts = {
        category: {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in charts.items()}
        for category, charts in categories.items()
    }
    return custom_scalars(charts)
