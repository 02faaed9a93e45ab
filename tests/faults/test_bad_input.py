"""Everything a user can get wrong before training is one clear error that says what, where, and what to do."""

from __future__ import annotations

import json
import re

import pytest
import torch

from minimind import demo
from minimind.config import parse_settings
from minimind.data.table import load_table
from minimind.errors import ConfigError, DataError, MiniMindError, WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM
from minimind.ranks.world import World
from minimind.training.setup.prepare import prepare
from minimind.weights.construction import model_from_tensors, tensor_shapes
from minimind.weights.io import save_weights
from minimind.weights.sources import open_weights
from tests.conftest import REPO, conversation, pair

ONE_RANK = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
GOOD = pair("Hello?", "Hi, how can I help?", "What?")
DEMO_WEIGHTS = ("--from_weight", demo.WEIGHT_PATH, "--tokenizer_path", demo.TOKENIZER_PATH)


def problem(*flags: object, size: int = 1) -> MiniMindError:
    """The error that preparing a run with these flags ends in."""
    world = World(rank=0, local_rank=0, size=size, device=torch.device("cpu"))
    arguments = [str(flag) for flag in flags]
    if "--deepspeed" not in arguments:
        arguments += ["--deepspeed", str(REPO / "ds_configs/zero2.json")]
    with pytest.raises(MiniMindError) as caught:
        prepare(parse_settings(arguments), world)
    return caught.value


@pytest.fixture
def ds_file(tmp_path):
    """Write a DeepSpeed file: zero2.json with changes; None removes a key."""

    def write(**changes):
        values = json.loads((REPO / "ds_configs/zero2.json").read_text())
        values.update(changes)
        path = tmp_path / "ds.json"
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        return path

    return write


# ---- preference files ----


@pytest.fixture
def data_problem(tokenizer, write_rows, tmp_path):
    """The error for a file of these rows, and the path it names."""

    def check(*rows, max_length=64):
        path = write_rows(*rows)
        table = load_table(
            path, tokenizer, max_length=max_length, empty_think_ratio=1.0, num_workers=0, cache_dir=tmp_path / "cache"
        )
        with pytest.raises(DataError) as caught:
            table.handle_bad_rows("error")
        assert str(path) in str(caught.value)
        assert "--on_bad_row skip" in str(caught.value)
        return str(caught.value), table

    return check


def test_missing_preference_file():
    error = problem("--data_path", "nowhere/pairs.jsonl", *DEMO_WEIGHTS)
    assert isinstance(error, DataError)
    assert "--data_path nowhere/pairs.jsonl: no such file" in str(error)


def test_broken_json_is_named_with_its_line(data_problem):
    message, _ = data_problem(GOOD, '{"chosen": [', GOOD)
    assert "line 2: invalid JSON" in message


@pytest.mark.parametrize("half", ["chosen", "rejected"])
def test_row_with_one_half_only(half, data_problem):
    message, _ = data_problem(GOOD, {half: GOOD[half]})
    found, needed = (
        f"an object with the keys ['{half}']",
        "an object with 'chosen' and 'rejected', each a list of messages",
    )
    assert f"line 2: unknown row shape: {found}; a row must be {needed}" in message


def test_row_without_an_assistant_turn(data_problem):
    message, _ = data_problem({**GOOD, "rejected": GOOD["rejected"][:1]})
    assert "line 1: 'rejected' has no assistant turn" in message


def test_different_prompts_in_a_pair(data_problem):
    message, _ = data_problem({"chosen": conversation("Hello?", "Hi."), "rejected": conversation("Bye?", "Bye.")})
    assert "line 1: the prompts differ" in message
    assert "message 0" in message


def test_nothing_left_of_the_answer_after_truncation(data_problem):
    message, _ = data_problem(GOOD, pair("Why? " * 100, "Because.", "No."))
    assert "line 2: truncation to 64 tokens (--max_seq_len) removes the chosen and the rejected answer" in message


def test_all_bad_rows_are_listed_at_once_and_skip_counts_them(data_problem):
    message, table = data_problem("nonsense", GOOD, {"chosen": []}, pair("Why? " * 100, "Because.", "No."))
    assert "3 of 4 rows" in message
    assert re.findall(r"line (\d)", message) == ["1", "3", "4"]
    skipped = table.handle_bad_rows("skip")
    assert [skipped[index].line for index in range(len(skipped))] == [2]
    assert len(skipped.bad) == 3


# ---- weights ----


def changed_weights(path, change):
    """A MiniMind .pth of the demo's shape, after `change` has edited its state dict."""
    source = open_weights(demo.WEIGHT_PATH, {})
    state = {name: source.read(name).clone() for name in source.shapes()}
    change(state)
    torch.save(state, path)
    return path


def test_pth_that_does_not_fit_lists_keys_and_shapes(tmp_path):
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
    error = problem("--data_path", write_rows(GOOD), "--tokenizer_path", demo.TOKENIZER_PATH)
    assert isinstance(error, WeightsError)
    assert "full_sft_512.pth" in str(error)


def test_pth_needs_a_tokenizer(write_rows):
    error = problem("--data_path", write_rows(GOOD), "--from_weight", demo.WEIGHT_PATH)
    assert "contains no tokenizer" in str(error)
    assert "--tokenizer_path" in str(error)


def test_sizes_that_contradict_the_weights(write_rows):
    flags = ("--hidden_size", 768, "--generation", 2)
    error = problem("--data_path", write_rows(GOOD), *DEMO_WEIGHTS, *flags)
    assert "--hidden_size is 768" in str(error)
    assert "has 96" in str(error)
    assert "--generation is 2" in str(error)


def test_tokenizer_larger_than_the_vocabulary(write_rows, tmp_path):
    def shrink(state):
        state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:6000]

    path = changed_weights(tmp_path / "small_96.pth", shrink)
    flags = ("--from_weight", path, "--tokenizer_path", demo.TOKENIZER_PATH)
    error = problem("--data_path", write_rows(GOOD), *flags)
    assert "has 6400 tokens" in str(error)
    assert "only 6000" in str(error)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num_attention_heads", 128), "no MiniMind model has these tensors with --num_attention_heads 128"),
        (("--num_attention_heads", 1), "64 key channels do not divide into heads of 128"),
        (("--num_attention_heads", 7), "do not divide into 7 heads"),
    ],
)
def test_heads_that_the_tensors_cannot_have(flags, message, write_rows, tmp_path):
    config = MiniMindConfig(generation=2, hidden_size=128, num_hidden_layers=1, num_attention_heads=4)
    save_weights(MiniMindForCausalLM(config), tmp_path / "two_128.pth")
    weights = ("--from_weight", tmp_path / "two_128.pth", "--tokenizer_path", demo.TOKENIZER_PATH)
    error = problem("--data_path", write_rows(GOOD), *weights, *flags)
    assert message in str(error)


def test_flags_that_the_weights_or_the_data_make_pointless(write_rows):
    flags = ("--use_moe", 1, "--rope_theta", 5, "--num_experts_per_tok", 7, "--eval_interval", 5)
    message = str(problem("--data_path", write_rows(GOOD), *DEMO_WEIGHTS, *flags))
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
def test_attention_that_cannot_work_here(flags, why):
    assert str(problem(*flags)) == why


def test_weights_are_not_written_over_where_they_are_read(write_rows, tmp_path):
    path = tmp_path / "dpo_96.pth"
    path.write_bytes(demo.WEIGHT_PATH.read_bytes())
    flags = ("--from_weight", path, "--tokenizer_path", demo.TOKENIZER_PATH, "--save_dir", tmp_path)
    assert "would be overwritten by this run" in str(problem("--data_path", write_rows(GOOD), *flags))


# ---- DeepSpeed files ----


def test_missing_deepspeed_file():
    assert "ds_configs/none.json: no such DeepSpeed configuration" in str(
        problem("--deepspeed", "ds_configs/none.json")
    )


def test_broken_deepspeed_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{\n  "bf16": {"enabled": true},\n  oops\n}')
    assert f"{path}, line 3" in str(problem("--deepspeed", path))


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"gradient_clipping": 0.5}, ("--grad_clip", 2), "'gradient_clipping' is 0.5 but --grad_clip is 2.0"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}},
            ("--learning_rate", 1e-4),
            "'optimizer.params.lr' is 0.001 but --learning_rate is 0.0001",
        ),
        ({"bf16": {"enabled": False}}, ("--dtype", "bfloat16"), "'bf16.enabled' contradicts --dtype bfloat16"),
        ({"zero_optimisation": {"stage": 2}}, (), "unknown key 'zero_optimisation'; did you mean 'zero_optimization'?"),
        ({"zero_optimization": {"stag": 2}}, (), "unknown key 'zero_optimization.stag'"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, (), "bf16 and fp16 are both enabled"),
        ({"train_batch_size": 9}, (), "'train_batch_size' is 9, but batch_size 8 x accumulation_steps 1 x 1 rank is 8"),
        ({"train_micro_batch_size_per_gpu": 2.5}, (), "'train_micro_batch_size_per_gpu' is 2.5"),
        ({"gradient_clipping": -1}, (), "'gradient_clipping' is -1"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, (), "needs stage 3, not 2"),
        ({"zero_optimization": {"stage": 5}}, (), "stage"),
        ({"bf16": "auto"}, (), "'bf16' is \"auto\"; an object is expected"),
        ({"bf16": True}, (), "'bf16' is true; an object is expected"),
        ({"optimizer": "AdamW"}, (), "'optimizer' is \"AdamW\"; an object is expected"),
        ({"optimizer": {"type": "AdamW", "params": "auto"}}, (), "'optimizer.params' is \"auto\""),
        ({"optimizer": {"type": "AdamX"}}, (), "'optimizer.type' is \"AdamX\"; known are Adam, AdamW"),
        (
            {"optimizer": {"type": "AdamW", "params": {"learning_rate": 1}}},
            (),
            "unknown key 'optimizer.params.learning",
        ),
        ({"steps_per_print": "x"}, (), "'steps_per_print' is \"x\"; a number is expected"),
        ({"amp": {"enabled": True}}, (), "'amp' is DeepSpeed's, but not supported here: use bf16"),
        ({"checkpoint": {"use_node_local_storage": True}}, (), "'checkpoint' is DeepSpeed's, but not supported here:"),
        ({"activation_checkpointing": {}}, (), "not supported here: use --gradient_checkpointing 1"),
        ({"compile": {"deepcompile": True}}, (), "not supported here: use --use_compile 1"),
        ({"torch_autocast": {"enabled": True}}, (), "'torch_autocast' is DeepSpeed's, but not supported here: the pre"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, (), "'data_types' is DeepSpeed's, but not supported here: the"),
        ({"train_batch_size": 32, "gradient_accumulation_steps": 1}, (), "'train_batch_size' is 32, but batch_size 8"),
        ({"zero_optimization": {"stage": 0}}, (), "bfloat16 at ZeRO stage 0"),
        ({"scheduler": {"type": "WarmupLR"}}, (), "'scheduler' is not taken from the file"),
        ({"steps_per_print": "auto"}, (), "'steps_per_print' is \"auto\", which nothing here resolves"),
        ({}, ("--dtype", "float16"), "float16 needs a GPU"),
    ],
)
def test_deepspeed_file_problems(changes, flags, message, ds_file):
    error = problem("--deepspeed", ds_file(**changes), *flags)
    assert isinstance(error, ConfigError)
    assert message in str(error)


def test_reference_is_always_stage_3_without_an_optimizer(tmp_path):
    path = tmp_path / "reference.json"
    path.write_text('{"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}')
    message = str(problem("--reference_config", path))
    assert "the reference is always a ZeRO-3 shard" in message
    assert "'optimizer' has no place" in message


def test_every_problem_is_in_one_error(ds_file):
    path = ds_file(zero_optimisation={}, gradient_clipping=0.5, bf16={"enabled": True}, fp16={"enabled": True})
    flags = ("--deepspeed", path, "--grad_clip", 2, "--data_path", "nowhere.jsonl", "--from_weight", "gone.pth")
    message = str(problem(*flags))
    for part in ("zero_optimisation", "--grad_clip is 2.0", "both enabled", "nowhere.jsonl", "gone.pth"):
        assert part in message


def test_open_and_missing_keys_are_filled_and_fixed_ones_are_taken(ds_file):
    path = ds_file(train_batch_size=16, optimizer=None, gradient_clipping=0.25, fp16=None, bf16=None)
    prepared = prepare(parse_settings(["--deepspeed", str(path)]), ONE_RANK)
    values, settings = prepared.policy_config.values, prepared.settings
    assert values["train_batch_size"] == 16
    assert values["gradient_accumulation_steps"] == settings.config.optimisation.accumulation_steps == 2
    assert settings.origins["accumulation_steps"] == settings.origins["grad_clip"] == "DeepSpeed file"
    assert settings.config.optimisation.grad_clip == 0.25
    assert values["bf16"]["enabled"] is True
    assert values["optimizer"]["params"] == {
        "torch_adam": True, "fused": True, "lr": settings.config.optimisation.learning_rate,
        "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01,
    }  # fmt: skip


def test_plain_model_needs_every_tensor():
    source = open_weights(demo.WEIGHT_PATH, {})
    state = {name: source.read(name) for name in source.shapes()}
    state.pop("model.norm.weight")
    with pytest.raises(KeyError, match=r"model\.norm\.weight"):
        model_from_tensors(source.config, state)
