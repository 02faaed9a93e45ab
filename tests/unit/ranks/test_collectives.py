"""Communication that keeps ranks together after an error; tests/distributed/test_communication.py has real ranks."""

from __future__ import annotations

import pytest
import torch

from minimind.errors import ConfigError, DataError
from minimind.ranks import collectives
from minimind.ranks.collectives import StopVote, agree, all_reduce, from_main, gather, main_first
from minimind.ranks.world import World


def world(rank=0, size=1, local_rank=0, **options) -> World:
    return World(rank=rank, local_rank=local_rank, size=size, device=torch.device("cpu"), **options)


@pytest.fixture
def outcomes(monkeypatch):
    """Outcomes (runs, error) of the ranks after this one, which is rank 0 of as many as there are; in calls' order."""
    of_others: list[list[tuple[bool, Exception | None]]] = []
    monkeypatch.setattr(collectives, "gather", lambda world, value: [value, *of_others.pop(0)])
    return of_others


def test_agreement_returns_the_result_if_no_rank_failed(outcomes):
    outcomes.append([(True, None)])
    assert agree(world(size=2), lambda: "result") == "result"


def test_error_of_another_rank_is_raised_with_the_number_of_that_rank(outcomes):
    outcomes.append([(True, None), (True, DataError("no file"))])
    with pytest.raises(DataError, match=r"^no file \(only on rank 2\)$") as caught:
        agree(world(size=3), lambda: "result")
    assert caught.value.agreed


def test_error_of_every_rank_is_raised_without_their_numbers(outcomes):
    outcomes.append([(True, ConfigError("other text"))])

    def fail() -> None:
        raise DataError("no file")

    with pytest.raises(DataError, match=r"^no file$") as caught:
        agree(world(size=2), fail)
    assert caught.value.agreed


def test_error_of_the_only_rank_that_ran_is_raised_without_its_number(outcomes):
    outcomes.append([(False, None)])

    def fail() -> None:
        raise DataError("no file")

    with pytest.raises(DataError, match=r"^no file$"):
        agree(world(size=2), fail)


def test_rank_that_does_not_run_returns_none_and_does_not_call_the_action(outcomes):
    outcomes.append([(True, None)])
    assert agree(world(size=2), lambda: pytest.fail("called"), runs=False) is None


def test_other_exceptions_are_raised_at_once(outcomes):
    # A defect ends the process with its traceback; nothing is gathered.
    with pytest.raises(ZeroDivisionError):
        agree(world(size=2), lambda: 1 // 0)


@pytest.mark.parametrize(
    ("local_rank", "order"), [(0, ["action", "agree", "agree"]), (1, ["agree", "action", "agree"])]
)
def test_first_rank_of_a_machine_runs_before_the_others(local_rank, order, monkeypatch):
    events = []

    def gather_one(world, value):
        events.append("agree")
        return [value]

    def action() -> str:
        events.append("action")
        return "result"

    monkeypatch.setattr(collectives, "gather", gather_one)
    assert main_first(world(local_rank=local_rank), action) == "result"
    assert events == order


def test_result_of_rank_0_is_broadcast(one_rank):
    assert from_main(world(), lambda: {"a": 1}) == {"a": 1}


def test_ranks_meet_before_they_gather(one_rank):
    events = []
    assert gather(world(meet=lambda: events.append("meet")), {"a": 1}) == [{"a": 1}]
    assert events == ["meet"]


@pytest.mark.parametrize("op", ["sum", "max"])
def test_all_reduce_of_one_rank_writes_its_own_values(op, one_rank):
    values = torch.tensor([1.0, -2.0])
    assert all_reduce(values, op) is values
    assert values.tolist() == [1.0, -2.0]


def test_all_reduce_selects_the_operation(monkeypatch):
    operations = []
    monkeypatch.setattr(collectives.dist, "all_reduce", lambda values, op: operations.append(op))
    all_reduce(torch.zeros(1))
    all_reduce(torch.zeros(1), "max")
    assert operations == [torch.distributed.ReduceOp.SUM, torch.distributed.ReduceOp.MAX]


@pytest.mark.parametrize("votes", [[False, True], [True, False]])
def test_every_vote_counts_for_one_step(votes, one_rank):
    vote = StopVote(timeout=60.0)
    for wants_stop in votes:
        vote.start(wants_stop)
        assert vote.result() is wants_stop


@pytest.mark.parametrize(("backend", "devices"), [("nccl", [3]), ("gloo", None)])
def test_barrier_of_gpus_names_the_gpu_of_this_rank(backend, devices, monkeypatch):
    called = []
    monkeypatch.setattr(collectives.dist, "get_backend", lambda: backend)
    monkeypatch.setattr(collectives.dist, "barrier", lambda **options: called.append(options))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    collectives.barrier()
    assert called == [{"device_ids": devices}]
