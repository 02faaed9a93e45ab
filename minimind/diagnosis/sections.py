"""The sections of the report about one run: its numbers, findings, pairs, answers, exports and settings.

ReportedRun, Language -> one function for each section -> Markup of its content; nothing where there is nothing to show

Whatever a file says (rows, prompts, answers, names) is text and is escaped (pages/markup.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

from minimind.diagnosis.guard import BY_NAME
from minimind.diagnosis.language import ENGLISH, Language
from minimind.diagnosis.reported import ReportedRun
from minimind.diagnosis.rules.rule import Rule
from minimind.diagnosis.run_files import Entry, RunFiles
from minimind.pages.markup import Markup, element, joined
from minimind.pages.parts import note, table
from minimind.pages.words import count, duration, share

# Prompts with answers that are shown, and characters of a text.
_PROMPTS, _CHARACTERS = 40, 4000


def figures(run: RunFiles, say: Language) -> list[tuple[str, str]]:
    """Values and names of the tiles."""
    # A run that was killed, or that has ended early, has more steps than it has taken.
    planned = int(run.identity.get("total_steps") or 0)
    taken = count(run.steps) if run.steps >= planned else f"{count(run.steps)} / {count(planned)}"
    found = [(taken, say("global steps"))]
    for prefix in run.sets[:1]:
        for metric, name in (
            ("rewards/accuracies", say("held-out accuracy, before and after")),
            ("loss", say("held-out loss, before and after")),
            ("rewards/margins", say("held-out margin")),
        ):
            if curve := run.curve(f"{prefix}{metric}"):
                values = curve[-1:] if metric == "rewards/margins" else (curve[0], curve[-1])
                found.append((" → ".join(f"{value:.3g}" for _, value in values), name))
    if rates := run.curve("tokens_per_second"):
        found.append((count(_middle(rates)), say("tokens a second")))
    if memory := run.curve("peak_memory_gib"):
        found.append((f"{max(value for _, value in memory):.2f} GiB", say("peak memory of a rank")))
    return found


def findings(run: RunFiles, say: Language) -> Iterator[Markup]:
    """What the guard has said."""
    if run.settings.get("guard", {}).get("value") == "off":
        yield note(say("The guard was off (--guard off)."))
        return
    items = []
    for found in run.findings:
        rule = BY_NAME.get(str(found.get("rule")))
        of_set = f" ({found['set']})" if found.get("set") else ""
        name = say(rule.title) if rule is not None else str(found.get("rule"))
        said = say("{rule}, step {step}: ", rule=f"{name}{of_set}", step=found.get("at", found["step"]))
        title = element("b", said)
        text, remedy = _said(found, rule, say)
        items.append(element("li", title, say("{text}: {remedy}", text=text, remedy=remedy), cls="warning"))
    yield element("ul", *items, cls="findings") if items else element("p", say("The guard has found nothing."))


def _said(found: Entry, rule: Rule | None, say: Language) -> tuple[str, str]:
    """What a finding says and what it advises, in the page's language if the run has kept its numbers, else as it was
    said."""
    values = found.get("values")
    if rule is not None and isinstance(values, dict) and say.code != ENGLISH:
        # Another version may have had other forms and numbers.
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return say(rule.texts[found.get("form", "")], **values), say(rule.remedy, **values)
    return str(found.get("text")), str(found.get("remedy"))


def answers(run: RunFiles, say: Language) -> Iterator[Markup]:
    """Answers to the same prompts at the first and at the last step that have any."""
    if not run.samples:
        yield note(say("This run has no samples (samples.jsonl)."))
        return
    steps = sorted({entry["step"] for entry in run.samples})
    before, after = (_by_prompt(run.samples, step) for step in (steps[0], steps[-1]))
    prompts = [prompt for prompt in after if prompt in before][:_PROMPTS]
    yield note(say("Answers at step {first} and at step {last}.", first=steps[0], last=steps[-1]))
    for prompt in prompts:
        columns = [
            element("div", element("h3", title), element("div", _cut(text), cls="text"))
            for title, text in ((say("before"), before[prompt]), (say("after"), after[prompt]))
        ]
        yield element("h3", prompt)
        yield element("div", *columns, cls="columns")


def _by_prompt(samples: Sequence[Entry], step: int) -> dict[str, str]:
    return {str(one.get("prompt", "")): str(one.get("answer", "")) for one in samples if one["step"] == step}


def exports(run: RunFiles, say: Language) -> Iterator[Markup]:
    """What was written, and what rounding kept of the training."""
    moved = {name: run.curve(name)[-1][1] for name in run.names("moved/")}
    if moved:
        shares = ", ".join(f"{name.removeprefix('moved/')} {share(value)}" for name, value in moved.items())
        text = say(
            "Share of the weights that differ from the start weights, by dtype of the file: {shares}.", shares=shares
        )
        yield element("p", text)
    if not run.exports:
        yield note(say("Nothing was exported (launch/export.py), or not into this folder: give it with --export."))
        return
    lines = []
    for one in run.exports:
        dtype = str(one.get("dtype"))
        differ, kept = (one.get(name) or {} for name in ("differ_from_base", "kept_of_training"))
        values = [share(some[dtype]) if dtype in some else "-" for some in (differ, kept)]
        lines.append([str(one["path"]), str(one.get("to")), dtype, *values, str(one.get("recommended_dtype") or "-")])
    heads = [
        say("folder"),
        say("form"),
        say("dtype"),
        f"#{say('weights that moved')}",
        f"#{say('kept of what training changed')}",
        say("recommended"),
    ]
    yield table(heads, lines)


def cost(run: RunFiles, say: Language) -> Iterator[Markup]:
    """How fast the run was, and what it took."""
    hardware = run.record.get("hardware", {})
    ranks = int(hardware.get("ranks") or 1)
    lines = [
        [say("device"), f"{hardware.get('device', '-')}"],
        [say("ranks, machines"), f"{ranks}, {hardware.get('machines', '-')}"],
    ]
    rates = {name: run.curve(name) for name in ("tokens_per_second", "pairs_per_second", "answers_per_second")}
    for name, curve in rates.items():
        if curve:
            lines.append([name, f"{_middle(curve):,.1f}"])
    items = next((curve for name, curve in rates.items() if curve and name != "tokens_per_second"), [])
    if items and (batch := run.identity.get("pairs a step")):
        seconds = run.steps * int(batch) / _middle(items)
        lines.append([say("time of all steps, without evaluation and saving"), duration(seconds)])
        lines.append([say("hours of all ranks"), f"{ranks * seconds / 3600:.2f}"])
    yield table(["", ""], lines)


def settings(run: RunFiles, say: Language) -> Iterator[Markup]:
    """What ran: settings with their origins, data, hashes, versions."""
    rows = [[f"--{name}", _shown(one.get("value")), str(one.get("origin"))] for name, one in run.settings.items()]
    heads = [say("setting"), say("value"), say("from")]
    yield table(heads, [row for row in rows if row[2] != "default"])
    identity = [[name, _shown(value)] for name, value in run.identity.items() if name not in run.settings]
    versions = [[name, str(value)] for name, value in run.record.get("versions", {}).items()]
    for title, content in (
        (say("Defaults"), table(heads, [row for row in rows if row[2] == "default"])),
        (say("What the checkpoints say of the run"), table(["", ""], identity)),
        (say("Versions"), table(["", ""], versions)),
    ):
        yield element("details", element("summary", title), element("div", content))


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "-"
    if isinstance(value, bool):
        return str(int(value))  # as a command line has it
    return "-" if value is None else str(value)


def _middle(curve: Sequence[tuple[int, float]]) -> float:
    """The median: the first steps are slow."""
    values = sorted(value for _, value in curve)
    return values[len(values) // 2]


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} ..."


def comparison(runs: Sequence[ReportedRun], say: Language) -> Iterator[Markup]:
    """Several runs beside each other: their numbers, and the settings in which they differ."""
    names = [f"#{one.files.name}" for one in runs]
    tiles = [{name: shown for shown, name in figures(one.files, say)} for one in runs]
    listed = list(dict.fromkeys(name for one in tiles for name in one))
    yield table(["", *names], [[name, *(one.get(name, "-") for one in tiles)] for name in listed])
    flags = dict.fromkeys(name for one in runs for name in one.files.settings)
    shown = {name: [_shown(one.files.settings.get(name, {}).get("value")) for one in runs] for name in flags}
    differing = [[f"--{name}", *values] for name, values in shown.items() if len(set(values)) > 1]
    yield element("h3", say("Settings that differ"))
    # Values are texts, such as paths, which a narrow page or paper must break.
    columns = [name.removeprefix("#") for name in names]
    yield table([say("setting"), *columns], differing) if differing else note(say("None."))


def value(number: float) -> str:
    """A number of a pair; a dash if it is not known."""
    return f"{number:.3f}" if math.isfinite(number) else "-"


def texts(title: str, text: str) -> Markup:
    """A text of a row with a heading."""
    return joined(element("h3", title), element("div", _cut(text), cls="text"))
