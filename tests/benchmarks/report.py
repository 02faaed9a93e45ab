"""Reports the rounds: one line per trainer, a table, ratios, a chart."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.plan.peaks import stated_peak
from tests.benchmarks.peers import PEERS
from tests.benchmarks.work import GemmRates, Work

# Colours of Okabe and Ito, which colour-blind readers can distinguish.
_COLOURS = {"ours": "#0072B2", "minimind": "#E69F00", "trl": "#009E73"}
_PART_COLOURS = ("#56B4E9", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#999999")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """Medians over the rounds of one trainer.

    Attributes:
        utilisation: useful operations per second over the GEMM rate around the same round, in the trainer's dtype.
        utilisation_of_forward: the same over the rate of the forward's products alone.
        mfu: the same over the device's stated peak, else over the fastest product measured in all rounds.
        peak_memory_gib, above_memory_gib: memory of the rank with the largest peak; see `common.py`.
        before_seconds: seconds of precomputing the reference's log-probs; None with a live reference.
        first_step_seconds: seconds from the command to the end of the first step; None if not recorded.
        first_step_cpu_seconds: processor time of all threads of all ranks up to that point.
        versus: this project's pairs/s with the same kind of reference over this trainer's; None without that run.
    """

    trainer: str
    pairs_per_second: float
    tokens_per_second: float
    utilisation: float
    utilisation_of_forward: float
    mfu: float
    peak_memory_gib: float
    above_memory_gib: float
    before_seconds: float | None
    first_step_seconds: float | None
    first_step_cpu_seconds: float | None
    versus: float | None = None


def lines_of(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    work_of_peer: Callable[[str], Work],
    device: str = "",
) -> list[Line]:
    """A line for each trainer that ran in at least one round; `device` is a GPU's name."""
    lines = []
    for name, rounds in results.items():
        if not rounds:
            continue
        work, live = work_of_peer(name), PEERS[name].live_reference
        seconds = statistics.median(sum(one["seconds"]) for one in rounds)
        flops = work.useful_flops(live_reference=live)
        lines.append(
            Line(
                trainer=name,
                pairs_per_second=work.pairs / seconds,
                tokens_per_second=work.row_tokens / seconds,
                utilisation=statistics.median(flops / sum(one["seconds"]) / rate_of(one, live) for one in rounds),
                utilisation_of_forward=statistics.median(
                    flops / sum(one["seconds"]) / forward_rate_of(one) for one in rounds
                ),
                mfu=flops / seconds / peak_of(name, rounds, device),
                peak_memory_gib=statistics.median(one["peak_memory_gib"] for one in rounds),
                above_memory_gib=statistics.median(one["above_memory_gib"] for one in rounds),
                before_seconds=_median(rounds, "before_seconds"),
                first_step_seconds=_median(rounds, "first_step_seconds"),
                first_step_cpu_seconds=_median(rounds, "first_step_cpu_seconds"),
            )
        )
    speed = {line.trainer: line.pairs_per_second for line in lines}
    for index, line in enumerate(lines):
        ours = speed.get("ours" if PEERS[line.trainer].live_reference else "ours-cached")
        if ours:
            lines[index] = dataclasses.replace(line, versus=ours / line.pairs_per_second)
    return lines


def peak_of(name: str, rounds: Sequence[Mapping[str, Any]], device: str) -> float:
    """Denominator of a trainer's MFU."""
    measured = max(rates["peak"] for one in rounds for rates in one["gemm_rates"])
    return stated_peak(device, PEERS[name].dtype) or measured


def rate_of(one: Mapping[str, Any], live_reference: bool) -> float:
    """The GEMM rate around one round, because the machine's speed changes from minute to minute."""
    around = [GemmRates(**rates) for rates in one["gemm_rates"]]
    return statistics.mean(rates.of_training(live_reference=live_reference) for rates in around)


def forward_rate_of(one: Mapping[str, Any]) -> float:
    """Like `rate_of`, for the forward's products alone."""
    return statistics.mean(rates["forward"] for rates in one["gemm_rates"])


def _median(rounds: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [one[name] for one in rounds if one.get(name) is not None]
    return statistics.median(values) if values else None


def table(lines: Sequence[Line], missing: Mapping[str, str]) -> str:
    """The lines as text, and the reasons of missing trainers."""
    header = (
        "trainer",
        "pairs/s",
        "tokens/s",
        "useful",
        "of x w'",
        "MFU",
        "peak GiB",
        "above",
        "before s",
        "1st step s",
        "ours is",
    )
    rows = [
        (
            line.trainer,
            f"{line.pairs_per_second:.2f}",
            f"{line.tokens_per_second:,.0f}",
            f"{line.utilisation:.0%}",
            f"{line.utilisation_of_forward:.0%}",
            f"{line.mfu:.0%}",
            f"{line.peak_memory_gib:.2f}",
            f"{line.above_memory_gib:.2f}",
            _shown(line.before_seconds),
            _shown(line.first_step_seconds),
            f"{line.versus:.2f}x" if line.versus else "",
        )
        for line in lines
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    text = [
        f"{row[0]:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        for row in (header, *rows)
    ]
    return "\n".join([*text, *(f"{name} did not run: {why}" for name, why in missing.items())])


def _shown(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f}"


def figures(lines: Sequence[Line]) -> dict[str, float]:
    """Ratios of the comparison; ratios of trainers that did not run are left out."""
    by_name = {line.trainer: line for line in lines}
    out: dict[str, float] = {}

    def ratio(text: str, upper: str | None, lower: str | None, field: str = "pairs_per_second") -> None:
        if upper in by_name and lower in by_name:
            out[text] = getattr(by_name[upper], field) / getattr(by_name[lower], field)

    def fastest(live: bool, adapters: bool = False) -> str | None:
        trl = {name: PEERS[name] for name in by_name if name.startswith("trl")}
        alike = [name for name, peer in trl.items() if (peer.live_reference, peer.adapters) == (live, adapters)]
        return max(alike, key=lambda name: by_name[name].pairs_per_second, default=None)

    live, precomputed, adapters = fastest(True), fastest(False), fastest(True, adapters=True)
    ratio("pairs/s, ours over MiniMind's loop in float32", "ours", "minimind-fp32")
    ratio("pairs/s, ours over MiniMind's loop in bfloat16", "ours", "minimind-bf16")
    ratio(f"pairs/s, ours over TRL's fastest with a live reference ({live})", "ours", live)
    ratio(f"pairs/s, ours-cached over TRL's fastest in advance ({precomputed})", "ours-cached", precomputed)
    ratio("pairs/s, ours-cached over ours", "ours-cached", "ours")
    ratio("pairs/s, ours-compiled over ours", "ours-compiled", "ours")
    ratio("pairs/s, two ranks on two cores over one on one", "ours-2ranks", "ours-1core")
    ratio(f"memory above the states, ours over {live}", "ours", live, "above_memory_gib")
    ratio(f"memory above the states, ours-cached over {precomputed}", "ours-cached", precomputed, "above_memory_gib")
    ratio(f"pairs/s, ours-lora over TRL's fastest with adapters ({adapters})", "ours-lora", adapters)
    ratio(f"memory above the states, ours-lora over {adapters}", "ours-lora", adapters, "above_memory_gib")
    for name in ("ours-lora", "ours-qlora"):
        ratio(f"pairs/s, {name} over ours", name, "ours")
        ratio(f"memory, {name} over ours", name, "ours", "peak_memory_gib")
    if "ours" in by_name:
        out["seconds from the command to the end of the first step"] = by_name["ours"].first_step_seconds or 0.0
    return out


def startup(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median seconds of each part of the start, up to the first step; `launcher` ends at the rank's first line."""
    return {part: statistics.median(one["startup"][part] for one in rounds) for part in rounds[0]["startup"]}


def breakdown(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean seconds of each part of a step."""
    parts = dict.fromkeys(part for step in steps for part in step)
    # The remainder comes last.
    ordered = [part for part in parts if part != "everything else"] + ["everything else"]
    return {part: statistics.mean(step.get(part, 0.0) for step in steps) for part in ordered}


def parts_text(title: str, parts: Mapping[str, float]) -> str:
    """Parts with their seconds and shares, one per line."""
    total = sum(parts.values())
    rows = [f"  {part:<16} {seconds:>7.3f} s {seconds / total:>6.1%}" for part, seconds in parts.items()]
    return "\n".join([f"{title}: {total:.3f} s", *rows])


def kinds_text(kinds: Mapping[str, float], work: Work, rate: float) -> str:
    """Seconds of each kind of work in this project's steps, and the rate of useful operations over the GEMM rate.

    Products that are computed twice (the head's, again in backward) take time but count once.
    """
    attention = 4 * work.attention_flops
    useful = {"matrix products": work.useful_flops(live_reference=True) - attention, "attention": attention}
    total = sum(kinds.values())
    rows = []
    for kind, seconds in kinds.items():
        at = (
            f"   useful at {useful[kind] / seconds / rate:.0%} of the GEMM rate" if useful.get(kind) and seconds else ""
        )
        rows.append(f"  {kind:<16} {seconds:>7.3f} s {seconds / total:>6.1%}{at}")
    return "\n".join([f"our steps by kind of work, profiled: {total:.3f} s", *rows])


def draw(lines: Sequence[Line], parts: Mapping[str, float], path: Path, title: str) -> None:
    """Draw speed and memory side by side, one bar per trainer, and below the parts of one of this project's steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [line.trainer for line in lines][::-1]
    colours = [_COLOURS[name.split("-")[0]] for name in names]
    height = 0.36 * len(names)
    figure, axes = pyplot.subplot_mosaic(
        [["speed", "memory"], ["parts", "parts"]] if parts else [["speed", "memory"]],
        figsize=(11, height + (2.9 if parts else 1.4)),
        height_ratios=[height, 0.8] if parts else [1],
        layout="constrained",
    )
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    panels = (
        ("speed", "pairs_per_second", "pairs per second (longer is better)"),
        ("memory", "above_memory_gib", "peak memory above weights and optimizer, GiB (shorter is better)"),
    )
    for panel, field, label in panels:
        axis, values = axes[panel], [getattr(line, field) for line in lines][::-1]
        bars = axis.barh(names, values, color=colours)
        ratios = [
            f"   ours is {line.versus:.2g}x" if line.versus and abs(line.versus - 1) > 1e-9 else "" for line in lines
        ]
        shown = zip(values, ratios[::-1] if panel == "speed" else [""] * len(values), strict=True)
        axis.bar_label(bars, [f"{value:.2f}{ratio}" for value, ratio in shown], padding=3, fontsize=8)
        axis.set_xlim(0, max(values) * 1.35)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes["memory"].set_yticklabels([])
    if parts:
        _draw_parts(axes["parts"], parts)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_parts(axis: Any, parts: Mapping[str, float]) -> None:
    left, total = 0.0, sum(parts.values())
    for (part, seconds), colour in zip(parts.items(), _PART_COLOURS, strict=True):
        axis.barh([0], [seconds], left=left, color=colour, label=f"{part} {seconds / total:.0%}")
        left += seconds
    axis.set_yticks([])
    axis.set_xlim(0, total)
    axis.set_xlabel("one step of ours, seconds")
    axis.legend(ncols=len(parts), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)
    axis.spines[["top", "right", "left"]].set_visible(False)
