"""Which settings of the `zero_optimization` section are refused, and what the rest of the program asks about it."""

from __future__ import annotations

import pytest

from minimind.engine.ds_zero import resolve_overlap, resolve_zero, swaps_to_nvme, weights_at_hand


def resolve(section, world_size=2, on_cpu=True):
    """Stage and problems of a section."""
    problems: list[str] = []
    values = {} if section is None else {"zero_optimization": section}
    return resolve_zero(values, world_size, on_cpu, problems), problems, values["zero_optimization"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stages_have_no_problems(stage):
    assert resolve({"stage": stage}) == (stage, [], {"stage": stage})


def test_missing_section_is_stage_0():
    assert resolve(None) == (0, [], {"stage": 0})


@pytest.mark.parametrize("stage", [4, -1, "2"])
def test_other_stages_are_a_problem(stage):
    assert resolve({"stage": stage})[1] == [f"'zero_optimization.stage' is {stage!r}; it is 0, 1, 2 or 3"]


def test_auto_becomes_deepspeeds_default_also_under_an_alias():
    section = resolve({"stage": 3, "stage3_max_live_parameters": "auto", "reduce_bucket_size": "auto"})[2]
    assert section == {"stage": 3, "stage3_max_live_parameters": 10**9, "reduce_bucket_size": 5 * 10**8}


@pytest.mark.parametrize(
    ("section", "messages"),
    [
        ({"stage": 2, "round_robin_gradients": True}, ["mixes up the float32 weights of different parameters"]),
        ({"stage": 2, "pipeline_loading_checkpoint": True}, ["wait forever if one of them cannot"]),
        ({"stage": 0, "offload_optimizer": {"device": "cpu"}}, ["needs stage 1 or higher, not 0"]),
        ({"stage": 2, "offload_param": {"device": "cpu"}}, ["needs stage 3, not 2"]),
        ({"stage": 3, "zero_quantized_weights": True}, ["it has no CPU kernels"]),
        (
            {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/"}},
            ["on CPU ranks DeepSpeed trains with wrong numbers"],
        ),
    ],
)
def test_settings_that_do_not_work_are_problems(section, messages):
    problems = resolve(section)[1]
    assert len(problems) == len(messages)
    for problem, message in zip(problems, messages, strict=True):
        assert message in problem


@pytest.mark.parametrize(("group", "problems"), [(0, 0), (1, 0), (2, 1), (3, 0)])
def test_a_second_copy_of_the_weights_is_for_groups_of_equal_size(group, problems):
    section = {"stage": 3, "zero_quantized_weights": True, "zero_hpz_partition_size": group}
    assert len(resolve(section, world_size=3, on_cpu=False)[1]) == problems


@pytest.mark.parametrize(
    ("section", "ranks", "overlap"),
    [
        ({"stage": 1, "overlap_comm": True}, 1, False),
        ({"stage": 2, "overlap_comm": True, "offload_optimizer": {"device": "none"}}, 1, False),
        ({"stage": 2, "overlap_comm": True}, 2, True),
        ({"stage": 2, "overlap_comm": True, "offload_optimizer": {"device": "cpu"}}, 1, True),
        ({"stage": 3, "overlap_comm": True}, 1, True),
        ({"stage": 2, "overlap_comm": False}, 1, None),
        ({"stage": 2}, 1, None),
    ],
)
def test_a_single_rank_with_nothing_to_overlap_does_not_overlap(section, ranks, overlap):
    values = {"zero_optimization": dict(section)}
    reasons = resolve_overlap(values, ranks)
    assert list(reasons) == (["zero_optimization.overlap_comm"] if overlap is False else [])
    expected = section if overlap is None else {**section, "overlap_comm": overlap}
    assert values["zero_optimization"] == expected


def test_nvme_on_gpus_needs_a_folder(tmp_path):
    section = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": str(tmp_path)}}
    assert resolve(section, on_cpu=False)[1] == []
    section["offload_optimizer"]["nvme_path"] = str(tmp_path / "none")
    (problem,) = resolve(section, on_cpu=False)[1]
    assert "which is not a folder on this machine" in problem


@pytest.mark.parametrize(
    ("section", "swaps", "at_hand"),
    [
        ({"stage": 3}, False, True),
        ({"stage": 3, "offload_optimizer": {"device": "nvme"}}, True, True),
        ({"stage": 3, "offload_param": {"device": "nvme"}}, True, False),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, False, False),
        ({"stage": 3, "offload_param": None}, False, True),
        ({"stage": 3, "zero_quantized_weights": True}, False, False),
        ({"stage": 3, "zero_quantized_nontrainable_weights": True}, False, False),
        ({"stage": 3, "zero_quantized_gradients": True}, False, True),
    ],
)
def test_where_weights_and_states_are(section, swaps, at_hand):
    values = {"zero_optimization": section}
    assert swaps_to_nvme(values) is swaps
    assert weights_at_hand(values) is at_hand
