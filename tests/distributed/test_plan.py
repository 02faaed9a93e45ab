"""The plan's bytes are those of running engines on two ranks, under every ZeRO stage, the reference included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minimind.model.quantized_layers import quantization_obstacle
from tests.distributed.launching import launch

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

# Buckets are buffers of a fixed size: small here, and subtracted exactly. The model's tensors are all so small that
# ZeRO-3 would keep many of them whole; one case lets it.
ZERO = {"reduce_bucket_size": 1_000_000, "stage3_param_persistence_threshold": 1000}
WHOLE = {**ZERO, "stage3_param_persistence_threshold": 100_000}
CASES = {
    "zero0": ("zero0", "float32"),
    "zero1": ("zero1", "bfloat16"),
    "zero2": ("zero2", "bfloat16"),
    "zero3": ("zero3", "bfloat16"),
}
IN_FLOAT32 = {"zero2 in float32": ("zero2", "float32"), "zero3 in float32": ("zero3", "float32")}
# A kind for each stage; the other way round is a long test.
ADAPTED, ADAPTED_TOO = [("lora", "zero2")], [("lora", "zero3")]
if not quantization_obstacle(torch.device("cpu"), torch.bfloat16):
    ADAPTED += [("nf4", "zero3")]
    ADAPTED_TOO += [("nf4", "zero2")]


def measured(folder: Path, ranks: int, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One answer for each case and rank; see the worker."""
    (folder / "cases.json").write_text(json.dumps(cases))
    launch("tests/distributed/workers/measure.py", folder, ranks=ranks, timeout=500).succeeded()
    return json.loads((folder / "answers.json").read_text())


def case(name: str, file: str, dtype: str = "bfloat16", **more: Any) -> dict[str, Any]:
    return {"name": name, "file": file, "dtype": dtype, "micro_batches": 2, "zero": ZERO, "asks": "held", **more}


def by_name(folder: Path, cases: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """By the case's name, an answer of each of two ranks."""
    found: dict[str, list[dict[str, Any]]] = {}
    for answer in measured(folder, 2, cases):
        found.setdefault(answer["case"]["name"], []).append(answer)
    return found


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    cases = [case(name, file, dtype) for name, (file, dtype) in CASES.items()]
    cases.append(case("small tensors whole", "zero3", zero=WHOLE))
    return by_name(tmp_path_factory.mktemp("plan"), cases + adapted(ADAPTED))


def adapted(kinds: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [case(f"{kind} {file}", file, rank=16, quantize=kind == "nf4") for kind, file in kinds]


def grown(answer: dict[str, Any], earlier: str, later: str) -> int:
    """Growth of the bytes of all tensors between two moments."""
    return sum(answer["moments"][later].values()) - sum(answer["moments"][earlier].values())


def in_bucket(answer: dict[str, Any]) -> int:
    """Bytes of the bucket that ZeRO-3 keeps."""
    width = 4 if answer["case"]["dtype"] == "float32" else 2
    return width * answer["bucket"] if answer["case"]["file"].startswith("zero3") else 0


def kept_place(name: str, plan: dict[str, Any]) -> int:
    """Bytes of the buffer in which 16-bit gradients are cast to float32 under ZeRO-1 and 2."""
    return plan["update"] if name in ("zero1", "zero2") else 0


@pytest.mark.parametrize("name", CASES)
def test_planned_states_are_those_of_running_engines(name, answers):
    check_states(name, answers[name])


@pytest.mark.long
def test_planned_states_in_float32_and_of_more_adapters_are_those_of_running_engines(tmp_path):
    cases = [case(name, file, dtype) for name, (file, dtype) in IN_FLOAT32.items()]
    found = by_name(tmp_path, cases + adapted(ADAPTED_TOO))
    for name in IN_FLOAT32:
        check_states(name, found[name])
    for kind, file in ADAPTED_TOO:
        check_states_of_adapters(file, found[f"{kind} {file}"])


def check_states(name: str, found: list[dict[str, Any]]) -> None:
    for answer in found:
        plan, stage_3 = answer["plan"], "zero3" in name
        bucket = in_bucket(answer)
        assert grown(answer, "start", "reference") == pytest.approx(plan["reference"], rel=0.1)
        # Between steps there are no gradients, but for ZeRO-3's buffer of them, and the place that 16-bit ones become
        # float32 in, which these ranks, being CPUs, keep.
        resting = plan["parameters"] + plan["optimizer"] + (plan["gradients"] if stage_3 else kept_place(name, plan))
        assert grown(answer, "reference", "after") - bucket == pytest.approx(resting, rel=0.1)
        gradients = 0 if stage_3 else plan["gradients"]
        if not stage_3:
            # Stage 1 holds whole gradients from its first micro-batch on, with its buckets waiting for the last.
            waiting = plan["buckets"] if name == "zero1" else 0
            assert grown(answer, "after", "accumulated") - waiting == pytest.approx(gradients, rel=0.1)
            # After the last, 16-bit ones are in their place in float32, and nowhere else.
            left = 0 if kept_place(name, plan) else gradients
            assert grown(answer, "after", "gradients") == pytest.approx(left, rel=0.1, abs=1e-3 * resting)
        states = resting + plan["reference"] + gradients
        most = max(grown(answer, "start", moment) for moment in ("accumulated", "gradients", "after"))
        assert most - (plan["buckets"] if name == "zero1" else bucket) == pytest.approx(states, rel=0.1)


@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_planned_comparison_of_the_first_step_is_that_of_running_engines(name, answers):
    """A rank's gradients in 16 bits, in float32 by the patch (the plan's `update`) and by DeepSpeed (`first_step`)."""
    for answer in answers[name]:
        plan = answer["plan"]
        gradients = plan["update"] / 2 + plan["update"] + plan["first_step"]
        # Adam's moments do not exist before the first step: of its 12 bytes 4 are the float32 weights.
        held = plan["parameters"] + plan["optimizer"] * 4 / 12 + gradients
        assert grown(answer, "reference", "comparing") == pytest.approx(held, rel=0.02)


def test_small_tensors_stay_whole_on_every_rank(answers):
    for answer in answers["small tensors whole"]:
        plan = answer["plan"]
        states = sum(plan[item] for item in ("parameters", "gradients", "optimizer", "reference"))
        assert grown(answer, "start", "after") - in_bucket(answer) == pytest.approx(states, rel=0.1)
        # Two engines have them whole beside their shards: this would not pass if nobody counted them.
        shards = sum(part["plan"][item] for part in answers["zero3"][:1] for item in ("parameters", "reference"))
        assert plan["parameters"] + plan["reference"] > 1.3 * shards


# It compiles DeepSpeed's AdamW for CPUs.
@pytest.mark.long
def test_planned_offloaded_states_are_those_of_running_engines(tmp_path):
    """On a CPU device and main memory are one: what is held is the sum of both."""
    found = by_name(tmp_path, [case(name, name) for name in ("zero2_offload", "zero3_offload")])
    for answer in [answer for answers in found.values() for answer in answers]:
        plan = answer["plan"]
        states = sum(plan[item] for item in ("parameters", "gradients", "optimizer", "reference", "host"))
        assert plan["host"] > 0.7 * states
        most = max(grown(answer, "start", moment) for moment in ("accumulated", "gradients", "after"))
        assert most - in_bucket(answer) == pytest.approx(states, rel=0.1)


@pytest.mark.parametrize(("kind", "file"), ADAPTED)
def test_planned_states_of_adapters_are_those_of_running_engines(kind, file, answers):
    check_states_of_adapters(file, answers[f"{kind} {file}"])


def check_states_of_adapters(file: str, found: list[dict[str, Any]]) -> None:
    """The reference takes nothing, and of the weights under the adapters there is one copy, in 4 bits or 16."""
    for answer in found:
        plan = answer["plan"]
        assert plan["reference"] == 0
        resting = plan["parameters"] + plan["optimizer"]
        resting += plan["gradients"] if file == "zero3" else kept_place(file, plan)
        # ZeRO-3 has no larger bucket than all gradients.
        bucket = 2 * min(answer["bucket"], answer["trained"]) if file == "zero3" else 0
        assert grown(answer, "reference", "after") - bucket == pytest.approx(resting, rel=0.1)


def test_measured_states_shrink_from_stage_to_stage(answers):
    """Not by the plan alone: what is measured shrinks from stage to stage as ZeRO says."""
    parameters = answers["zero0"][0]["parameters"]
    held = {name: grown(answers[name][0], "reference", "after") / parameters for name in CASES}
    assert held["zero0"] == pytest.approx(4 + 8, rel=0.05)
    # The place of float32 gradients, 4, among them.
    assert held["zero1"] == pytest.approx(2 + 16 / 2, rel=0.05)
    assert held["zero2"] == pytest.approx(2 + 16 / 2, rel=0.05)
    assert held["zero3"] - in_bucket(answers["zero3"][0]) / parameters == pytest.approx(2 / 2 + 2 / 2 + 12 / 2, rel=0.1)
