"""The bundled files fit together, and the demo's settings name them."""

from __future__ import annotations

from pathlib import Path

from minimind.config import DPOConfig, fields_of
from minimind.demo import EVAL_PATH, SAMPLE_PROMPTS, SETTINGS, TOKENIZER_PATH, TRAIN_PATH, WEIGHT_PATH
from tests.unit.demo.files import read_pairs, user_turns


def test_sample_prompts_are_held_out() -> None:
    held_out = {user_turns(pair)[-1] for pair in read_pairs(EVAL_PATH)}
    assert len(SAMPLE_PROMPTS) == 4
    assert set(SAMPLE_PROMPTS) <= held_out
    assert sum(prompt.isascii() for prompt in SAMPLE_PROMPTS) == 2


def test_settings_are_flags_and_their_files_exist() -> None:
    assert set(SETTINGS) <= {flag.name for flag in fields_of(DPOConfig)}
    paths = [*SETTINGS["data_path"], *SETTINGS["eval_data_path"], SETTINGS["tokenizer_path"], SETTINGS["from_weight"]]
    assert paths == [str(path) for path in (TRAIN_PATH, EVAL_PATH, TOKENIZER_PATH, WEIGHT_PATH)]
    assert all(Path(path).exists() for path in paths)
