"""The combinations of a sweep, their folders, and whether each is new, goes on or is finished."""

from __future__ import annotations

import json

import pytest

from minimind.config import SFTConfig, parse_settings
from minimind.errors import ConfigError
from minimind.sweep.plan import (
    FAILED,
    FINISHED,
    NEW,
    RECORD,
    RESUME,
    STARTED,
    STOPPED,
    read_record,
    todo,
    write_record,
)
from tests.unit.sweep.made import plans


def test_every_combination_has_a_folder_of_its_own(tmp_path):
    found = plans(tmp_path, "--beta", "0.05,0.1", "--seed", "3", "--loss", "sigmoid,ipo")
    assert [plan.name for plan in found] == [
        "beta-0.05_loss-sigmoid",
        "beta-0.05_loss-ipo",
        "beta-0.1_loss-sigmoid",
        "beta-0.1_loss-ipo",
    ]
    settings = parse_settings(found[1].argv)
    assert (settings.config.objective.beta, settings.config.objective.loss) == (0.05, "ipo")
    assert (settings.config.data.seed, settings.config.data.data_path) == (3, ("pairs.jsonl",))
    assert settings.config.run.save_dir == str(tmp_path / "beta-0.05_loss-ipo")
    assert settings.config.run.from_resume


def test_without_several_values_there_is_one_run(tmp_path):
    (plan,) = plans(tmp_path)
    assert (plan.name, plan.differing) == ("run", {})


def test_names_of_values_that_no_file_name_should_have_stay_different(tmp_path):
    found = plans(tmp_path, "--loss", "sigmoid:0.8,sft:1;sigmoid;sigmoid:0.8,ipo:1")
    names = [plan.name for plan in found]
    assert len(set(names)) == 3
    assert all("/" not in name and ":" not in name for name in names)
    assert names[1] == "loss-sigmoid"
    many = plans(tmp_path, "--learning_rate", "1e-6,2e-6", "--chat_template", f"{'x' * 200};{'y' * 200}")
    assert all(len(plan.name) < 120 for plan in many)
    assert len({plan.name for plan in many}) == 4


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), ["cached"]),
        (("--reference", "live"), ["live"]),
        (("--reference_update", "hard@8"), ["live"]),
        # ld_dpo needs each token's log-prob, which the cache does not have; simpo needs no reference.
        (("--loss", "sigmoid,ld_dpo,simpo"), ["cached", "live", "live"]),
    ],
)
def test_the_reference_is_cached_where_it_can_be(tmp_path, flags, expected):
    found = plans(tmp_path, *flags)
    assert [parse_settings(plan.argv).config.engine.reference for plan in found] == expected


def test_combinations_that_training_refuses_are_refused_before_the_first_run(tmp_path):
    with pytest.raises(ConfigError) as caught:
        plans(tmp_path, "--loss", "sigmoid,sigmoit", "--beta", "0.1,-1")
    text = str(caught.value)
    assert text.startswith("3 problems:")
    assert "loss-sigmoid_beta--1: --beta -1.0 is not above 0" in text
    assert "loss-sigmoit_beta-0.1: --loss sigmoit" in text
    assert "did you mean sigmoid?" in text


def test_what_is_to_be_done(tmp_path):
    (plan,) = plans(tmp_path, "--beta", "0.1")
    assert todo(plan) == NEW
    for status in (STARTED, STOPPED, FAILED):
        write_record(plan, status, 1)
        assert todo(plan) == RESUME
    write_record(plan, FINISHED, 0)
    assert todo(plan) == FINISHED
    assert read_record(plan)["exit"] == 0


def test_a_run_with_other_flags_is_neither_skipped_nor_resumed(tmp_path):
    (plan,) = plans(tmp_path, "--beta", "0.1", "--max_steps", "4")
    write_record(plan, FINISHED, 0)
    (longer,) = plans(tmp_path, "--beta", "0.1", "--max_steps", "8")
    with pytest.raises(ConfigError, match="belongs to a sweep with other flags: --max_steps was 4, is 8; give"):
        todo(longer)
    (seeded,) = plans(tmp_path, "--beta", "0.1", "--max_steps", "4", "--seed", "1")
    with pytest.raises(ConfigError, match="--seed was not given, is 1"):
        todo(seeded)
    # What changes nothing of a run may differ.
    (patient,) = plans(tmp_path, "--beta", "0.1", "--max_steps", "4", "--timeout", "60")
    assert todo(patient) == FINISHED


def test_a_run_that_no_sweep_has_started_is_left_alone(tmp_path):
    (plan,) = plans(tmp_path)
    plan.folder.mkdir()
    (plan.folder / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="has a run that no sweep has started"):
        todo(plan)


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"status": "finished"})])
def test_a_damaged_record_is_named(tmp_path, text):
    (plan,) = plans(tmp_path)
    plan.folder.mkdir()
    (plan.folder / RECORD).write_text(text)
    with pytest.raises(ConfigError, match=f"{RECORD}: cannot be read"):
        todo(plan)


def test_runs_of_another_job_have_its_flags(tmp_path):
    flags = ("--job", "sft", "--learning_rate", "1e-5,1e-4", "--loss_mean", "micro_batch")
    found = plans(tmp_path, *flags)
    assert [(plan.job, plan.name) for plan in found] == [("sft", "learning_rate-1e-5"), ("sft", "learning_rate-1e-4")]
    settings = parse_settings(found[0].argv, SFTConfig)
    assert (settings.config.objective.loss_mean, settings.config.optimisation.learning_rate) == ("micro_batch", 1e-5)
    with pytest.raises(ConfigError, match="unrecognized argument: --beta"):
        plans(tmp_path, "--job", "sft", "--beta", "0.1")
    with pytest.raises(ConfigError, match="the loss would depend on how --micro_batch_tokens splits a step"):
        plans(tmp_path, *flags, "--micro_batch_tokens", "99")
    # A folder of one job is not taken for one of another.
    (plan,) = plans(tmp_path)
    write_record(plan, FINISHED)
    (other,) = plans(tmp_path, "--job", "sft")
    with pytest.raises(ConfigError, match="--job was dpo, is sft"):
        todo(other)
