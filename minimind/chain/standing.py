"""What the weights of each stage know of the demo's held-out pairs, and whether every stage has added to it.

weights -> float32 model on this process's CPU -> look_at -> Standing
Standings of all stages, in order -> shortfalls -> messages, none if the chain holds
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minimind import demo
from minimind.data.encoder import TurnEncoder
from minimind.data.encoding import EncodingOptions, TokenizedRow
from minimind.data.messages import read_messages
from minimind.training.answers import answers

# Rewards without training are equal, or noise.
CHANCE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """What weights know.

    Attributes:
        name: the stage that wrote them.
        perplexity: of the tokens of good held-out answers in the chat template.
        answer_accuracy: share of these tokens that the model holds for the likeliest.
        reward_accuracy: share of held-out pairs whose good answer has the larger reward; None: no reference yet.
        answers: greedy, to the demo's held-out questions.
    """

    name: str
    perplexity: float
    answer_accuracy: float
    reward_accuracy: float | None = None
    answers: tuple[str, ...] = ()

    def describe(self) -> str:
        """A row of the table of stages."""
        reward = "-" if self.reward_accuracy is None else f"{self.reward_accuracy:.3f}"
        return f"{self.name:<12}{self.perplexity:>12.2f}{self.answer_accuracy:>17.3f}{reward:>17}"


HEADER = f"{'held-out':<12}{'perplexity':>12}{'answer accuracy':>17}{'reward accuracy':>17}"


def good_rows(tokenizer: PreTrainedTokenizerBase) -> list[TokenizedRow]:
    """Tokens and masks of the good answers of the demo's held-out pairs, as training sees them."""
    return list(_good_rows(tokenizer))


def _good_rows(tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenizedRow]:
    encoder = TurnEncoder(tokenizer, EncodingOptions())
    for line in demo.EVAL_PATH.read_text(encoding="utf-8").splitlines():
        yield encoder.encode(read_messages("chosen", json.loads(line)["chosen"]), 0, None, None)


@torch.no_grad()
def look_at(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenizedRow]
) -> Standing:
    """What a model knows; without a reward."""
    loss, right, count = 0.0, 0, 0
    for row in rows:
        ids = torch.tensor(row.tokens)
        # The logits at a token are about the next one.
        counts = torch.tensor(row.mask[1:], dtype=torch.bool)
        logits, wanted = model(ids[None]).logits[0, :-1][counts], ids[1:][counts]
        loss += float(F.cross_entropy(logits.float(), wanted, reduction="sum"))
        right += int((logits.argmax(-1) == wanted).sum())
        count += len(wanted)
    said = answers(model, tokenizer, demo.SAMPLE_PROMPTS)
    return Standing(name=name, perplexity=math.exp(loss / count), answer_accuracy=right / count, answers=tuple(said))


def shortfalls(standings: Sequence[Standing]) -> list[str]:
    """What a stage has not improved, one message each."""
    found = []
    for before, after in itertools.pairwise(standings):
        if not after.perplexity < before.perplexity:
            found.append(f"{after.name}: held-out perplexity {before.perplexity:.4g} -> {after.perplexity:.4g}")
        if not after.answer_accuracy > before.answer_accuracy:
            found.append(f"{after.name}: answer accuracy {before.answer_accuracy:.3f} -> {after.answer_accuracy:.3f}")
        if after.reward_accuracy is not None and not after.reward_accuracy > CHANCE:
            found.append(f"{after.name}: reward accuracy {after.reward_accuracy:.3f}, where {CHANCE} is chance")
    return found
