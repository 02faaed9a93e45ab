"""Losses against TRL's own code (`pytest --long tests/benchmarks/test_trl_losses.py`; needs the package trl).

TRL's trainers are not built: their loss functions run on a stand-in for the trainer and on a model that returns given
log-probs. Where a loss differs from TRL on purpose, the options or the expected value say how.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from minimind.objective.losses import LossInputs, PairScores, build_objective
from minimind.objective.rows import row_sums

pytestmark = pytest.mark.long

# Targets of the prefix, of chosen and of rejected. TRL has no targets in the prefix of an answer.
COUNTS = [[0, 3, 5], [0, 4, 2], [0, 1, 1], [0, 6, 6]]


def random_log_probs(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -torch.rand(sum(map(sum, COUNTS)), generator=generator, dtype=torch.float64) * 3


POLICY, REFERENCE, COLLISIONS = random_log_probs(1), random_log_probs(2), random_log_probs(3)


def ours(spec: str, options: str | None = None, flags: dict | None = None) -> float:
    counts = torch.tensor(COUNTS)
    both = (
        PairScores(
            sums=row_sums(one, counts), target_counts=counts, per_token=one, collision_sums=row_sums(COLLISIONS, counts)
        )
        for one in (POLICY, REFERENCE)
    )
    inputs = LossInputs(**dict(zip(("policy", "reference"), both, strict=True)))
    return build_objective(spec, flags, options)(inputs).losses.mean().item()


def padded(log_probs: torch.Tensor) -> torch.Tensor:
    """(8, longest): chosen rows, then rejected rows, as TRL has them."""
    halves = log_probs.split([count for pair in COUNTS for count in pair[1:]])
    return torch.nn.utils.rnn.pad_sequence([*halves[::2], *halves[1::2]], batch_first=True)


def trainer_states() -> torch.nn.Module:
    """What a trainer asks its model about its states."""
    states = torch.nn.Identity()
    states.is_gradient_checkpointing = False
    return states


def trl_dpo(loss_type: str, **changes: object) -> float:
    """Mean loss of TRL's DPO trainer."""
    trainer = pytest.importorskip("trl").DPOTrainer
    policy, reference = (padded(one) for one in (POLICY, REFERENCE))
    lengths = torch.tensor([pair[half] for half in (1, 2) for pair in COUNTS])
    # One prompt token before each answer, which nothing predicts.
    mask = torch.nn.functional.pad((torch.arange(policy.shape[1]) < lengths[:, None]).long(), (1, 0))
    nothing = torch.zeros_like(policy)

    def model(log_probs):
        unused = {"entropy": nothing, "mean_logits": nothing, "log_sum_sq_probs": padded(COLLISIONS)}
        return lambda **_: SimpleNamespace(log_probs=log_probs, is_top1=nothing.bool(), **unused)

    stand_in = SimpleNamespace(
        # The policy is the model that is given to the function; this one only has states.
        model=trainer_states(),
        ref_model=model(reference),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
        _metrics={"train": collections.defaultdict(list)},
        **dict.fromkeys(("_total_train_tokens", "label_smoothing"), 0),
        **dict.fromkeys(("aux_loss_enabled", "precompute_ref_logps", "use_weighting"), False),
        _tp_size=1,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=0.5,
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=0.3,
    )
    vars(stand_in).update(changes)
    inputs = {"input_ids": mask, "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    return trainer._compute_loss(stand_in, model(policy), inputs, False).item()


SUMS, MEANS = {"beta": 0.3, "average_log_prob": False}, {"beta": 0.3}


@pytest.mark.parametrize(
    ("spec", "flags", "options", "theirs", "changes"),
    [
        ("sigmoid", SUMS, None, "sigmoid", {}),
        ("sigmoid_norm", MEANS, None, "sigmoid_norm", {}),
        ("robust", SUMS | {"label_smoothing": 0.1}, None, "robust", {"label_smoothing": 0.1}),
        ("hinge", SUMS, None, "hinge", {}),
        ("ipo", MEANS, None, "ipo", {}),
        ("exo_pair", SUMS | {"label_smoothing": 0.01}, None, "exo_pair", {"label_smoothing": 0.01}),
        ("nca_pair", SUMS, None, "nca_pair", {}),
        # TRL has no reward shift.
        ("bco_pair", SUMS, '{"reward_shift": 0}', "bco_pair", {}),
        ("sppo_hard", MEANS, None, "sppo_hard", {}),
        ("aot", SUMS | {"label_smoothing": 0.1}, None, "aot", {"label_smoothing": 0.1}),
        ("aot_unpaired", SUMS | {"label_smoothing": 0.1}, None, "aot_unpaired", {"label_smoothing": 0.1}),
        ("apo_zero", SUMS, None, "apo_zero", {}),
        ("apo_down", SUMS, None, "apo_down", {}),
        ("discopop", SUMS, None, "discopop", {}),
        ("reverse_kl", MEANS, None, "sigmoid", {}),
        ("js_divergence", MEANS, None, "sigmoid", {"f_divergence_type": "js_divergence"}),
        ("forward_kl", MEANS, None, "sigmoid", {"f_divergence_type": "forward_kl"}),
        ("wpo", SUMS, None, "sigmoid", {"use_weighting": True}),
        ("ld_dpo", MEANS, '{"ld_alpha": 0.3}', "sigmoid", {"ld_alpha": 0.3}),
    ],
)
def test_losses_equal_trl_s(spec, flags, options, theirs, changes):
    assert ours(spec, options, flags) == pytest.approx(trl_dpo(theirs, **changes), rel=1e-6)


def test_the_alpha_divergence_of_trl_has_the_other_coefficient(monkeypatch):
    """alpha here is 1 - TRL's; TRL clamps exponents by dtype and knows no float64."""
    for name in ("POLICY", "REFERENCE"):
        monkeypatch.setitem(globals(), name, globals()[name].float())
    theirs = trl_dpo("sigmoid", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.25)
    assert ours("alpha_divergence", '{"alpha": 0.75}', {"beta": 0.3}) == pytest.approx(theirs, rel=1e-5)


def policy_rows(average: bool) -> tuple[torch.Tensor, torch.Tensor]:
    counts = torch.tensor(COUNTS)
    rows = PairScores(sums=row_sums(POLICY, counts), target_counts=counts).rows(average)
    return rows[:, 0], rows[:, 1]


@pytest.mark.parametrize(
    ("spec", "flags", "options", "average", "changes"),
    [
        ("simpo", {"beta": 2.0}, '{"gamma": 0.5}', True, {"loss_type": "simpo"}),
        ("simpo", {"beta": 2.0, "label_smoothing": 0.1}, None, True, {"loss_type": "simpo", "label_smoothing": 0.1}),
        ("alpha_po", {"beta": 2.0}, '{"gamma": 0.5, "alpha": 0.3}', True, {"loss_type": "simpo", "alpha": 0.3}),
        # The second term is apart in TRL, and a mean over the tokens of the batch there.
        ("cpo", {"beta": 0.3}, '{"nll_weight": 0}', False, {"loss_type": "sigmoid", "beta": 0.3}),
    ],
)
def test_losses_equal_trl_s_cpo_trainer(spec, flags, options, average, changes):
    trainer = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    known = {"alpha": 0.0, "beta": 2.0, "label_smoothing": 0.0, "simpo_gamma": 1.0, **changes}
    if options and "gamma" in options:
        known["simpo_gamma"] = 0.5
    stand_in = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), **known)
    losses, *_ = trainer.cpo_loss(stand_in, *policy_rows(average))
    assert ours(spec, options, flags) == pytest.approx(losses.mean().item(), rel=1e-6)


def test_orpo_equals_trl_s():
    """TRL computes it in float32, and adds its first term apart."""
    trainer = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
    stand_in = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), beta=0.25)
    chosen, rejected = policy_rows(average=True)
    weighted, *_ = trainer.odds_ratio_loss(stand_in, chosen, rejected)
    expected = (-chosen - weighted.double()).mean().item()
    assert ours("orpo", '{"odds_weight": 0.25}') == pytest.approx(expected, rel=1e-5)


# Targets of six answers, and of the six answers to other prompts, behind the same prompt of one token.
ANSWERS, OTHERS = [3, 5, 1, 4, 2, 6], [2, 4, 4, 1, 3, 5]
LABELS = [True, False, True, True, False, True]
# Log-probs of the answers and of the other answers, under the policy and under the reference.
Known = dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]]


def answer_masks(counts: list[int]) -> torch.Tensor:
    """(6, longest): 0 for the prompt's token and for padding."""
    return torch.nn.functional.pad((torch.arange(max(counts)) < torch.tensor(counts)[:, None]).long(), (1, 0))


def trl_kto(loss_type: str, known: Known, weights: tuple[float, float]) -> tuple[float, dict[str, list[float]]]:
    """Mean loss and metrics of TRL's KTO trainer."""
    trainer = pytest.importorskip("trl").KTOTrainer

    def model(number: int):
        def forward(*, input_ids, **_):
            name = "own" if torch.equal(input_ids, answer_masks(ANSWERS)) else "other"
            log_probs = torch.nn.utils.rnn.pad_sequence(known[name][number], batch_first=True)
            nothing = torch.zeros_like(log_probs)
            return SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing)

        return forward

    stand_in = SimpleNamespace(
        model=trainer_states(),
        ref_model=model(1),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        _metrics={"train": collections.defaultdict(list)},
        **dict.fromkeys(("aux_loss_enabled", "precompute_ref_logps"), False),
        _total_train_tokens=0,
        _tp_size=1,
        calculate_KL=loss_type == "kto",
        loss_type=loss_type,
        beta=0.3,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )
    stand_in._compute_kl_logps = lambda *given: trainer._compute_kl_logps(stand_in, *given)
    inputs = {"label": torch.tensor(LABELS)}
    for name in ("input_ids", "attention_mask", "completion_mask"):
        inputs |= {name: answer_masks(ANSWERS), f"KL_{name}": answer_masks(OTHERS)}
    return trainer._compute_loss(stand_in, model(0), inputs, False).item(), stand_in._metrics["train"]


@pytest.mark.parametrize(
    ("spec", "shift", "weights"),
    [
        # A KL term above 0, and one that is 0.
        ("kto", 0.5, (1.0, 1.0)),
        ("kto", 0.5, (0.5, 2.0)),
        ("kto", -0.5, (1.0, 1.0)),
        ("apo_zero_unpaired", 0.0, (1.0, 1.0)),
    ],
)
def test_losses_of_single_answers_equal_trl_s(spec, shift, weights):
    """In one micro-batch, over which TRL's KL term is a mean."""
    generator = torch.Generator().manual_seed(4)

    def rows(counts: list[int], more: float) -> list[torch.Tensor]:
        return [-torch.rand(count, generator=generator, dtype=torch.float64) * 3 + more for count in counts]

    known = {"own": (rows(ANSWERS, 0.0), rows(ANSWERS, 0.0)), "other": (rows(OTHERS, shift), rows(OTHERS, 0.0))}
    theirs, metrics = trl_kto(spec, known, weights)
    both = (
        PairScores(
            sums=torch.stack([torch.stack([row.sum() for row in of[number]]) for of in known.values()], 1),
            target_counts=torch.tensor([[0, *counts] for counts in zip(ANSWERS, OTHERS, strict=True)]),
        )
        for number in (0, 1)
    )
    inputs = LossInputs(**dict(zip(("policy", "reference"), both, strict=True)), labels=torch.tensor(LABELS))
    given = dataclasses.replace(inputs, mismatched=inputs.ratios(False)[:, 1].mean())
    options = dict(zip(("desirable_weight", "undesirable_weight"), weights, strict=True))
    named = ({"beta": 0.3}, json.dumps(options)) if spec == "kto" else (SUMS, None)
    result = build_objective(spec, *named)(given)
    assert result.losses.mean().item() == pytest.approx(theirs, rel=1e-6)
    if spec == "kto":
        assert result.metrics["kl"][0].item() == pytest.approx(metrics["kl"][0])
        assert (result.metrics["kl"][0] > 0) == (shift > 0)
    for name in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        share = result.metrics["desirable" if "chosen" in name else "undesirable"].mean()
        assert (result.metrics[name].mean() / share).item() == pytest.approx(metrics[name][0], rel=1e-6)
