"""Flags for the loss."""

from __future__ import annotations

import dataclasses

from minimind.config.fields import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss and those of its options that many losses have. An option that was not given is None."""

    loss: str = flag(
        "sigmoid",
        "loss, see the table of losses; sigmoid: DPO. Several are mixed with weights: sigmoid:0.8,bco_pair:0.2,sft:1",
    )
    beta: float | None = flag(
        None,
        "beta of the loss; a larger value keeps the policy closer to the reference. Without this flag that of the "
        "model, see the table of defaults, or the loss's own",
        above=0,
    )
    average_log_prob: bool | None = flag(
        None,
        "1: mean log-prob of a row's tokens, as in MiniMind2; 0: their sum, as in MiniMind-3 and in the DPO paper. "
        "Without this flag that of the model, see the table of defaults, or the loss's own",
        zero_is_a_value=True,
    )
    label_smoothing: float | None = flag(
        None,
        "probability that a pair's label is wrong, for losses that take it into account. Without this flag the loss's "
        "own, for DPO 0",
        low=0,
        zero_is_a_value=True,
    )
    loss_options: str | None = flag(
        None,
        """other options of the loss, a JSON object, e.g. '{"tau": 0.05}'; those of one loss of a mix: """
        """'{"bco_pair": {"beta": 0.2}}'""",
    )
