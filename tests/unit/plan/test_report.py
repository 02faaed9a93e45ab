"""The text of a plan: cells, command and endings."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.config import DPOConfig, parse_settings, replace_values
from minimind.plan.choice import Machine
from minimind.plan.options import DS_CONFIGS, options
from minimind.plan.report import command, gib, report
from tests.unit.plan.test_memory import ROUND

GIB = 2**30


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.00"), (GIB, "1.00"), (9.994 * GIB, "9.99"), (10 * GIB, "10.0"), (1234.56 * GIB, "1234.6")]
)
def test_bytes_are_printed_in_gib(size, text):
    assert gib(size) == text


def plan_of(machine: Machine, *arguments: str):
    settings = parse_settings(arguments)
    found = options(ROUND, settings.config, machine)
    return report("a model", ROUND, settings, machine, found), found, settings


def test_last_column_says_which_options_fit():
    """8 M parameters: the states of stage 1 on 2 ranks are 2 + 1 + 6 + 1 bytes per parameter, 76 MiB."""
    machine = Machine(ranks_per_node=2, device_memory=GIB)
    text, found, _ = plan_of(machine, "--max_seq_len", "512")
    last = {line.split()[0]: line.split("  ")[-1].strip() for line in text.splitlines() if ".json  " in line}
    assert last["zero0.json"] == "not in bfloat16"
    assert last["zeropp.json"] == "changes numbers"
    assert last["zero1.json"] == "yes"
    # Just enough memory for the smallest option: all options that need more do not fit.
    smallest = min(option.memory.peak for option in found if option.obstacle is None)
    tight = dataclasses.replace(machine, device_memory=int(smallest / 0.9) + 1)
    text, found, _ = plan_of(tight, "--max_seq_len", "512")
    last = {line.split()[0]: line.split("  ")[-1].strip() for line in text.splitlines() if ".json  " in line}
    assert "checkpointed" in last.values()
    assert "yes" not in last.values()
    assert "The cheapest option that fits (checkpointed, " in text


def test_rows_of_the_table_are_aligned():
    text, _, _ = plan_of(Machine(ranks_per_node=2, device_memory=GIB))
    table = text.split("\n\n")[1].splitlines()
    assert table[0].split()[:2] == ["file", "offload"]
    ends = {line.index(" ", line.index(cell)) for line, cell in [(table[0], "weights")]}
    for line in table[1:]:
        # Cells are right-aligned with their heading: a digit stands above the heading's last letter, then a gap.
        assert all(line[end - 1].isdigit() and line[end] == " " for end in ends)


def test_no_possible_option_is_reported_with_the_obstacle():
    text, _, _ = plan_of(Machine(device_memory=GIB), "--deepspeed", str(DS_CONFIGS / "zero0.json"))
    assert text.endswith("No option is possible: zero0.json: not in bfloat16.")


def test_smallest_option_is_named_if_none_fits():
    text, _, _ = plan_of(Machine(device_memory=2**20), "--deepspeed", str(DS_CONFIGS / "zero3_offload.json"))
    assert "No option fits. The smallest is zero3_offload.json, checkpointed: " in text
    assert "GiB of each node's main memory" in text


@pytest.mark.parametrize(
    ("machine", "launcher"),
    [
        (
            Machine(nodes=2, ranks_per_node=4, device_memory=GIB),
            "deepspeed --hostfile launch/hostfile launch/train_",
        ),
        (Machine(ranks_per_node=4, device_memory=GIB), "deepspeed --num_gpus 4 launch/train_dpo.py"),
    ],
)
def test_command_starts_the_ranks_of_the_machine(machine, launcher):
    settings = parse_settings(["--beta", "0.3", "--data_path", "my pairs.jsonl", "--use_moe", "1"])
    option = options(ROUND, settings.config, machine)[-1]
    text = command(option, settings, machine)
    assert text.strip().startswith(launcher)
    assert "--beta 0.3" in text
    assert "--data_path 'my pairs.jsonl'" in text
    assert "--from_weight full_sft_512_moe.pth" in text
    assert "zero3_nvme.json" in text
    assert "--gradient_checkpointing 1" in text
    assert "reference_offload.json" in text
    # Weights contain it, so training needs no flag for it.
    assert "--use_moe" not in text


def test_command_of_a_cached_reference_names_no_reference_config():
    machine = Machine(device_memory=GIB)
    settings = parse_settings(["--reference", "cached"])
    option = options(ROUND, replace_values(DPOConfig(), {"reference": "cached"}), machine)[-1]
    assert option.reference_file.name == "reference_offload.json"
    assert "--reference_config" not in command(option, settings, machine)
