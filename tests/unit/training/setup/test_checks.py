"""Checks of settings against files: each yields its error, and nothing for a run that is right."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from transformers import Gemma3Config, GPT2Config, LlamaConfig, MixtralConfig

from minimind import demo
from minimind.config import parse_settings
from minimind.errors import ConfigError, DataError, WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.objective.losses import build_objective
from minimind.ranks.world import World
from minimind.training.setup import checks
from minimind.training.setup.checks import CHECKS
from minimind.training.setup.draft import Draft


def draft(*flags, **changes) -> Draft:
    """A run that is right, with these flags."""
    source = SimpleNamespace(
        config=MiniMindConfig(hidden_size=64, num_hidden_layers=2, vocab_size=100),
        origin="start.pth",
        check_fit=lambda: None,
    )
    values = {
        "settings": parse_settings(flags),
        "world": World(rank=0, local_rank=0, size=1, device=torch.device("cpu")),
        "is_demo": False,
        "source": source,
        "tokenizer": SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 99}, name_or_path="folder"),
        "engine_resolved": True,
    }
    return Draft(**{**values, **changes})


def problems(one: Draft) -> list[str]:
    return [f"{type(error).__name__}: {error}" for check in CHECKS for error in check(one)]


def other(vocab_size=100, tokenizer_path=None, **changes):
    """Weights of a reference that is another model."""
    model = LlamaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=vocab_size, **changes)
    return SimpleNamespace(config=model, origin="other", check_fit=lambda: None, tokenizer_path=tokenizer_path)


@pytest.mark.parametrize(("loss", "refused"), [("sigmoid", False), ("simpo", False), ("kto", True)])
def test_a_ledger_is_of_pairs(loss, refused):
    found = problems(draft("--ledger", "1", objective=build_objective(loss)))
    assert any("--ledger 1: a ledger is of pairs, and --loss kto takes answers" in one for one in found) == refused


def test_a_reference_of_other_sizes_and_family_is_right():
    assert problems(draft(other_reference=other())) == []


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (other(vocab_size=120), "its vocabulary has 120 tokens, start.pth 100; a reference must have"),
        (other(vocab_size=90), "it has 90 embeddings, and the tokenizer 100 tokens"),
        (other(max_position_embeddings=512), "--max_seq_len is 1024, but the reference other has 512 positions"),
    ],
)
def test_a_reference_of_another_vocabulary_or_with_few_positions_is_refused(reference, message):
    assert message in problems(draft(other_reference=reference))[-1]


def test_the_tokenizer_of_a_reference_is_compared(tmp_path, monkeypatch):
    """Larger embeddings are right then: large models of a family pad them."""
    tokens = {"a": 0, "b": 99}
    monkeypatch.setattr(checks, "read_vocabulary", lambda folder: dict(tokens) if folder == tmp_path else None)
    assert problems(draft(other_reference=other(vocab_size=128, tokenizer_path=tmp_path))) == []
    tokens["b"] = 98
    (problem,) = problems(draft(other_reference=other(tokenizer_path=tmp_path)))
    assert "its tokenizer is another one: 1 of 2 tokens have other ids there or none, the first is 'b'" in problem


def test_a_reference_that_moves_has_the_policy_s_configuration():
    """Other weights of it are right: they move towards the policy."""
    moving = ("--reference_update", "soft:0.5@8")
    same = other()
    same.config = MiniMindConfig(hidden_size=64, num_hidden_layers=2, vocab_size=100)
    assert problems(draft(*moving, other_reference=same)) == []
    (problem,) = problems(draft(*moving, other_reference=other()))
    assert problem.startswith("ConfigError: --reference_update: other has another configuration than start.pth")


def test_a_reference_is_not_overwritten(tmp_path):
    reference = other()
    reference.origin = str(tmp_path / "dpo_512.pth")
    (problem,) = problems(draft("--save_dir", str(tmp_path), other_reference=reference))
    assert f"--reference_weight {reference.origin} would be overwritten by this run" in problem


def test_a_right_run_has_no_problems():
    assert problems(draft()) == []


def test_a_run_whose_files_could_not_be_opened_has_no_further_problems():
    assert problems(draft(source=None, tokenizer=None, engine_resolved=False)) == []


@pytest.mark.parametrize("flag", ["data_path", "eval_data_path"])
def test_data_must_be_there_and_hold_rows(tmp_path, flag):
    (error,) = checks.data_files_exist(draft(f"--{flag}", str(demo.EVAL_PATH), str(tmp_path / "x")))
    assert isinstance(error, DataError)
    assert str(error) == f"--{flag} {tmp_path / 'x'}: no such preference file"
    (error,) = checks.data_files_exist(draft(f"--{flag}", __file__))
    assert str(error).startswith(f"--{flag} {__file__}: neither JSON nor a table")


def test_held_out_pairs_have_no_weight():
    weighted = f"{demo.EVAL_PATH}:2"
    assert list(checks.data_files_exist(draft("--data_path", weighted))) == []
    (error,) = checks.data_files_exist(draft("--eval_data_path", weighted))
    assert str(error).startswith(f"--eval_data_path {weighted}: an evaluation takes each pair once")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--on_bad_checkpoint", "previous"), "--on_bad_checkpoint needs --from_resume 1"),
    ],
)
def test_flags_that_need_another(flags, message):
    assert problems(draft(*flags)) == [f"ConfigError: {message}"]
    assert problems(draft(*flags, "--eval_data_path", str(demo.EVAL_PATH), "--from_resume", "1")) == []


def test_a_project_needs_its_switch():
    assert problems(draft("--wandb_project", "mine")) == ["ConfigError: --wandb_project needs --use_wandb 1"]


@pytest.mark.parametrize(("name", "wrong"), [("beta 0.1", False), ("a/b", True), ("..", True), ("a/", True)])
def test_the_name_of_a_run_can_be_a_folder_s(name, wrong):
    message = f"ConfigError: --run_name {name}: TensorBoard takes it from a folder of this name; leave out the path"
    assert problems(draft("--run_name", name)) == [message] * wrong


def test_a_tracker_is_installed_where_rank_0_runs(monkeypatch):
    given = draft("--use_wandb")
    monkeypatch.setattr(checks, "tracker_name", lambda: None)
    message = "ConfigError: --use_wandb 1: neither swanlab nor wandb is installed; pip install swanlab, or wandb"
    assert problems(given) == [message]
    elsewhere = dataclasses.replace(given, world=dataclasses.replace(given.world, rank=1, size=2))
    assert problems(elsewhere) == []
    monkeypatch.setattr(checks, "tracker_name", lambda: "wandb")
    assert problems(given) == []


def test_the_device_of_a_flag_is_that_of_the_rank():
    assert problems(draft("--device", "cpu")) == []
    (problem,) = problems(draft("--device", "cuda:0"))
    assert problem.startswith("ConfigError: --device cuda:0: the ranks are on cpu: torch ")


def test_one_flag_names_the_shape():
    info = ("--dataset_info", "dataset_info.json")
    message = "ConfigError: --data_format trl and --dataset_info both name the shape; drop one"
    assert problems(draft("--data_format", "trl", *info)) == [message]
    assert problems(draft(*info)) == problems(draft("--data_format", "trl")) == []


def test_on_bad_row_keep_means_on_long_row_keep():
    keep = ("--on_bad_row", "keep", "--on_long_row")
    assert problems(draft(*keep, "keep")) == []
    for other in ("cut", "skip", "error", "cut_prompt"):
        assert problems(draft(*keep, other)) == [
            f"ConfigError: --on_bad_row keep means --on_long_row keep, but --on_long_row is {other}; for rows that are "
            "wrong give --on_bad_row skip"
        ]
        assert problems(draft("--on_bad_row", "skip", "--on_long_row", other)) == []


def test_the_demo_refuses_other_weights_under_its_tokenizer():
    one = draft("--from_weight", "mine.pth", is_demo=True)
    (error,) = checks.demo_keeps_its_weights(one)
    assert "the demo's pairs are made for the demo's weights" in str(error)
    assert list(checks.demo_keeps_its_weights(dataclasses.replace(one, is_demo=False))) == []
    assert list(checks.demo_keeps_its_weights(draft("--from_weight", "none", is_demo=True))) == []


def test_incomplete_weights_are_reported_with_their_own_class():
    def fail():
        raise WeightsError("start.pth lacks lm_head.weight")

    one = draft()
    one.source.check_fit = fail
    assert problems(one) == ["WeightsError: start.pth lacks lm_head.weight"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--hidden_size", "64"), []),
        (("--hidden_size", "32"), ["--hidden_size is 32, but start.pth has 64; drop the flag"]),
        (("--use_moe", "1"), ["--use_moe is 1, but start.pth has 0; drop the flag"]),
        (("--num_attention_heads", "0"), []),  # 0: not given
        (("--max_seq_len", "99999999"), ["--max_seq_len is 99999999, but the model has 32768 positions"]),
    ],
)
def test_sizes_agree_with_the_weights(flags, expected):
    assert [str(error) for error in checks.sizes_are_those_of_the_weights(draft(*flags))] == expected


def test_a_tokenizer_with_more_tokens_than_the_model():
    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 100}, name_or_path="folder")
    assert problems(draft(tokenizer=tokenizer)) == [
        "ConfigError: the tokenizer at folder has 101 tokens, start.pth only 100; they do not belong together"
    ]


def test_an_attention_backend_that_cannot_exist_here():
    (error,) = checks.attention_is_available(draft("--attention", "flex"))
    assert str(error).startswith("--attention flex: ")
    assert list(checks.attention_is_available(draft("--attention", "flex", engine_resolved=False))) == []


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        ("--accumulation_steps 2", True),
        ("--micro_batch_tokens 100", True),
        ("", False),
        ("--accumulation_steps 2 --dropout 0", False),
    ],
)
def test_dropout_and_a_loss_of_the_global_batch(flags, refused):
    """Several micro-batches are computed twice."""
    source = SimpleNamespace(config=GPT2Config(attn_pdrop=0.1), origin="folder", check_fit=lambda: None)
    flags = ("--dropout", "1", *flags.split())
    found = list(checks.dropout_allows_a_look_ahead(draft(*flags, source=source, objective=build_objective("aot"))))
    assert [str(one)[:31] for one in found] == ["--dropout 1: --loss aot compute"] * refused
    for objective in (build_objective("sigmoid"), None):
        assert list(checks.dropout_allows_a_look_ahead(draft(*flags, source=source, objective=objective))) == []
    assert list(checks.dropout_allows_a_look_ahead(draft(*flags, objective=build_objective("aot")))) == []


def test_start_weights_are_not_overwritten(tmp_path):
    one = draft("--save_dir", str(tmp_path), "--save_weight", "mine", "--hidden_size", "64")
    assert problems(one) == []
    for name in ("mine_64.pth", "mine_64"):
        one.source.origin = str(tmp_path / name)
        (error,) = checks.start_weights_are_not_overwritten(one)
        assert isinstance(error, ConfigError)
        assert "would be overwritten by this run" in str(error)


@pytest.mark.parametrize("name", ["lora_mine_64", "lora_mine_64.pth"])
def test_a_start_adapter_is_not_overwritten(tmp_path, name):
    given = ("--save_dir", str(tmp_path), "--save_weight", "mine", "--hidden_size", "64")
    (error,) = checks.start_weights_are_not_overwritten(draft(*given, "--from_adapter", str(tmp_path / name)))
    assert str(error).startswith(f"--from_adapter {tmp_path / name} would be overwritten by this run")


def source_of(config) -> SimpleNamespace:
    return SimpleNamespace(config=config, origin="start", check_fit=lambda: None)


def test_a_coefficient_of_the_experts_needs_experts():
    flags = ("--router_aux_loss_coef", "0.5")
    (error,) = checks.mixture_has_its_loss(draft(*flags))
    assert str(error) == (
        "--router_aux_loss_coef 0.5: start.pth is a MiniMind generation 2 model, which has no experts or no auxiliary "
        "loss of them; drop the flag"
    )
    (error,) = checks.mixture_has_its_loss(draft(*flags, source=source_of(LlamaConfig())))
    assert "start is a llama model" in str(error)
    for config in (MiniMindConfig(use_moe=True), MixtralConfig()):
        assert list(checks.mixture_has_its_loss(draft(*flags, source=source_of(config)))) == []
    # 0 asks for nothing.
    assert list(checks.mixture_has_its_loss(draft("--router_aux_loss_coef", "0"))) == []


def test_sizes_of_a_composite_model_are_those_of_its_text_half():
    text = {"vocab_size": 99, "max_position_embeddings": 256}
    source = source_of(Gemma3Config(text_config=text))
    found = problems(draft("--max_seq_len", "257", source=source))
    assert found == [
        "ConfigError: --max_seq_len is 257, but the model has 256 positions",
        "ConfigError: the tokenizer at folder has 100 tokens, start only 99; they do not belong together",
    ]


def test_an_unknown_instruction_set(monkeypatch):
    monkeypatch.setenv("MINIMIND_CPU", "sse")
    assert problems(draft()) == ["ConfigError: MINIMIND_CPU=sse: use native, avx512 or avx2"]
