"""Mistakes in data, weights and flags are one error before training, which names the place and the remedy."""

from __future__ import annotations

import re

import pytest
import torch

from minimind import demo
from minimind.data.selection import select_pairs
from minimind.data.sources import open_source
from minimind.data.table_cache import load_table
from minimind.errors import DataError, WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM
from minimind.weights.construction import model_from_tensors, tensor_shapes
from minimind.weights.io import save_weights
from minimind.weights.sources import open_weights
from tests.conftest import conversation, pair
from tests.faults.preparation import preparation_error

GOOD = pair("Hello?", "Hi, how can I help?", "What?")
DEMO_WEIGHTS = ("--from_weight", demo.WEIGHT_PATH, "--tokenizer_path", demo.TOKENIZER_PATH)


# ---- preference files ----


@pytest.fixture
def data_problem(tokenizer, write_rows, tmp_path):
    """The error for a file of these rows, and the path it names."""

    def check(*rows, max_length=64):
        path = write_rows(*rows)
        table = load_table(
            open_source(path), tokenizer, max_length=max_length, num_workers=0, cache_dir=tmp_path / "cache"
        )
        with pytest.raises(DataError) as caught:
            select_pairs(table, on_bad_row="error", on_long_row="error")
        assert str(path) in str(caught.value)
        # Where all rows are wrong, leaving them out is no help.
        assert ("--on_bad_row skip" in str(caught.value)) == (len(table) > 0)
        return str(caught.value), table

    return check


def test_missing_preference_file():
    error = preparation_error("--data_path", "nowhere/pairs.jsonl", *DEMO_WEIGHTS)
    assert isinstance(error, DataError)
    assert "--data_path nowhere/pairs.jsonl: no such preference file" in str(error)


def test_invalid_json_is_named_with_its_line(data_problem):
    message, _ = data_problem(GOOD, '{"chosen": [', GOOD)
    assert "line 2: invalid JSON" in message


@pytest.mark.parametrize("half", ["chosen", "rejected"])
def test_row_with_one_half_only(half, data_problem):
    message, _ = data_problem(GOOD, {half: GOOD[half]})
    other = "rejected" if half == "chosen" else "chosen"
    assert f"line 2: looks like MiniMind's: '{half}' is there, '{other}' is not" in message


def test_row_without_an_assistant_turn(data_problem):
    message, _ = data_problem({**GOOD, "rejected": GOOD["rejected"][:1]})
    assert "line 1: 'rejected' has no assistant turn" in message


def test_different_prompts_in_a_pair(data_problem):
    message, _ = data_problem({"chosen": conversation("Hello?", "Hi."), "rejected": conversation("Bye?", "Bye.")})
    assert "line 1: the prompts differ" in message
    assert "message 0" in message


def test_a_long_pair_is_listed_with_its_lengths(data_problem):
    message, table = data_problem("nonsense", GOOD, pair("Why? " * 100, "Because.", "No."))
    chosen, rejected = table.full_lengths[-2:]
    assert min(chosen, rejected) > 200
    assert "1 of 2 pairs are longer than --max_seq_len 64" in message
    assert f"line 3: {chosen} tokens chosen, {rejected} rejected" in message
    assert f"--max_seq_len {max(chosen, rejected)} would keep 99 % of the pairs whole" in message


def test_all_bad_rows_are_listed_at_once_and_skip_counts_them(data_problem):
    message, table = data_problem("nonsense", GOOD, {"chosen": []}, pair("Why? " * 100, "Because.", "No."))
    assert "2 of 4 rows" in message
    assert re.findall(r"line (\d)", message) == ["1", "3", "4"]
    skipped = select_pairs(table, on_bad_row="skip", on_long_row="cut")
    assert skipped.lines[skipped.selected].tolist() == [2]
    assert len(skipped.bad) == 2


def test_equal_texts_are_not_blamed_on_the_length(data_problem):
    question, answer = GOOD["chosen"]
    halves = ([question, {**answer, "score": score}] for score in (9, 1))
    message, _ = data_problem(GOOD, dict(zip(("chosen", "rejected"), halves, strict=True)))
    assert "line 2: the answers have the same text" in message
    assert "'score'" in message
    assert "--max_seq_len" not in message


# ---- weights ----


def changed_weights(path, change):
    """A MiniMind .pth of the demo's shape, after `change` has edited its state dict."""
    source = open_weights(demo.WEIGHT_PATH, {})
    state = {name: source.read(name).clone() for name in source.shapes()}
    change(state)
    torch.save(state, path)
    return path


def test_pth_of_another_model_lists_keys_and_shapes(tmp_path):
    def change(state):
        del state["model.layers.1.mlp.up_proj.weight"]
        state["model.layers.0.mlp.extra.weight"] = torch.zeros(2, 3)
        state["model.norm.weight"] = torch.zeros(7)

    path = changed_weights(tmp_path / "changed_96.pth", change)
    source = open_weights(path, {})
    with torch.device("meta"):
        expected = tensor_shapes(MiniMindForCausalLM(source.config))
    with pytest.raises(WeightsError) as caught:
        source.check_fit(expected)
    message = str(caught.value)
    assert "changed_96.pth: does not fit the model" in message
    assert "missing: model.layers.1.mlp.up_proj.weight" in message
    assert "unexpected: model.layers.0.mlp.extra.weight (2, 3)" in message
    assert "wrong shape: model.norm.weight is (7,), the model has (96,)" in message


def test_missing_start_weights_name_both_places(write_rows):
    error = preparation_error("--data_path", write_rows(GOOD), "--tokenizer_path", demo.TOKENIZER_PATH)
    assert isinstance(error, WeightsError)
    assert "full_sft_512.pth" in str(error)


def test_pth_needs_a_tokenizer(write_rows):
    error = preparation_error("--data_path", write_rows(GOOD), "--from_weight", demo.WEIGHT_PATH)
    assert "contains no tokenizer" in str(error)
    assert "--tokenizer_path" in str(error)


def test_sizes_that_contradict_the_weights(write_rows):
    flags = ("--hidden_size", 768, "--generation", 2)
    error = preparation_error("--data_path", write_rows(GOOD), *DEMO_WEIGHTS, *flags)
    assert "--hidden_size is 768" in str(error)
    assert "has 96" in str(error)
    assert "--generation is 2" in str(error)


def test_tokenizer_larger_than_the_vocabulary(write_rows, tmp_path):
    def shrink(state):
        state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:6000]

    path = changed_weights(tmp_path / "small_96.pth", shrink)
    flags = ("--from_weight", path, "--tokenizer_path", demo.TOKENIZER_PATH)
    error = preparation_error("--data_path", write_rows(GOOD), *flags)
    assert "has 6400 tokens" in str(error)
    assert "only 6000" in str(error)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num_attention_heads", 128), "no MiniMind model has these tensors with --num_attention_heads 128"),
        (("--num_attention_heads", 1), "with 1 heads of 128 channels, 64 key channels do not divide into heads"),
        (("--num_attention_heads", 7), "do not divide into 7 heads"),
    ],
)
def test_number_of_heads_that_contradicts_the_tensors(flags, message, write_rows, tmp_path):
    config = MiniMindConfig(generation=2, hidden_size=128, num_hidden_layers=1, num_attention_heads=4)
    save_weights(MiniMindForCausalLM(config), tmp_path / "two_128.pth")
    weights = ("--from_weight", tmp_path / "two_128.pth", "--tokenizer_path", demo.TOKENIZER_PATH)
    error = preparation_error("--data_path", write_rows(GOOD), *weights, *flags)
    assert message in str(error)


def test_flags_without_effect_for_these_weights_or_data(write_rows):
    flags = ("--use_moe", 1, "--rope_theta", 5, "--num_experts_per_tok", 7, "--eval_interval", 5)
    message = str(preparation_error("--data_path", write_rows(GOOD), *DEMO_WEIGHTS, *flags))
    assert "--use_moe is 1, but" in message
    assert "--eval_interval needs held-out pairs" in message


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--attention", "varlen"), "--attention varlen: flash attention needs a GPU; use auto or sdpa"),
        (
            ("--attention", "flex"),
            "--attention flex: torch has gradients of FlexAttention only on a GPU; use auto or sdpa",
        ),
    ],
)
def test_attention_backend_without_its_device(flags, why):
    assert str(preparation_error(*flags)) == why


def test_start_weights_are_not_overwritten(write_rows, tmp_path):
    path = tmp_path / "dpo_96.pth"
    path.write_bytes(demo.WEIGHT_PATH.read_bytes())
    flags = ("--from_weight", path, "--tokenizer_path", demo.TOKENIZER_PATH, "--save_dir", tmp_path)
    assert "would be overwritten by this run" in str(preparation_error("--data_path", write_rows(GOOD), *flags))


def test_plain_model_needs_every_tensor():
    source = open_weights(demo.WEIGHT_PATH, {})
    state = {name: source.read(name) for name in source.shapes()}
    state.pop("model.norm.weight")
    with pytest.raises(KeyError, match=r"model\.norm\.weight"):
        model_from_tensors(source.config, state)
