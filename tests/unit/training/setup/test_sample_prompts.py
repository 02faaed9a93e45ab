"""The prompts of a run: a number of held-out ones, and the checks of the flags."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
from transformers import AddedToken

from minimind import demo
from minimind.config import DPOConfig, PretrainConfig, parse_settings
from minimind.data.encoding import TEXT, EncodingOptions
from minimind.data.pair_tables import PairTables
from minimind.data.shapes import Items
from minimind.data.shapes.options import ShapeOptions
from minimind.data.sources import open_source
from minimind.data.table_cache import load_table
from minimind.model.configuration import MiniMindConfig
from minimind.objective.losses import build_objective
from minimind.training.setup import sample_prompts
from minimind.training.setup.sample_prompts import (
    SAMPLE_CHECKS,
    held_out_prompts,
    with_default_number,
)
from tests.unit.data.tables import ROWS
from tests.unit.training.setup.test_checks import draft

HELD_OUT = ("--eval_data_path", str(demo.EVAL_PATH))


@pytest.fixture
def table(tokenizer, write_rows, tmp_path):
    path = write_rows(*ROWS)
    one = load_table(open_source(path), tokenizer, max_length=64, num_workers=0, cache_dir=tmp_path / "cache")
    return PairTables(tables=(one,))


def source(positions=100):
    return SimpleNamespace(config=MiniMindConfig(max_position_embeddings=positions))


def held_out(table, tokenizer, number, *flags, positions=100, job=DPOConfig):
    config = parse_settings(["--sample_prompts", str(number), "--sample_tokens", "20", *flags], job).config
    return held_out_prompts(config, build_objective("sigmoid"), table, tokenizer, source(positions))


def test_prompts_are_spread_over_the_held_out_pairs(table, tokenizer):
    found = held_out(table, tokenizer, 2)
    assert [one.place.rpartition(" ")[2] for one in found] == ["1", "3"]
    assert (found[0].text, found[0].expected) == ("What is the colour of the sky?", "It is blue.")
    assert tokenizer.decode(found[0].ids) == (
        "<|im_start|>user\nWhat is the colour of the sky?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(held_out(table, tokenizer, 50)) == 3


def test_earlier_turns_are_shown_with_their_roles_and_without_control_tokens(table, tokenizer):
    prompt = held_out(table, tokenizer, 3)[1]
    assert "Good morning!\nuser\n" in prompt.text
    assert not any(token in prompt.text for token in tokenizer.all_special_tokens)
    assert not prompt.text.startswith("user")
    assert prompt.ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_special_tokens_that_no_map_names_are_not_shown(table, tokenizer):
    """As those of Llama 3: only the list of added tokens calls them special, and decoding leaves them out."""
    other = copy.deepcopy(tokenizer)
    other.add_tokens([AddedToken("<|turn|>", special=True)])
    other.chat_template = "{% for one in messages %}<|turn|>{{one.role}}\n{{one.content}}<|turn|>{% endfor %}"
    assert "<|turn|>" not in other.all_special_tokens
    ids = other.apply_chat_template([{"role": "user", "content": "Hi"}])["input_ids"]
    assert sample_prompts._for_people(other, {})(ids) == "Hi"


def test_the_beginning_of_a_text_is_shown_without_its_start_token(tokenizer, write_rows, tmp_path):
    """As it is fed it begins with the token, and what looks like one in the text stays."""
    rows = write_rows({"text": "user\nHorses eat <|im_end|> hay. They eat hay in the stable, and grass in the field."})
    where = {"max_length": 64, "num_workers": 0, "cache_dir": tmp_path / "cache"}
    how = {"shapes": ShapeOptions(items=Items.TEXTS), "options": EncodingOptions(mask=TEXT)}
    one = load_table(open_source(rows), tokenizer, **how, **where)
    (prompt,) = held_out(PairTables(tables=(one,)), tokenizer, 1, job=PretrainConfig)
    assert prompt.ids[0] == tokenizer.bos_token_id
    assert prompt.text.startswith("user\nHorses eat <|im_end|> ha")
    assert tokenizer.decode(prompt.ids) == f"{tokenizer.bos_token}{prompt.text}"


def test_a_prompt_that_leaves_no_room_is_left_out(table, tokenizer):
    shortest = min(len(one.ids) for one in held_out(table, tokenizer, 3))
    assert len(held_out(table, tokenizer, 3, positions=shortest + 20)) == 1
    assert held_out(table, tokenizer, 3, positions=shortest + 19) == []


def problems(*flags, **changes):
    one = draft(*flags, objective=build_objective("sigmoid"), **changes)
    return [str(error) for check in SAMPLE_CHECKS for error in check(one)]


def test_a_run_without_samples_and_one_with_them_are_right():
    assert problems() == problems("--sample_prompts", "0") == []
    assert problems("--sample_prompts", "4", *HELD_OUT, "--sample_interval", "5") == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--sample_interval", "5"),
            "--sample_interval needs --sample_prompts FILE, or held-out pairs (--eval_data_path)",
        ),
        (("--sample_tokens", "5", *HELD_OUT), "--sample_tokens needs --sample_prompts FILE, or held-out pairs"),
        (("--sample_prompts", "4"), "--sample_prompts 4 takes prompts of held-out pairs: give --eval_data_path, or"),
        (("--sample_prompts", "4", *HELD_OUT, "--sample_top_p", "1.5"), "--sample_top_p 1.5 is above 1"),
        (
            ("--sample_prompts", "4", *HELD_OUT, "--sample_tokens", "40000"),
            "--sample_tokens 40000: the model has 32768 positions",
        ),
        (("--sample_prompts", "none.jsonl"), "--sample_prompts none.jsonl: cannot be read"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, message, tokenizer):
    (problem,) = problems(*flags, tokenizer=tokenizer)
    assert problem.startswith(message)


def test_an_interval_alone_samples_a_few_held_out_prompts():
    settings = with_default_number(parse_settings(["--sample_interval", "5", *HELD_OUT]))
    assert settings.config.samples.number == 4
    assert settings.origins["sample_prompts"] == "--sample_interval"
    for flags in (
        (),
        HELD_OUT,
        ("--sample_interval", "5"),
        ("--sample_interval", "5", "--sample_prompts", "", *HELD_OUT),
    ):
        assert with_default_number(parse_settings(list(flags))).config.samples.sample_prompts is None
