"""The ledger's listener: what is met stays on the device until a logged step, and is on the disk before a save."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minimind.data.pair_tables import PairTables
from minimind.diagnosis import ledger
from minimind.diagnosis.ledger import EVAL, TRAIN
from minimind.objective.losses import build_objective
from minimind.ranks.world import World
from minimind.training.events import End, Evaluated, Log, Save
from minimind.training.jobs.dpo import DPOJob
from minimind.training.jobs.job import BatchOutcome
from minimind.training.listeners import ledger as module
from minimind.training.listeners.ledger import LedgerFiles, kept_values
from tests.unit.data.conftest import load  # noqa: F401 - a fixture
from tests.unit.data.tables import ROWS

VALUES = {"loss": "loss", "margin": "rewards/margins", "chosen_logps": "chosen_logps"}


@pytest.fixture
def made(tmp_path, load, write_rows, monkeypatch):  # noqa: F811
    """A ledger of two training pairs, lines 1 and 3, and two held-out ones; `gathered` are the parts of other ranks."""
    train = PairTables(tables=(load(write_rows(ROWS[0], "", ROWS[1])),))
    held_out = load(write_rows(*ROWS[:3], name="held_out.jsonl"))
    held_out = PairTables(tables=(dataclasses.replace(held_out, selected=np.array([1, 2])),))
    printed, gathered = [], []
    monkeypatch.setattr(module, "gather", lambda world, own: [own, *gathered])

    def make(rank=0):
        return SimpleNamespace(
            listener=LedgerFiles(
                folder=tmp_path,
                values=VALUES,
                table=train,
                eval_table=held_out,
                eval_sets={"": range(1), "zh": range(1, 2)},
                console=SimpleNamespace(say=printed.append),
                world=World(rank=rank, local_rank=rank, size=2, device=torch.device("cpu")),
            ),
            printed=printed,
            gathered=gathered,
            folder=tmp_path,
        )

    return make


def outcome(*losses):
    values = torch.tensor(losses)
    return BatchOutcome(losses=values, metrics={"rewards/margins": -values}, values={"chosen_logps": 2 * values})


def evaluated(step, name, *losses):
    values = np.array(losses)
    kept = {"loss": values, "rewards/margins": -values, "chosen_logps": 2 * values}
    return Evaluated(step=step, metrics={}, items=len(losses), name=name, kept=kept)


def batch(*indices):
    return SimpleNamespace(indices=indices)


def test_pairs_are_on_the_disk_with_their_places_before_a_save(made):
    run = made()
    run.listener.on_evaluated(evaluated(0, "", 0.7))
    run.listener.on_evaluated(evaluated(0, "zh", 0.8))
    run.listener.met(1, batch(1), outcome(0.5))
    run.listener.met(1, batch(0), outcome(0.25))
    run.listener.on_log(Log(step=1, metrics={}))
    run.listener.met(2, batch(0, 1), outcome(0.125, 1.0))  # not logged before the save
    run.gathered.append(np.array([[2.0], [1.0], [4.0], [5.0], [6.0]]))  # of another rank
    assert ledger.size(run.folder) == 0
    run.listener.on_save(Save(step=2))
    found = ledger.read(run.folder)
    trained = found.of_set(TRAIN)
    assert trained.step.tolist() == [1, 1, 2, 2, 2]
    assert trained.line.tolist() == [1, 3, 1, 3, 3]
    assert trained.values["loss"].tolist() == [0.25, 0.5, 0.125, 1.0, 4.0]
    assert trained.values["margin"].tolist() == [-0.25, -0.5, -0.125, -1.0, 5.0]
    assert trained.values["chosen_logps"].tolist() == [0.5, 1.0, 0.25, 2.0, 6.0]
    assert np.isnan(trained.values["ref_chosen_logps"]).all()
    assert found.sets == (EVAL, "eval/zh", TRAIN)
    assert found.of_set("eval/zh").line.tolist() == [3]  # the second of the selected pairs, the third of the file
    (source,) = {found.sources[place] for place in trained.source}
    assert source.sizes == ((run.folder / "pairs.jsonl").stat().st_size,)
    assert trained.prompt_tokens.min() > 0
    assert source.files == (str((run.folder / "pairs.jsonl").resolve()),)

    # Nothing is written twice.
    run.gathered.clear()
    run.listener.on_save(Save(step=2))
    run.listener.on_end(End(step=2, finished=True))
    assert len(ledger.read(run.folder)) == len(found)


def test_an_evaluation_after_the_last_save_is_written_at_the_end(made):
    run = made()
    run.listener.on_save(Save(step=3))
    run.listener.on_evaluated(evaluated(3, "", 0.7))
    run.listener.on_end(End(step=3, finished=True, reason="enough"))
    assert ledger.read(run.folder).step.tolist() == [3]


def test_many_rows_are_written_at_a_logged_step(made, monkeypatch):
    monkeypatch.setattr(module, "_MANY", 2)
    run = made()
    for step in (1, 2):
        run.listener.met(step, batch(0), outcome(0.5))
        run.listener.on_log(Log(step=step, metrics={}))
        assert ledger.size(run.folder) == 0 or step == 2
    assert ledger.read(run.folder).step.tolist() == [1, 2]


def test_other_ranks_give_their_rows_and_write_nothing(made):
    run = made(rank=1)
    run.listener.on_evaluated(evaluated(0, "", 0.7))
    run.listener.met(1, batch(0), outcome(0.5))
    run.listener.on_save(Save(step=1))
    assert ledger.size(run.folder) == 0


def test_rows_that_cannot_be_written_are_said_once_and_kept(made, monkeypatch):
    run = made()

    def full(folder, rows):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "append", full)
        for step in (1, 2):
            run.listener.met(step, batch(0), outcome(0.5))
            run.listener.on_save(Save(step=step))
    (message,) = run.printed
    assert message.startswith("NOT LOGGED: ledger: ")
    run.listener.on_save(Save(step=3))
    assert ledger.read(run.folder).step.tolist() == [1, 2]


def test_a_job_keeps_what_its_loss_has():
    full = kept_values(DPOJob(objective=build_objective("sigmoid"), reference="live"), has_reference=True)
    assert tuple(full) == ledger.VALUES
    free = kept_values(DPOJob(objective=build_objective("sft"), reference=None), has_reference=False)
    assert tuple(free) == ("loss", "chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens")
