"""From the command line to an objective: names, weights and options of losses, checked.

"sigmoid:0.8,bco_pair:0.2,sft:1", values of flags, JSON of --loss_options -> build_objective -> Objective
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minimind.errors import ConfigError
from minimind.objective.losses.contract import Need, PreferenceLoss
from minimind.objective.losses.mix import Objective, Part
from minimind.objective.losses.options import options_of
from minimind.objective.losses.registry import loss_class, loss_names

# What other names of methods are called here.
_ELSEWHERE = {
    "dpo": "DPO is sigmoid",
    "cdpo": "cDPO is sigmoid with --label_smoothing",
    "mpo": "MPO is sigmoid:0.8,bco_pair:0.2,sft:1",
    "rpo": "RPO is sigmoid:1,sft:1",
    "slic": "SLiC is hinge",
    "smaug": "Smaug is dpop",
    "kto": "KTO is kto",
    "kto_pair": "kto takes answers with labels, and a pair as two of these",
    "bco": "BCO is bco for answers with labels, bco_pair for pairs",
}


def build_objective(
    spec: str,
    flags: Mapping[str, Any] | None = None,
    loss_options: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Objective:
    """The objective that a command line describes.

    Args:
        spec: value of `--loss`.
        flags: option -> value, for the options that were given as flags; each applies to all losses that have it.
        loss_options: value of `--loss_options`, a JSON object: option -> value, or loss -> {option: value}.
        defaults: `option` or `NAME.option` -> default of the model that is trained, for options that follow it.

    Raises:
        ConfigError: lists everything that is wrong.
    """
    weights, problems = _parse(spec)
    classes = {name: loss_class(name) for name in weights}
    problems += _kinds_of_items(spec, classes)
    general, own, more = _parse_options(loss_options, classes, flags or {})
    problems += more
    # An option is judged only if all names are known: it may be one of the loss that was misspelt.
    if not problems:
        problems += _unused({f"--{name}": name for name in flags or {}}, classes)
        problems += _unused({f"--loss_options {name}": name for name in general}, classes)
    values = {**general, **(flags or {})}
    parts = []
    for name, kind in classes.items():
        known = options_of(kind)
        of_model = options_of_model(kind, defaults or {})
        # From the most general to the most special; the last one counts.
        given = {k: value for k, value in {**of_model, **values, **own.get(name, {})}.items() if k in known}
        wrong = {option: known[option].problem_of(value) for option, value in given.items()}
        problems += [f"{option} of {name}: {problem}" for option, problem in wrong.items() if problem]
        if not any(wrong.values()):
            # JSON has integers where an option is a float, and a switch may be written 0 or 1.
            typed = {option: known[option].kind(value) for option, value in given.items()}
            parts.append(Part(loss=kind(**typed), weight=weights[name]))
    if problems:
        raise ConfigError.from_problems(problems)
    return Objective(parts=tuple(parts))


def options_of_model(loss: type[PreferenceLoss], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Option -> default of the model that is trained, for the options of a loss that follow it.

    Args:
        defaults: as for `build_objective`.
    """
    following = [name for name, option in options_of(loss).items() if option.follows_model]
    found = {name: defaults.get(f"{loss.name}.{name}", defaults.get(name)) for name in following}
    return {name: value for name, value in found.items() if value is not None}


def _parse(spec: str) -> tuple[dict[str, float], list[str]]:
    """Loss -> weight, of the parts that are right, and problems of the others."""
    weights: dict[str, float] = {}
    problems = []
    for text in spec.split(","):
        name, colon, weight = (part.strip() for part in text.partition(":"))
        if name not in loss_names():
            problems.append(f"--loss {spec}: {_no_such_loss(name)}")
        elif name in weights:
            problems.append(f"--loss {spec}: {name} is named twice; add its weights")
        elif colon and not _is_weight(weight):
            problems.append(f"--loss {spec}: the weight of {name} is {weight!r}, not a number above 0")
        else:
            weights[name] = float(weight) if colon else 1.0
    return weights, problems


def _kinds_of_items(spec: str, classes: Mapping[str, type[PreferenceLoss]]) -> list[str]:
    """The problem of a mix of losses of pairs and losses of single answers, which no row can be at once."""
    single = [name for name, kind in classes.items() if Need.LABELS in kind.needs]
    paired = [name for name in classes if name not in single]
    if not (single and paired):
        return []
    names = f"losses of single answers ({', '.join(single)}) and of pairs ({', '.join(paired)})"
    return [f"--loss {spec}: {names} cannot be mixed"]


def _is_weight(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _no_such_loss(name: str) -> str:
    if not name:
        return "a loss has no name"
    known = f"known are {', '.join(loss_names())}"
    if elsewhere := _ELSEWHERE.get(name.lower()):
        return f"no loss is called {name}: {elsewhere}; {known}"
    return f"no such loss: {name}{_did_you_mean(name, loss_names())}; {known}"


def _parse_options(
    text: str | None, classes: Mapping[str, type[PreferenceLoss]], flags: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[str]]:
    """Options of all losses, options of single losses by name, and problems."""
    if text is None:
        return {}, {}, []
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        return {}, {}, [f"--loss_options {text}: not JSON: {error}"]
    if not isinstance(parsed, dict):
        return {}, {}, [f'--loss_options {text}: not a JSON object, such as {{"tau": 0.05}}']
    general = {key: value for key, value in parsed.items() if not isinstance(value, dict)}
    own = {key: value for key, value in parsed.items() if isinstance(value, dict)}
    problems = [f"--loss_options {name}: also given as --{name}; give it once" for name in general if name in flags]
    for name, options in own.items():
        if name not in classes:
            problems.append(f"--loss_options {name}: not a loss of --loss{_did_you_mean(name, classes)}")
        else:
            named = {f"--loss_options {name}.{option}": option for option in options}
            problems += _unused(named, {name: classes[name]})
    return general, own, problems


def _unused(options: Mapping[str, str], classes: Mapping[str, type[PreferenceLoss]]) -> list[str]:
    """Problems of options that no loss has.

    Args:
        options: how an option was given -> its name.
    """
    known = {name: tuple(options_of(kind)) for name, kind in classes.items()}
    every = [option for names in known.values() for option in names]
    listed = "; ".join(f"{name} has {', '.join(names) or 'no options'}" for name, names in known.items())
    return [
        f"{shown} means nothing for --loss {','.join(classes)}{_reason(name, classes) or _did_you_mean(name, every)}; "
        f"{listed}"
        for shown, name in options.items()
        if name not in every
    ]


def _reason(option: str, classes: Mapping[str, type[PreferenceLoss]]) -> str:
    """Why losses do not have the option that says which log-probs a row has."""
    if option != "average_log_prob":
        return ""
    taken = ("the mean" if kind.average_log_prob else "the sum" for kind in classes.values())
    return ", " + ", ".join(f"{name} takes {rows} of log-probs" for name, rows in zip(classes, taken, strict=True))


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near: Sequence[str] = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
