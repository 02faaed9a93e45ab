"""Objectives from the command line: what is built, and what is refused with which hint."""

from __future__ import annotations

import pytest

from minimind.errors import ConfigError
from minimind.objective.losses import Need, SigmoidLoss, build_objective, loss_class, loss_names

MPO = "sigmoid:0.8,bco_pair:0.2,sft:1.0"


def parts(spec, flags=None, loss_options=None):
    return [(part.loss, part.weight) for part in build_objective(spec, flags, loss_options).parts]


def test_one_loss_has_its_own_defaults_and_weight_1():
    assert parts("sigmoid") == [(SigmoidLoss(), 1.0)]
    assert parts("simpo") == [(loss_class("simpo")(beta=2.0, gamma=1.0), 1.0)]
    assert parts("hinge: 0.5") == [(loss_class("hinge")(), 0.5)]


def test_flags_apply_to_all_losses_that_have_them():
    assert parts(MPO, {"beta": 0.3, "label_smoothing": 0.1, "average_log_prob": False}) == [
        (SigmoidLoss(beta=0.3, label_smoothing=0.1, average_log_prob=False), 0.8),
        (loss_class("bco_pair")(beta=0.3, average_log_prob=False), 0.2),
        (loss_class("sft")(), 1.0),
    ]


def test_loss_options_apply_to_all_losses_or_to_one():
    given = '{"reward_shift": 0, "sigmoid": {"beta": 1}, "discopop": {"tau": 0.5, "average_log_prob": 0}}'
    assert parts("sigmoid,bco_pair:2,discopop", {"beta": 0.3}, given) == [
        (SigmoidLoss(beta=1.0), 1.0),
        (loss_class("bco_pair")(beta=0.3, reward_shift=False), 2.0),
        (loss_class("discopop")(beta=0.3, tau=0.5, average_log_prob=False), 1.0),
    ]


@pytest.mark.parametrize(
    ("spec", "flags", "loss_options", "said"),
    [
        ("sigmod", {}, None, "no such loss: sigmod; did you mean sigmoid?; known are alpha_divergence, "),
        ("xyz", {}, None, "no such loss: xyz; known are "),
        ("dpo", {}, None, "no loss is called dpo: DPO is sigmoid; known are "),
        ("KTO", {}, None, "no loss is called KTO: KTO is kto"),
        ("kto_pair", {}, None, "no loss is called kto_pair: kto takes answers with labels, and a pair as two"),
        ("kto,sigmoid,bco", {}, None, "losses of single answers (kto, bco) and of pairs (sigmoid) cannot be mixed"),
        ("sigmoid,", {}, None, "--loss sigmoid,: a loss has no name"),
        ("sigmoid:0.5,sigmoid:1", {}, None, "sigmoid is named twice; add its weights"),
        ("sigmoid:0", {}, None, "the weight of sigmoid is '0', not a number above 0"),
        ("sigmoid:-1", {}, None, "the weight of sigmoid is '-1'"),
        ("sigmoid:", {}, None, "the weight of sigmoid is ''"),
        ("sigmoid:nan", {}, None, "the weight of sigmoid is 'nan'"),
        ("sigmoid:inf", {}, None, "the weight of sigmoid is 'inf'"),
        ("hinge", {"label_smoothing": 0.1}, None, "--label_smoothing means nothing for --loss hinge; hinge has aver"),
        ("sft", {"beta": 0.1}, None, "--beta means nothing for --loss sft; sft has no options"),
        ("sft,simper", {"beta": 0.1}, None, "--beta means nothing for --loss sft,simper"),
        (
            "simpo",
            {"average_log_prob": False},
            None,
            "--average_log_prob means nothing for --loss simpo, simpo takes the mean of log-probs; simpo has beta, ",
        ),
        ("cpo", {"average_log_prob": True}, None, "cpo takes the sum of log-probs"),
        ("discopop", {}, '{"taus": 0.1}', "--loss_options taus means nothing for --loss discopop; did you mean tau?"),
        ("sigmoid", {}, '{"tau": 0.1}', "--loss_options tau means nothing for --loss sigmoid; sigmoid has average_log"),
        ("sigmoid", {}, "tau=0.1", "--loss_options tau=0.1: not JSON"),
        ("sigmoid", {}, "[1]", "--loss_options [1]: not a JSON object"),
        ("sigmoid", {"beta": 0.1}, '{"beta": 0.2}', "--loss_options beta: also given as --beta; give it once"),
        ("sigmoid,sft", {}, '{"sigmoids": {"beta": 1}}', "--loss_options sigmoids: not a loss of --loss; did you mean"),
        ("sigmoid,sft", {}, '{"sft": {"beta": 1}}', "--loss_options sft.beta means nothing for --loss sft"),
        ("sigmoid", {"label_smoothing": 0.5}, None, "label_smoothing of sigmoid: 0.5 is not below 0.5"),
        ("exo_pair", {"label_smoothing": 0.0}, None, "label_smoothing of exo_pair: 0 is not above 0"),
        ("discopop", {}, '{"tau": 2}', "tau of discopop: 2 is above 1"),
        ("bco_pair", {}, '{"reward_shift": "no"}', "reward_shift of bco_pair: 'no' is neither 0 nor 1"),
        ("sigmoid", {}, '{"beta": "0.1"}', "beta of sigmoid: '0.1' is not a finite number"),
    ],
)
def test_what_is_wrong_is_refused_with_a_hint(spec, flags, loss_options, said):
    with pytest.raises(ConfigError) as caught:
        build_objective(spec, flags, loss_options)
    assert said in str(caught.value)
    assert "problems:" not in str(caught.value)


def test_all_problems_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        build_objective("sigmoid:0,hing,ipo", {"beta": -1}, '{"ip": {"beta": 1}}')
    assert str(caught.value).startswith("4 problems:")


@pytest.mark.parametrize("name", loss_names())
def test_every_loss_is_built_alone_and_in_a_mix(name):
    assert build_objective(name).parts[0].loss == loss_class(name)()
    others = ("bco", "kto") if Need.LABELS in loss_class(name).needs else ("sft", "sigmoid")
    other = next(one for one in others if one != name)
    assert [part.weight for part in build_objective(f"{name}:0.5,{other}:2").parts] == [0.5, 2.0]
