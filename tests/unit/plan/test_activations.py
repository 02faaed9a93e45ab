"""Bytes of a generation by hand; activations and head are in test_memory.py."""

from __future__ import annotations

import dataclasses
import json

from minimind.config import parse_settings
from minimind.plan.activations import sampling_bytes
from minimind.plan.choice import StepLoad, ZeroChoice
from minimind.plan.memory import rank_memory
from tests.unit.plan.test_memory import FOUR, LOAD, REFERENCE, ROUND


def test_a_generation_needs_its_cache_its_working_set_and_its_logits():
    load = dataclasses.replace(LOAD, sample_rows=3, sample_length=50)
    # Two layers and a copy of one, keys and values of 1000 channels, bfloat16; then 3 H + 3 inner + 2 query channels.
    cache, working = 2 * 3 * 2 * 1000 * 3 * 50, 2 * 3 * 50 * (3000 + 9000 + 2000)
    assert sampling_bytes(ROUND, load) == cache + working + 3 * 1000 * (2 + 16)
    assert sampling_bytes(ROUND, LOAD) == 0
    # A prompt and its answer have no more tokens than the model has positions.
    longer, limited = dataclasses.replace(load, sample_length=90), dataclasses.replace(ROUND, positions=50)
    assert sampling_bytes(limited, longer) == sampling_bytes(ROUND, load) < sampling_bytes(ROUND, longer)


def test_samples_are_a_phase_of_their_own():
    plain = rank_memory(ROUND, ZeroChoice(stage=3), REFERENCE, LOAD, FOUR)
    assert plain.sampling == 0
    huge = dataclasses.replace(plain, sampling=10**12)
    assert huge.peak == plain.states + 10**12 + plain.gathered + plain.buckets


def test_the_load_of_samples_follows_from_the_flags(tmp_path):
    def load(*flags):
        one = StepLoad.of(parse_settings(["--batch_size", "4", "--max_seq_len", "100", *flags]).config)
        return one.sample_rows, one.sample_length

    assert load() == load("--sample_prompts", "0") == (0, 0)
    assert load("--sample_prompts", "3", "--sample_tokens", "28") == (3, 128)
    # As many rows as a micro-batch of pairs has.
    assert load("--sample_prompts", "100") == load("--sample_prompts", "a.jsonl") == (8, 228)
    # Held-out prompts are cut to --max_seq_len, those of a file are not: a token for each character.
    file, rows = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    file.write_text(f"Hi\n{'马' * 150}\n", encoding="utf-8")
    assert load("--sample_prompts", str(file)) == (8, 150 + 128)
    # Neither the answers of a row nor how JSON writes its characters.
    turns = [{"role": "user", "content": "马" * 90}, {"role": "assistant", "content": "好" * 500}]
    rows.write_text(json.dumps({"prompt": "马" * 150, "chosen": "好" * 500}) + "\n" + json.dumps({"chosen": turns}))
    assert load("--sample_prompts", str(rows)) == (8, 150 + 128)
    for text in ("Hi\n", ""):
        file.write_text(text, encoding="utf-8")
        assert load("--sample_prompts", str(file)) == (8, 228)
