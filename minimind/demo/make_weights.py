"""Trains the demo's start weights: `python -m minimind.demo.make_weights [--out DIR]`, in minutes on one core.

    train and spare cases -> pairs -> rows of token ids -> supervised fine-tuning from scratch -> start.pth

The model learns the friendly and the rude answer of every pair with equal weight: it learns the facts and leaves the
tone to DPO. Held-out questions are not in its data. The script needs the tokenizer and no DeepSpeed. The same machine
writes the same weights every time; another processor may round differently.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights
from minimind.demo import TOKENIZER_PATH
from minimind.demo.make_data import SEED, Message, make_pairs, split_cases

_EPOCHS = 36
# Epochs alternate between a few data sets, which have different answers to the same question: enough that the model
# generalises, and few enough that it prefers one tone for each question, so that greedy answers have both tones.
_DATA_SETS = 4
_BATCH_ROWS = 32
_LEARNING_RATE = 4e-3
_WARMUP_STEPS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One conversation: token ids (T,) int64, and a mask of the tokens to learn (T,) bool."""

    ids: Tensor
    is_answer: Tensor


def demo_config() -> MiniMindConfig:
    """A MiniMind-3 of less than two megabytes; the embeddings of 6400 tokens take two thirds of it."""
    return MiniMindConfig(
        generation=3,
        vocab_size=6400,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Row:
    """Tokenise a conversation turn by turn. The mask has the assistant's text and the end of its turns."""
    ids: list[int] = []
    is_answer: list[bool] = []
    head = len(tokenizer.encode("<|im_start|>assistant\n"))
    for message in messages:
        turn = tokenizer.encode(tokenizer.apply_chat_template([message], tokenize=False))
        ids += turn
        is_answer += [message["role"] == "assistant" and place >= head for place in range(len(turn))]
    return Row(ids=torch.tensor(ids), is_answer=torch.tensor(is_answer))


def make_rows(tokenizer: PreTrainedTokenizerBase, seed: int) -> list[Row]:
    """Both halves of a pair, for every case that is not held out."""
    cases = split_cases()
    pairs = make_pairs(cases.train + cases.spare, cases.train, seed)
    return [encode(tokenizer, pair[half]) for pair in pairs for half in ("chosen", "rejected")]


def batches_of(rows: Sequence[Row], seed: int) -> list[list[Row]]:
    """Batches in random order. A batch has rows of similar length, which need little padding."""
    by_length = sorted(rows, key=lambda row: len(row.ids))
    batches = [by_length[start : start + _BATCH_ROWS] for start in range(0, len(rows), _BATCH_ROWS)]
    Random(seed).shuffle(batches)
    return batches


def answer_loss(model: MiniMindForCausalLM, rows: Sequence[Row]) -> Tensor:
    """Mean cross-entropy of the answers' tokens, a float32 scalar."""
    # Padding is on the right, so causal attention hides it from all real tokens, and no attention mask is needed.
    ids = pad_sequence([row.ids for row in rows], batch_first=True)
    wanted = pad_sequence([row.is_answer for row in rows], batch_first=True)[:, 1:]
    hidden = model.model(ids[:, :-1]).last_hidden_state
    return F.cross_entropy(model.lm_head(hidden[wanted]), ids[:, 1:][wanted])


def train(tokenizer: PreTrainedTokenizerBase) -> MiniMindForCausalLM:
    """Train a new model. The learning rate has a linear warm-up and a cosine decay to zero."""
    torch.manual_seed(SEED)
    model = MiniMindForCausalLM(demo_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    data_sets = [make_rows(tokenizer, SEED + 100 + index) for index in range(_DATA_SETS)]
    steps_per_epoch = len(batches_of(data_sets[0], seed=0))
    total = _EPOCHS * steps_per_epoch

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / _WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / total))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for epoch in range(_EPOCHS):
        total_loss = 0.0
        for rows in batches_of(data_sets[epoch % _DATA_SETS], seed=epoch):
            loss = answer_loss(model, rows)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total_loss += loss.item()
        print(f"epoch {epoch + 1}/{_EPOCHS}: loss {total_loss / steps_per_epoch:.4f}", flush=True)
    return model.eval()


def main() -> None:
    """Write start.pth."""
    parser = argparse.ArgumentParser(description="Make the demo's start weights.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write start.pth to")
    out: Path = parser.parse_args().out
    # With one thread the order of summation is fixed, and with it the rounding.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    save_weights(train(AutoTokenizer.from_pretrained(TOKENIZER_PATH)), out / "start.pth")


if __name__ == "__main__":
    main()
