"""The planning script: its flags, its errors and its output."""

from __future__ import annotations

import re
import shlex

import pytest
import torch

from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights
from minimind.config import parse_settings
from minimind.errors import ConfigError, WeightsError
from minimind.plan.command import main, plan
from minimind.plan.options import DS_CONFIGS
from tests.conftest import REPO

ISSUE = "--hidden_size 4096 --num_hidden_layers 32 --nodes 4 --gpus_per_node 8 --gpu_memory 80GiB".split()


def rows(text: str) -> dict[str, list[str]]:
    """Cells of the table by file; columns are at least two spaces apart."""
    lines = [re.split(r"\s{2,}", line) for line in text.splitlines() if ".json  " in line]
    return {line[0]: line[1:] for line in lines}


def printed_command(text: str) -> list[str]:
    return shlex.split(text[text.index("    deepspeed ") :].replace("\\\n", " "))


def test_every_shipped_file_has_a_row_and_the_command_is_valid(capsys):
    main(ISSUE)
    text = capsys.readouterr().out
    shipped = {path.name for path in DS_CONFIGS.glob("*.json")} - {"reference.json", "reference_offload.json"}
    assert set(rows(text)) == shipped
    assert "5.67 B parameters" in text
    assert "32 ranks (4 x 8)" in text
    words = printed_command(text)
    assert words[:4] == ["deepspeed", "--hostfile", "launch/hostfile", "launch/train_dpo.py"]
    settings = parse_settings(words[4:])
    assert (REPO / settings.config.engine.deepspeed).is_file()
    assert settings.config.model.from_weight == "full_sft_4096.pth"


def test_flags_of_the_schedule_are_accepted_and_compared():
    flags = [*ISSUE, "--lr_schedule", "wsd", "--warmup_ratio", "0.05"]
    assert "--lr_schedule wsd --warmup_ratio 0.05" in " ".join(printed_command(plan(flags)))
    with pytest.raises(ConfigError, match="--warmup_steps and --warmup_ratio both say"):
        plan([*flags, "--warmup_steps", "3"])


@pytest.mark.parametrize("name", ["launch/README.md", "launch/README_zh.md"])
def test_the_readme_s_table_is_what_the_script_prints(name):
    printed = plan(ISSUE).splitlines()
    shown = [line[4:] for line in (REPO / name).read_text(encoding="utf-8").splitlines() if ".json  " in line]
    assert len(shown) >= 5
    assert [line for line in shown if line not in printed] == []


def test_command_keeps_the_flags_of_training():
    text = plan([*ISSUE, "--max_seq_len", "512", "--beta", "0.2", "--data_path", "my pairs.jsonl", "--use_moe", "1"])
    settings = parse_settings(printed_command(text)[4:])
    assert (settings.config.data.max_seq_len, settings.config.objective.beta) == (512, 0.2)
    assert settings.config.data.data_path == ("my pairs.jsonl",)
    assert settings.config.model.from_weight == "full_sft_4096_moe.pth"
    assert "--hidden_size" not in text
    # New weights need the size flags.
    fresh = parse_settings(printed_command(plan([*ISSUE, "--from_weight", "none"]))[4:]).config
    assert (fresh.model.from_weight, fresh.model.hidden_size, fresh.model.num_hidden_layers) == ("none", 4096, 32)


def test_the_generation_alone_sets_the_size():
    text = plan(["--generation", "3", "--gpu_memory", "8GiB"])
    assert "MiniMind generation 3" in text
    assert "hidden 768" in text
    assert "full_sft_768.pth" in text


def test_sizes_are_read_from_weights():
    given = ["--from_weight", str(REPO / "minimind/demo/start.pth"), "--gpu_memory", "1GiB"]
    text = plan([*given, "--gpus_per_node", "2"])
    assert "start.pth" in text
    assert "--num_gpus 2" in text
    with pytest.raises(ConfigError, match=r"--hidden_size is 4096, but .*start.pth has \d+; omit the flag"):
        plan([*given, "--hidden_size", "4096"])


def test_plan_of_one_file_with_checkpointing_only():
    text = plan([*ISSUE, "--deepspeed", "ds_configs/zero1.json", "--gradient_checkpointing", "1"])
    assert list(rows(text)) == ["zero1.json"]
    assert "--gradient_checkpointing 1" in text


def test_plan_without_a_fitting_option_names_the_smallest_and_remedies():
    text = plan(["--hidden_size", "8192", "--num_hidden_layers", "80", "--gpu_memory", "2GiB"])
    assert "No option fits. The smallest is" in text
    assert "--micro_batch_tokens" in text
    assert "deepspeed --" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--hidden_size 512", "--gpu_memory is missing"),
        ("--gpu_memory 80", "--gpu_memory 80: expected a size with a unit, e.g. 80GiB"),
        ("--gpu_memory 0GiB", "expected a size with a unit"),
        ("--gpu_memory 80GiB --host_memory much", "--host_memory much"),
        ("--gpu_memory 80GiB --nodes 0", "--nodes 0 is below 1"),
        ("--gpu_memory 80GiB --vocab_size 0", "--vocab_size 0 is below 1"),
        ("--gpu_mem 80GiB", "unrecognized argument: --gpu_mem; did you mean --gpu_memory?"),
        ("--gpu_memory 80GiB --hiden_size 4", "did you mean --hidden_size?"),
        ("--gpu_memory 80GiB --nodes two", "--nodes"),
        ("--gpu_memory 80GiB --hidden_size 510 --num_attention_heads 170", "no MiniMind model has these sizes"),
        ("--gpu_memory 80GiB --deepspeed nowhere.json", "nowhere.json: no such DeepSpeed configuration"),
        ("--gpu_memory 80GiB --deepspeed README.md", "README.md: not a JSON object"),
        ("--gpu_memory 80GiB --from_weight none --vocab_size 100", "new weights (--from_weight none) have 6400"),
        ("--gpu_memory 80GiB --batch_size 0", "--batch_size 0 is below 1"),
    ],
)
def test_invalid_flags_are_one_error(arguments, message, monkeypatch):
    monkeypatch.chdir(REPO)
    with pytest.raises(ConfigError) as caught:
        plan(arguments.split())
    assert message in str(caught.value)


def test_missing_weights_and_exit_status():
    with pytest.raises(WeightsError, match="omit the flag to plan from the size flags"):
        plan(["--gpu_memory", "80GiB", "--from_weight", "nowhere.pth"])
    with pytest.raises(SystemExit) as ended:
        main(["--gpu_memory", "80"])
    assert str(ended.value.code).startswith("ConfigError: --gpu_memory 80")


def test_a_loss_without_a_reference_is_planned_without_one():
    with_reference, without = plan(ISSUE), plan([*ISSUE, "--loss", "simpo,sft:0.1"])
    assert "No reference: --loss simpo,sft:0.1 needs none" in without
    assert "No reference" not in with_reference
    columns = {text: rows(text)["zero3.json"] for text in (with_reference, without)}
    assert (float(columns[with_reference][4]), float(columns[without][4])) == (0.33, 0.0)
    assert "--loss simpo,sft:0.1" in without[without.index("    deepspeed ") :].replace("'", "")
    with pytest.raises(ConfigError, match="no such loss: simpoo"):
        plan([*ISSUE, "--loss", "simpoo"])


def test_a_reference_that_is_another_model_is_planned_with_its_own_sizes(tmp_path):
    small = MiniMindForCausalLM(MiniMindConfig(hidden_size=64, num_hidden_layers=1))
    save_weights(small, tmp_path / "small.pth", torch.float32)
    text = plan([*ISSUE, "--reference_weight", str(tmp_path / "small.pth")])
    assert f"Reference: {tmp_path / 'small.pth'}, {small.num_parameters() / 1e9:.3g} B parameters" in text
    column = 4  # of the reference's shard, after file, offload, weights, gradients, optimizer
    assert (rows(plan(ISSUE))["zero2.json"][column], rows(text)["zero2.json"][column]) == ("0.33", "0.00")
    assert f"--reference_weight {tmp_path / 'small.pth'}" in text
    with pytest.raises(WeightsError, match="--reference_weight nowhere: no such"):
        plan([*ISSUE, "--reference_weight", "nowhere"])


def test_other_jobs_have_their_own_script_flags_and_load():
    """A conversation is one row, a pair two; no job but DPO has a reference."""
    machine = ["--gpu_memory", "80GiB", "--batch_size", "4", "--max_seq_len", "512", "--hidden_size", "768"]
    sft, dpo = plan(["--job", "sft", *machine]), plan(machine)
    assert "1 micro-batch of at most 2048 tokens" in sft
    assert "1 micro-batch of at most 4096 tokens" in dpo
    assert "No reference" not in sft
    command = printed_command(sft)
    assert "launch/train_sft.py" in command
    assert "pretrain_768.pth" in command
    assert "conversations.jsonl" in command
    with pytest.raises(ConfigError, match="unrecognized argument: --beta"):
        plan(["--job", "pretrain", *machine, "--beta", "0.1"])


def test_a_number_of_parameters_is_a_plan():
    text = plan(["--job", "pretrain", "--params", "1e9", "--gpus_per_node", "8", "--gpu_memory", "80GiB"])
    assert "Proposed: hidden size 2048, 20 layers, 16 heads of 128" in text
    assert "Tokens for pretraining: 20.3 B" in text
    command = printed_command(text)
    assert command[command.index("--hidden_size") + 1] == "2048"
    assert command[command.index("--from_weight") + 1] == "none"
    assert "1.02 B parameters, hidden 2048" in text
    with pytest.raises(ConfigError, match="--params proposes sizes, and --hidden_size gives them"):
        plan(["--params", "1e9", "--hidden_size", "64", "--gpu_memory", "80GiB"])


def test_sizes_are_proposed_without_a_machine():
    text = plan(["--params", "1e9"])
    assert text.startswith("Proposed: hidden size 2048, 20 layers")
    assert text.endswith(
        "For a plan of its memory give the memory of one GPU (or of one CPU rank), e.g. --gpu_memory 80GiB"
    )
    with pytest.raises(ConfigError, match="--params proposes sizes, and --hidden_size gives them"):
        plan(["--params", "1e9", "--hidden_size", "64"])
