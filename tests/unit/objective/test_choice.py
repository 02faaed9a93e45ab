"""The objective of a run's settings, and the settings that follow from it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest

from minimind.config import model_defaults, parse_settings
from minimind.config.generations import defaults_of_run
from minimind.errors import ConfigError
from minimind.objective.choice import choose_objective
from minimind.objective.losses import Need, SigmoidLoss, loss_class, registry


def chosen(*flags, model=None):
    settings, objective = choose_objective(parse_settings(flags), model)
    names = ("beta", "average_log_prob", "label_smoothing", "reference")
    return {name: (settings.values[name], settings.origins[name]) for name in names}, objective


def test_the_default_is_minimind_s_dpo():
    values, objective = chosen()
    assert [part.loss for part in objective.parts] == [SigmoidLoss(beta=0.1, average_log_prob=True)]
    assert values == {
        "beta": (0.1, "default"),
        "average_log_prob": (True, "default"),
        "label_smoothing": (0.0, "default"),
        "reference": ("live", "default"),
    }


def test_flags_win_over_the_loss_s_own_options():
    values, objective = chosen("--beta", "0.5", "--average_log_prob", "0", "--loss_options", '{"label_smoothing": 0.1}')
    assert objective.parts[0].loss == SigmoidLoss(beta=0.5, average_log_prob=False, label_smoothing=0.1)
    assert values["beta"] == (0.5, "flag")
    assert values["average_log_prob"] == (False, "flag")
    assert values["label_smoothing"] == (0.1, "default")


def test_what_a_loss_implies_is_said():
    values, objective = chosen("--loss", "simpo")
    assert objective.parts[0].loss == loss_class("simpo")()
    assert values == {
        "beta": (2.0, "--loss simpo"),
        "average_log_prob": (True, "--loss simpo"),
        "label_smoothing": (0.0, "--loss simpo"),
        "reference": ("none", "--loss simpo"),
    }
    values, _ = chosen("--loss", "sppo_hard")
    assert values["average_log_prob"] == (False, "--loss sppo_hard")
    assert values["reference"] == ("live", "default")


def test_an_option_that_differs_between_losses_has_no_common_value():
    values, _ = chosen("--loss", "sigmoid,simpo,cpo:0.5")
    assert values["beta"][0] is None
    assert values["average_log_prob"][0] is None
    assert values["reference"] == ("live", "default")  # sigmoid needs it


@pytest.mark.parametrize(
    ("generation", "beta", "average", "origin"),
    [
        (2, 0.1, True, "generation 2"),
        (3, 0.15, False, "generation 3"),
        (None, 0.1, False, "Hugging Face model"),
    ],
)
@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "aot", "sigmoid:0.8,bco_pair:0.2"])
def test_options_follow_the_model(generation, beta, average, origin, loss):
    values, objective = chosen("--loss", loss, model=model_defaults(generation))
    assert all((part.loss.beta, part.loss.average_log_prob) == (beta, average) for part in objective.parts)
    assert values["beta"] == (beta, origin)
    assert values["average_log_prob"] == (average, origin)
    assert values["label_smoothing"][1] == f"--loss {loss}"


@pytest.mark.parametrize("loss", ["ipo", "simpo", "sppo_hard", "cal_dpo", "cpo", "orpo", "sigmoid_norm"])
def test_losses_with_values_of_their_own_keep_them(loss):
    values, objective = chosen("--loss", loss, model=model_defaults(3))
    assert objective.parts[0].loss == loss_class(loss)()
    assert values["average_log_prob"][1] == f"--loss {loss}"


def test_flags_win_over_the_model_s_defaults():
    values, _ = chosen("--beta", "0.5", model=model_defaults(3))
    assert values["beta"] == (0.5, "flag")
    assert values["average_log_prob"] == (False, "generation 3")
    values, objective = chosen("--loss_options", '{"beta": 0.3}', model=model_defaults(3))
    assert objective.parts[0].loss.beta == 0.3
    assert values["beta"] == (0.3, "default")


def test_a_resumed_run_goes_on_with_its_options():
    """A run of generation 3 that an earlier version started has the mean."""
    model = defaults_of_run({"loss": "sigmoid", "beta": 0.1, "average_log_prob": True})
    values, objective = chosen(model=model)
    assert objective.parts[0].loss == SigmoidLoss(beta=0.1, average_log_prob=True)
    assert values["average_log_prob"] == (True, "checkpoint")
    mix = {"sigmoid.beta": 0.2, "sigmoid.average_log_prob": False, "hinge.beta": 0.3, "hinge.average_log_prob": False}
    values, objective = chosen("--loss", "sigmoid,hinge", model=defaults_of_run(mix))
    assert [part.loss.beta for part in objective.parts] == [0.2, 0.3]
    assert values["average_log_prob"] == (False, "checkpoint")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--loss simpo --reference live", "--loss simpo needs no reference; drop --reference"),
        (
            "--loss simpo,sft:0.5 --reference cached --reference_config f.json",
            "--loss simpo:1,sft:0.5 needs no reference; drop --reference and --reference_config",
        ),
        ("--reference none", "--reference none: --loss sigmoid needs a reference; use live or cached"),
        ("--loss hinge --label_smoothing 0.1", "--label_smoothing means nothing for --loss hinge"),
    ],
)
def test_contradictions_are_refused(flags, message):
    with pytest.raises(ConfigError) as caught:
        chosen(*flags.split())
    assert message in str(caught.value)


def test_no_reference_may_be_named():
    assert chosen("--loss", "simpo", "--reference", "none")[0]["reference"][0] == "none"


def test_a_loss_over_tokens_of_the_reference_cannot_use_a_cache(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class PerToken(SigmoidLoss):
        name: ClassVar[str] = "per_token"
        needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCE, Need.PER_TOKEN})

    monkeypatch.setattr(registry, "_LOSSES", {**registry._LOSSES, "per_token": PerToken})
    chosen("--loss", "sigmoid,per_token")
    with pytest.raises(ConfigError, match=r"per_token needs the reference's log-prob of each token.*--reference live"):
        chosen("--loss", "sigmoid,per_token", "--reference", "cached")


def test_a_reference_that_moves_is_live():
    chosen("--reference_update", "soft:0.6@64")
    with pytest.raises(ConfigError, match="keeps log-probs of the one at the start; use --reference live"):
        chosen("--reference_update", "soft:0.6@64", "--reference", "cached")
    with pytest.raises(ConfigError, match="--loss simpo needs no reference; drop --reference_weight and --ref"):
        chosen("--loss", "simpo", "--reference_update", "hard@8", "--reference_weight", "other")
    with pytest.raises(ConfigError, match=r"--reference_update 0\.6: the forms are"):
        chosen("--reference_update", "0.6")
