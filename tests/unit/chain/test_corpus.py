"""The corpus of the chain: texts, conversations and pairs of the same facts, and held-out rows that are in none."""

from __future__ import annotations

import json

from minimind.chain.corpus import conversations, texts, write_corpus
from tests.conftest import pair

PAIR = pair("Hi?", "Yo.", "No.")


def test_both_halves_are_learned():
    assert [row["text"] for row in texts([PAIR])] == ["Hi?\nYo.", "Hi?\nNo."]
    assert [row["conversations"] for row in conversations([PAIR])] == [PAIR["chosen"], PAIR["rejected"]]


def test_held_out_questions_are_not_trained_on(tmp_path):
    write_corpus(tmp_path)
    files = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in tmp_path.iterdir()}
    assert set(files) == {"pretrain", "pretrain_eval", "sft", "sft_eval", "dpo", "dpo_eval"}
    assert len(files["sft"]) == len(files["pretrain"]) > 4000
    asked = {row["conversations"][-2]["content"] for row in map(json.loads, files["sft_eval"])}
    trained = {row["conversations"][-2]["content"] for row in map(json.loads, files["sft"])}
    assert not asked & trained
