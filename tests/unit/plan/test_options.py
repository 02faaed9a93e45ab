"""The options of a plan: which file is chosen with how much memory, and DeepSpeed files that cannot be planned."""

from __future__ import annotations

import json

import pytest

from minimind.config import DPOConfig, replace_values
from minimind.errors import ConfigError
from minimind.plan.choice import Machine
from minimind.plan.options import DS_CONFIGS, cheapest, options, read_zero
from tests.unit.plan.test_memory import sizes_of

SIZES = sizes_of(hidden_size=2048, num_hidden_layers=24)


def chosen(gib: float, ranks: int = 2, host: int = 0, **flags) -> tuple[str, bool] | None:
    machine = Machine(ranks_per_node=ranks, device_memory=int(gib * 2**30), host_memory=host)
    best = cheapest(options(SIZES, replace_values(DPOConfig(), flags), machine), machine)
    return None if best is None else (best.file.stem, best.checkpointing)


def test_cheapest_option_offloads_last():
    """With decreasing memory: no checkpointing, checkpointing, more sharding, offload, no option."""
    assert chosen(80) == ("zero2", False)
    assert chosen(20) == ("zero2", True)
    assert chosen(6, ranks=8) == ("zero3", True)
    assert chosen(6)[0].endswith("offload")
    assert chosen(1) is None
    # Main memory is limited as well.
    assert chosen(6, host=2**30) is None
    # With more micro-batches, stage 1 sends less: it reduces the gradients once per step.
    assert chosen(80, accumulation_steps=4)[0] == "zero1"
    # Stage 0 is possible in float32 only, and best on one rank, where there is nothing to shard.
    assert chosen(200, ranks=1, dtype="float32")[0] == "zero0"


def test_unknown_stage_is_an_error(tmp_path):
    path = tmp_path / "four.json"
    path.write_text('{"zero_optimization": {"stage": 4}}')
    with pytest.raises(ConfigError, match=r"four.json: 'zero_optimization.stage' is 4; use 0, 1, 2 or 3"):
        read_zero(path)


@pytest.mark.parametrize(
    ("name", "flags", "on_cpu", "obstacle"),
    [
        ("zero0", {}, False, "not in bfloat16"),
        ("zero0", {"dtype": "float16"}, False, "not in float16"),
        ("zero0", {"dtype": "float32"}, False, None),
        ("zeropp", {}, False, "changes numbers"),
        ("zeropp", {}, True, "needs GPUs"),
        ("zero3_nvme", {}, True, "needs GPUs"),
        ("zero3_nvme", {}, False, None),
        ("zero2", {}, True, None),
    ],
)
def test_option_with_an_obstacle_never_fits(name, flags, on_cpu, obstacle):
    machine = Machine(ranks_per_node=2, device_memory=2**50, on_cpu=on_cpu)
    config = replace_values(DPOConfig(), {"deepspeed": str(DS_CONFIGS / f"{name}.json"), **flags})
    for option in options(SIZES, config, machine):
        assert option.obstacle == obstacle
        assert option.fits(machine) == (obstacle is None)


def test_options_are_those_that_the_flags_allow():
    machine = Machine(device_memory=2**40)

    def allowed(**flags) -> list[tuple[str, str, bool]]:
        found = options(SIZES, replace_values(DPOConfig(), flags), machine)
        return [(option.file.stem, option.reference_file.stem, option.checkpointing) for option in found]

    every = allowed()
    assert [file for file, _, checkpointing in every if checkpointing] == [
        "zero0", "zero1", "zero2", "zero3", "zeropp", "zero2_offload", "zero3_offload", "zero3_nvme",
    ]  # fmt: skip
    assert len(every) == 2 * 8
    # The reference is offloaded where the policy's parameters are.
    assert {file for file, reference, _ in every if reference == "reference_offload"} == {"zero3_offload", "zero3_nvme"}
    assert allowed(deepspeed=str(DS_CONFIGS / "zero1.json"), gradient_checkpointing=True) == [
        ("zero1", "reference", True)
    ]


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"zero_optimization": 3})])
def test_file_without_a_stage_is_an_error(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(
        ConfigError, match=r"file\.json: not a JSON object with zero_optimization\.stage; see ds_configs/"
    ):
        read_zero(path)
