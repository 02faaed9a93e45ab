"""The demo's start weights: the bundled file, and the parts of the script that trains it, on a small scale."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from minimind import MiniMindForCausalLM
from minimind.demo import WEIGHT_PATH, make_weights
from minimind.demo.make_weights import answer_loss, batches_of, demo_config, encode, make_rows, train
from minimind.weights.io import fill
from minimind.weights.sources import open_weights
from tests.conftest import conversation
from tests.unit.demo.files import MEGABYTE


def test_bundled_weights_are_a_small_model_of_generation_3(tokenizer: PreTrainedTokenizerFast) -> None:
    assert WEIGHT_PATH.stat().st_size < 2 * MEGABYTE
    source = open_weights(WEIGHT_PATH, {})
    assert source.config.generation == 3
    assert source.config.vocab_size == len(tokenizer)
    assert source.config.tie_word_embeddings
    model = MiniMindForCausalLM(source.config).eval()
    fill(model, source)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_mask_has_the_answers_and_the_ends_of_their_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    row = encode(tokenizer, conversation("Hi", "Hello!", "assistant", "Yes?"))
    masked = tokenizer.decode(row.ids[row.is_answer])
    assert masked == "Hello!<|im_end|>\nYes?<|im_end|>\n"
    messages = conversation("Hi", "Hello!", "assistant", "Yes?")
    assert tokenizer.decode(row.ids) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_loss_counts_answers_only_and_ignores_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    """The loss of two rows is the mean over the answer tokens of both, each computed alone and without padding."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(demo_config()).eval()
    rows = [
        encode(tokenizer, conversation("Hi", "Hello!")),
        encode(tokenizer, conversation("What do cats eat?", "Fish.")),
    ]
    sums, counts = [], []
    for row in rows:
        log_probs = model(row.ids[None, :-1]).logits[0].log_softmax(-1)
        picked = log_probs.gather(1, row.ids[1:, None])[:, 0][row.is_answer[1:]]
        sums.append(-picked.sum())
        counts.append(len(picked))
    assert len(rows[0].ids) != len(rows[1].ids)
    torch.testing.assert_close(answer_loss(model, rows), sum(sums) / sum(counts), rtol=1e-5, atol=1e-5)


def test_batches_have_every_row_once_and_similar_lengths(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = make_rows(tokenizer, seed=1)[:100]
    batches = batches_of(rows, seed=0)
    assert sorted(len(batch) for batch in batches) == [4, 32, 32, 32]
    assert {id(row) for batch in batches for row in batch} == {id(row) for row in rows}
    ranges = sorted((min(len(row.ids) for row in batch), max(len(row.ids) for row in batch)) for batch in batches)
    assert all(longest <= shortest for (_, longest), (shortest, _) in itertools.pairwise(ranges))
    assert batches_of(rows, seed=1) != batches


def test_script_trains_and_writes_weights(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """One epoch over 64 rows: the weights differ from the random ones that the seed gives, and can be opened."""
    rows = make_rows(tokenizer, seed=1)[:64]
    monkeypatch.setattr(make_weights, "make_rows", lambda tokenizer, seed: rows)
    monkeypatch.setattr(make_weights, "_EPOCHS", 1)
    model = train(tokenizer)
    assert "epoch 1/1: loss " in capsys.readouterr().out
    torch.manual_seed(make_weights.SEED)
    fresh = MiniMindForCausalLM(demo_config())
    changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True)]
    assert all(changed)
    monkeypatch.setattr(make_weights, "train", lambda tokenizer: model)
    monkeypatch.setattr("sys.argv", ["make_weights", "--out", str(tmp_path)])
    # The script fixes these for the whole process.
    threads = torch.get_num_threads()
    try:
        make_weights.main()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    assert open_weights(tmp_path / "start.pth", {}).config.hidden_size == 96
