"""Made curves: those of a healthy run, of which a test replaces some."""

from __future__ import annotations

from minimind.diagnosis.curves import Curves, Point
from minimind.diagnosis.guard import RULES
from minimind.diagnosis.pair_signals import (
    CORRELATION,
    DISPLACED,
    EQUAL_LENGTH_ACCURACY,
    EQUAL_LENGTHS,
    SATURATED,
)
from minimind.diagnosis.rules.pairs import PAIRS, STILL_WRONG
from minimind.diagnosis.rules.weights import DEAD, EXPECTED, FLOAT32, MOVED

STEPS = (0, 100, 200, 300, 400, 500)


def points(steps=STEPS, **curves):
    """One point for each step; a value that is not a sequence is that of all steps."""
    columns = {name: value if isinstance(value, list) else [value] * len(steps) for name, value in curves.items()}
    return [
        Point(step=step, metrics={name: values[at] for name, values in columns.items() if at < len(values)})
        for at, step in enumerate(steps)
    ]


def curves(logs=(), evaluations=(), saves=(), total_steps=1000, log_ratios=True, logistic=True):
    return Curves(
        logs=list(logs),
        evaluations=list(evaluations),
        saves=list(saves),
        total_steps=total_steps,
        log_ratios=log_ratios,
        logistic=logistic,
    )


def healthy():
    """A run that learns: margins grow, the held-out loss falls with that of training, chosen answers stay likely."""
    evaluated = {
        "loss": [0.693, 0.65, 0.6, 0.56, 0.53, 0.52],
        "nll": [1.2, 1.19, 1.19, 1.2, 1.21, 1.22],
        "rewards/margins": [0, 0.1, 0.25, 0.4, 0.5, 0.55],
        "rewards/accuracies": [0.5, 0.6, 0.68, 0.7, 0.72, 0.72],
        DISPLACED: [0, 0.3, 0.35, 0.4, 0.45, 0.45],
        SATURATED: [0, 0, 0, 0.01, 0.02, 0.03],
        CORRELATION: [0, 0.1, 0.2, 0.2, 0.2, 0.2],
        EQUAL_LENGTH_ACCURACY: [0.5, 0.6, 0.66, 0.69, 0.7, 0.71],
        EQUAL_LENGTHS: 40,
        STILL_WRONG: [0, 0, 0, 0.02, 0.02, 0.03],
        PAIRS: 200,
    }
    logged = {
        "loss": [0.693, 0.64, 0.58, 0.54, 0.5, 0.48],
        "rewards/margins": [0, 0.12, 0.3, 0.45, 0.6, 0.65],
        "rewards/accuracies": [0.5, 0.65, 0.7, 0.75, 0.78, 0.8],
        "learning_rate": 1e-6,
        DEAD: [0.5, 0, 0, 0, 0, 0],
        EXPECTED: [20, 2000, 2000, 2000, 2000, 2000],
    }
    return evaluated, logged


def made(evaluated=None, logged=None, saved=None, **facts):
    """Curves of a healthy run with some curves replaced."""
    held_out, trained = healthy()
    saved = {FLOAT32: [0.99, 0.99], f"{MOVED}bfloat16": [0.1, 0.7], f"{MOVED}float16": [0.5, 0.9], **(saved or {})}
    facts = {"saves": points((100, 500), **saved), **facts}
    return curves(points(**{**trained, **(logged or {})}), points(**{**held_out, **(evaluated or {})}), **facts)


def found(one):
    return [finding.rule for rule in RULES if (finding := rule(one)) is not None]
