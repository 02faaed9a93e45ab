"""What a run would do with a family: packed, padded or refused, by the oracle that a run asks before it trains.

model type -> tiny model as transformers builds it, the same weights in a model as a run builds it -> Family: verdict
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from minimind.data.packs import Batch
from minimind.engine.scorer import PairScorer
from minimind.model.dropout import turn_off_dropout
from minimind.model.family import packing_obstacle
from minimind.model.text_half import freeze_other_parts
from minimind.ranks.world import World
from minimind.training.setup.oracle import judge
from minimind.weights.construction import model_from_tensors, tensor_shapes
from tests.parity.families import POSITIONS, model_types, tiny_config, tiny_model
from tests.parity.steps import preference_pair

EXPECTED = Path(__file__).with_name("families.json")
# Not even tried: transformers makes no tiny model from the family's default configuration.
NOT_BUILT = "not built"
# Fields that limit what a token attends to, and limits below the length of the rows. A family's default is above it.
NARROW = {"sliding_window": 8, "index_topk": 4}
# Rows are longer than the limits of NARROW and shorter than POSITIONS.
PAIRS = (
    preference_pair(6, 4, 5, index=1),
    preference_pair(20, 14, 9, index=2, turns=(4, 5, 6, 10, 11)),
    preference_pair(9, 40, 1, index=3),
)


class LocalPolicy:
    """Scores with a model on this process, without an engine."""

    dtype = "float32"
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))

    def __init__(self, model: PreTrainedModel) -> None:
        self.scorer = PairScorer(model, "sdpa")

    @torch.no_grad()
    def probe(self, batch: Batch, training: bool = False) -> Tensor:
        self.scorer.train(training)
        return self.scorer(batch)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One model type.

    Attributes:
        plain: the model as transformers builds it, in eval mode; None if it is not built.
        trained: the same weights as a run builds the model; None if it is not built.
        verdict: packed, padded, refused or not built.
        reason: why not packed, without numbers.
    """

    model_type: str
    plain: PreTrainedModel | None
    trained: PreTrainedModel | None
    verdict: str
    reason: str

    @property
    def row(self) -> dict[str, str]:
        """What the table of expected verdicts says about it."""
        name = {} if self.plain is None else {"class": type(self.plain).__name__}
        return {**name, "verdict": self.verdict, **({"reason": self.reason} if self.reason else {})}


def examine(model_type: str, narrow: bool = False) -> Family:
    """Ask the oracle about a family. Needs a process group.

    Args:
        narrow: a token attends to fewer tokens than a row has.
    """
    try:
        config = tiny_config(model_type)
        if narrow:
            text = config.get_text_config()
            for name in _limits(text):
                setattr(text, name, NARROW[name])
        plain = tiny_model(config)
    except Exception as error:  # noqa: BLE001 - a configuration of any family may raise anything
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1].strip()}"[:160]
        return Family(model_type=model_type, plain=None, trained=None, verdict=NOT_BUILT, reason=reason)
    trained = as_a_run_builds_it(config, plain)
    verdict = judge(LocalPolicy(trained), PAIRS, 0, packing_obstacle(config, POSITIONS // 2))
    # A difference is a number that may vary from machine to machine.
    reason = re.sub(r" by [\d.e+-]+ \(rounding.*?\)", "", verdict.reason)
    return Family(model_type=model_type, plain=plain, trained=trained, verdict=verdict.layout, reason=reason)


def as_a_run_builds_it(config: PretrainedConfig, plain: PreTrainedModel) -> PreTrainedModel:
    """A model from a configuration and tensors alone, without dropout."""
    state = plain.state_dict(keep_vars=True)
    parameters = dict(plain.named_parameters())
    tensors = {name: (parameters.get(name, state.get(name))).detach().clone() for name in tensor_shapes(plain)}
    model = model_from_tensors(config, tensors)
    turn_off_dropout(model)
    freeze_other_parts(model)
    return model


def can_be_narrow(model_type: str) -> bool:
    """Whether a family's default configuration limits what a token attends to."""
    try:
        return bool(_limits(tiny_config(model_type).get_text_config()))
    except Exception:  # noqa: BLE001 - as above
        return False


def _limits(text: PretrainedConfig) -> list[str]:
    return [name for name in NARROW if isinstance(getattr(text, name, None), int)]


def expected_verdicts() -> dict[str, dict[str, str]]:
    """Name of a case -> its row of the table."""
    return json.loads(EXPECTED.read_text(encoding="utf-8"))


def all_cases() -> dict[str, tuple[str, bool]]:
    """Name of a case -> model type, narrow: every type, and again with narrow attention where it has a limit."""
    types = model_types()
    narrow = {f"{one}, narrow": (one, True) for one in types if can_be_narrow(one)}
    return {**{one: (one, False) for one in types}, **narrow}


def main() -> None:
    """Write the table of expected verdicts, after the families' tests have shown what has changed."""
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
        rows = {name: examine(*case).row for name, case in all_cases().items()}
        dist.destroy_process_group()
    EXPECTED.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {EXPECTED}")


if __name__ == "__main__":
    main()
