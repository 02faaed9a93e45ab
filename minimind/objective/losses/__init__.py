"""Preference losses: one class per loss, registered by name; mixes of them, and their options."""

# Importing a module registers its losses.
from minimind.objective.losses import answers, batch, divergences, labelled, margin, reference_free, scored, tokens
from minimind.objective.losses.bases import PolicyLoss, RatioLoss, margins
from minimind.objective.losses.build import build_objective
from minimind.objective.losses.contract import (
    LOG_PROB_METRICS,
    REWARD_METRICS,
    BatchShare,
    LossInputs,
    Need,
    PairLosses,
    PairScores,
    PreferenceLoss,
    reward_metrics,
)
from minimind.objective.losses.margin import SigmoidLoss
from minimind.objective.losses.mix import Objective, Part
from minimind.objective.losses.options import fixed, option
from minimind.objective.losses.registry import loss_class, loss_names, register_loss

__all__ = [
    "LOG_PROB_METRICS",
    "REWARD_METRICS",
    "BatchShare",
    "LossInputs",
    "Need",
    "Objective",
    "PairLosses",
    "PairScores",
    "Part",
    "PolicyLoss",
    "PreferenceLoss",
    "RatioLoss",
    "SigmoidLoss",
    "answers",
    "batch",
    "build_objective",
    "divergences",
    "fixed",
    "labelled",
    "loss_class",
    "loss_names",
    "margin",
    "margins",
    "option",
    "reference_free",
    "register_loss",
    "reward_metrics",
    "scored",
    "tokens",
]
