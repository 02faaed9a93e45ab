"""Times of phases, MFU and rates of logged steps, from a clock that the test moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.data.packs import pack
from minimind.plan.work import ModelWork
from minimind.ranks.world import World
from minimind.training import phase_clock, speed
from minimind.training.speed import Speed, Useful, measured_peak
from tests.distributed.workers.engines import random_pair

pytestmark = pytest.mark.usefixtures("one_rank")
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
JOB = SimpleNamespace(trained=lambda batch: batch, reference=object())
WORK = ModelWork(layers=2, to_attention=100, after=200, head=1000, scores=10)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=5.0)
    time = SimpleNamespace(perf_counter=lambda: now.seconds)
    monkeypatch.setattr(phase_clock, "time", time)
    monkeypatch.setattr(speed, "time", time)
    monkeypatch.setattr(speed, "measured_peak", lambda dtype: 1e6)
    return now


@pytest.fixture
def made():
    def make(work=WORK, passes=4, job=JOB):
        heard, said = [], []
        watch = SimpleNamespace(enter=lambda phase, step: heard.append(phase))
        useful = Useful(work=work, passes=passes)
        one = Speed(world=WORLD, watch=watch, job=job, useful=useful, dtype="float32", say=said.append)
        return SimpleNamespace(speed=one, heard=heard, said=said)

    return make


PHASES = {"reference": 1.0, "policy forward": 2.0, "backward": 3.0, "optimizer step": 0.5}


def take(made, clock, batches, phases=PHASES, number=2):
    """So many steps of these batches; each waits a quarter of a second for data."""

    def slow():
        for _ in range(number):
            clock.seconds += 0.25
            yield batches

    for step in made.speed.waiting(slow()):
        assert step is batches
        made.speed.begin(step)
        for _ in batches:
            for phase, seconds in phases.items():
                made.speed.enter(phase)
                clock.seconds += seconds
        made.speed.end()
        clock.seconds += 10.0  # a save


def test_seconds_are_those_of_a_step(made, clock):
    run, batches = made(), [pack([random_pair(seed, 20)]) for seed in (1, 2)]
    take(run, clock, batches)
    tokens = sum(batch.row_tokens for batch in batches)
    found = run.speed.reduce({"tokens_per_second": tokens / 14.0})
    assert found["time/data"] == 0.25
    assert (found["time/reference"], found["time/forward"], found["time/backward"]) == (2.0, 4.0, 6.0)
    assert (found["time/optimizer"], found["time/step"]) == (1.0, pytest.approx(14.0))
    assert found["tokens_per_second_per_rank"] == tokens / 14.0
    assert run.heard == list(PHASES) * 4
    # The next window begins anew, and the peak is said once.
    take(run, clock, batches, {"policy forward": 1.0}, number=1)
    found = run.speed.reduce({"tokens_per_second": 1.0})
    assert found["time/forward"] == 2.0
    assert (found["time/reference"], found["time/backward"]) == (0.0, 0.0)
    assert run.said == ["  mfu: over 1e-06 TFLOP/s a rank, the fastest product measured now"]


def test_a_job_without_a_reference_has_no_time_of_one(made, clock):
    run = made(job=SimpleNamespace(trained=lambda batch: batch))
    take(run, clock, [pack([random_pair(1, 20)])])
    found = run.speed.reduce({"tokens_per_second": 1.0})
    assert "time/reference" not in found
    assert found["time/forward"] == 2.0


def test_mfu_is_useful_operations_over_the_peak(made, clock):
    run, batches = made(passes=3), [pack([random_pair(seed, 20)]) for seed in (1, 2)]
    take(run, clock, batches)
    useful = 3 * sum(WORK.forward_flops(batch) for batch in batches)
    tokens = sum(batch.row_tokens for batch in batches)
    # A step in two seconds.
    assert run.speed.reduce({"tokens_per_second": tokens / 2})["mfu"] == pytest.approx(useful / 2 / 1e6)


def test_an_unknown_model_has_no_mfu_and_the_run_says_so(made, clock):
    run = made(work=None)
    take(run, clock, [pack([random_pair(1, 20)])])
    assert "mfu" not in run.speed.reduce({"tokens_per_second": 1.0})
    assert run.said == ["  mfu: unknown, because the operations of this model are not known"]


@pytest.mark.parametrize(
    ("name", "peak", "line"),
    [
        ("NVIDIA H200", 989.4e12, "  mfu: over 989 TFLOP/s as stated for NVIDIA H200"),
        ("NVIDIA GeForce RTX 4090", 0.0, "  mfu: unknown: no peak of NVIDIA GeForce RTX 4090 in bfloat16"),
    ],
)
def test_the_peak_of_a_gpu_is_stated_or_unknown(made, monkeypatch, name, peak, line):
    run = made()
    run.speed._world, run.speed._dtype = SimpleNamespace(on_cpu=False, device=None), "bfloat16"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert run.speed._find_peak() == peak
    assert run.said == [line]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_of_a_cpu_is_measured(dtype):
    assert 1e6 < measured_peak(dtype) < 1e16
