"""Settings that may differ when a run resumes, and settings that may not."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import GPT2Config

from minimind.checkpoints.find import Checkpoint
from minimind.checkpoints.manifest import Manifest
from minimind.config import SFTConfig, parse_settings
from minimind.data.mix import Mix
from minimind.data.sampler import PairSampler
from minimind.errors import CheckpointError
from minimind.model.configuration import MiniMindConfig
from minimind.objective.choice import choose_objective
from minimind.objective.losses import SigmoidLoss, option, registry
from minimind.training.jobs.kinds import KINDS
from minimind.training.setup.resume import check_same_run, describe, describe_reshard
from minimind.training.setup.training_data import TrainingData

# MiniMind's optimizer in a DeepSpeed file for a CPU, and in one for offloading.
TORCH = {"type": "AdamW", "params": {"lr": 0.1, "betas": [0.9, 0.999], "torch_adam": True, "fused": True}}
OFFLOAD = {"type": "AdamW", "params": {"lr": 0.1, "betas": [0.9, 0.999]}}


@pytest.fixture
def shifted_loss(monkeypatch):
    """Registers a loss with an option of its own."""
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))

    @registry.register_loss
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class ShiftedLoss(SigmoidLoss):
        name = "shifted"
        shift: float = option(0.5, "a shift")

    return ShiftedLoss


def stream(ranks=2, seed=42):
    shared = {"mix": Mix.plain(26), "epochs": 2, "micro_batch_size": 2, "shuffle": True, "seed": seed}
    return PairSampler(**shared, accumulation_steps=4 // ranks, world_size=ranks)


def description(ranks=2, stage=2, optimizer=TORCH, flags="", model=None, order=None):
    settings, objective = choose_objective(parse_settings(flags.split()))
    prepared = SimpleNamespace(
        settings=settings,
        objective=objective,
        policy_config=SimpleNamespace(values={"optimizer": optimizer, "zero_optimization": {"stage": stage}}),
        source=SimpleNamespace(config=model or MiniMindConfig()),
        adapters=None,
    )
    table = type("Table", (), {"key": "data's", "__len__": lambda self: 26})()
    data = TrainingData(table=table, eval_table=None, stream=order or stream(ranks), total_steps=6)
    return describe(prepared, data, "weights'")


def checkpoint(described, place):
    manifest = Manifest(step=3, stream=place, files={}, **described)
    return Checkpoint(path=Path("checkpoints/step00000003"), manifest=manifest, damaged={})


def test_ranks_stage_and_optimizer_implementation_may_differ():
    saved = checkpoint(json.loads(json.dumps(description())), stream().position_after(3))
    now = description(ranks=4, stage=3, optimizer=OFFLOAD)
    check_same_run(saved, now, stream(ranks=4))
    assert describe_reshard(saved, now) == ", resharded: 2 ranks, ZeRO-2 -> 4 ranks, ZeRO-3"
    assert describe_reshard(saved, description(optimizer=OFFLOAD)) == ", resharded for other ZeRO settings"
    assert describe_reshard(saved, description()) == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"flags": "--beta 0.5"}, "beta was 0.1, is 0.5"),
        ({"flags": "--loss sigmoid:0.5"}, "loss was 'sigmoid', is 'sigmoid:0.5'"),
        ({"flags": "--seed 1"}, "seed was 42, is 1"),
        ({"flags": "--lr_schedule cosine"}, "lr_schedule was 'minimind', is 'cosine'"),
        ({"flags": "--warmup_ratio 0.1"}, "warmup_ratio was None, is 0.1"),
        ({"flags": "--router_aux_loss_coef 0"}, "router_aux_loss_coef was None, is 0.0"),
        ({"optimizer": {"type": "Lion", "params": {"lr": 0.1}}}, "optimizer was"),
        ({"model": MiniMindConfig(num_hidden_layers=3)}, "model.num_hidden_layers was 8, is 3"),
    ],
)
def test_data_model_objective_and_optimizer_may_not_differ(changed, said):
    saved = checkpoint(description(), stream().position_after(3))
    with pytest.raises(CheckpointError, match="belongs to a run with other settings") as caught:
        check_same_run(saved, description(**changed), stream())
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3  # no other difference is listed


def test_dropout_is_compared_where_the_model_has_it():
    """Earlier versions trained with the model's dropout."""
    model = GPT2Config(attn_pdrop=0.1)
    for flags, others in (("", "--dropout 1"), ("--dropout 1", "")):
        saved = checkpoint(description(model=model, flags=flags), stream().position_after(3))
        check_same_run(saved, description(model=model, flags=flags), stream())
        with pytest.raises(CheckpointError, match="dropout was"):
            check_same_run(saved, description(model=model, flags=others), stream())
    earlier = description(model=model, flags="--dropout 1")
    del earlier["identity"]["dropout"]
    saved = checkpoint(earlier, stream().position_after(3))
    check_same_run(saved, description(model=model, flags="--dropout 1"), stream())
    with pytest.raises(CheckpointError, match="dropout was True, is False"):
        check_same_run(saved, description(model=model), stream())


def test_the_share_of_empty_think_blocks_is_compared_where_it_was_written():
    """An earlier version did not write it; there the data's key tells."""
    saved = checkpoint(description(flags="--empty_think_ratio 0.2"), stream().position_after(3))
    with pytest.raises(CheckpointError, match=r"empty_think_ratio was 0.2, is 1.0"):
        check_same_run(saved, description(), stream())
    del saved.manifest.identity["empty_think_ratio"]
    check_same_run(saved, description(), stream())


def test_dropout_does_not_matter_for_a_model_without_it():
    saved = checkpoint(description(), stream().position_after(3))
    check_same_run(saved, description(flags="--dropout 1"), stream())


def test_runs_with_nvme_states_cannot_be_resumed_nor_resume():
    nvme = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/drive"}}
    here, there = description(), description()
    there["sharding"]["zero_optimization"] = nvme
    with pytest.raises(CheckpointError, match=r"written while states swapped to NVMe, .* start anew in another --save"):
        check_same_run(checkpoint(there, stream().position_after(3)), here, stream())
    with pytest.raises(CheckpointError, match=r"not restore all NVMe state; .*/zero3_offload\.json, or start anew"):
        check_same_run(checkpoint(here, stream().position_after(3)), there, stream())


def test_a_stream_with_another_order_of_pairs_is_refused():
    """Another version of numpy may give another order for the same seed."""
    saved = checkpoint(description(), stream(seed=1).position_after(3))
    with pytest.raises(CheckpointError, match="pairs would be repeated or skipped: after step 3"):
        check_same_run(saved, description(), stream())


def test_another_mix_of_the_same_sources_is_refused():
    mixes = [Mix(sizes=(20, 6), weights=(Fraction(weight), Fraction(1))) for weight in ("1", "0.5")]
    was, now = (description(order=dataclasses.replace(stream(), mix=mix)) for mix in mixes)
    assert now["identity"]["mix"] == ["1/2", "1"]
    with pytest.raises(CheckpointError, match=r"mix was \['1', '1'\], is \['1/2', '1'\]"):
        check_same_run(checkpoint(was, stream().position_after(3)), now, stream())


@pytest.mark.parametrize(("flags", "changed"), [("--dedup 1", "dedup was False"), ("--limit 5", "limit was None")])
def test_a_run_of_fewer_pairs_is_another_run(flags, changed):
    saved = checkpoint(description(), stream().position_after(3))
    with pytest.raises(CheckpointError, match=changed):
        check_same_run(saved, description(flags=flags), stream())


# The flags in an identity as the first versions wrote them, when 0 stood for "no token budget".
EARLIER_IDENTITY = json.loads(
    '{"beta": 0.1, "average_log_prob": true, "learning_rate": 4e-08, "warmup_steps": 0, "grad_clip": 1.0, '
    '"epochs": 1, "shuffle": true, "seed": 42, "dtype": "bfloat16", "on_bad_row": "error", "reference": "live", '
    '"micro_batch_tokens": 0}'
)


@pytest.mark.parametrize("tokens", [0, 300])
def test_a_checkpoint_of_an_earlier_version_is_resumed(tokens):
    now = description(flags=f"--micro_batch_tokens {tokens}")
    rest = {name: value for name, value in now["identity"].items() if name not in EARLIER_IDENTITY}
    earlier = {**now, "identity": {**EARLIER_IDENTITY, "micro_batch_tokens": tokens, **rest}}
    check_same_run(checkpoint(earlier, stream().position_after(3)), now, stream())
    assert json.dumps(now["identity"], sort_keys=True) == json.dumps(earlier["identity"], sort_keys=True)


@pytest.mark.parametrize(("bad", "long"), [("error", "cut"), ("skip", "cut"), ("keep", "keep")])
def test_a_manifest_without_a_policy_for_long_rows_means_what_its_version_did(bad, long):
    """Earlier versions cut rows at their end, and left out those without an answer unless --on_bad_row was keep."""
    saved = description(flags=f"--on_bad_row {bad}")
    del saved["identity"]["on_long_row"]
    old = checkpoint(saved, stream().position_after(3))
    for policy in ("cut", "keep", "skip", "cut_prompt"):
        now = description(flags=f"--on_bad_row {bad} --on_long_row {policy}")
        if policy == long:
            check_same_run(old, now, stream())
        else:
            with pytest.raises(CheckpointError, match=f"on_long_row was '{long}', is '{policy}'"):
                check_same_run(old, now, stream())


def test_another_filter_of_scores_is_another_run():
    saved = description(flags="--filter_score_gap 1")
    with pytest.raises(CheckpointError, match=r"filter_score_gap was 1\.0, is None"):
        check_same_run(checkpoint(saved, stream().position_after(3)), description(), stream())
    del saved["identity"]["filter_score_gap"]
    check_same_run(checkpoint(saved, stream().position_after(3)), description(), stream())


def test_a_manifest_without_a_loss_means_the_sigmoid_loss(shifted_loss):
    """Earlier versions had only this loss, and did not write it."""
    saved = description()
    del saved["identity"]["loss"]
    old = checkpoint(saved, stream().position_after(3))
    check_same_run(old, description(), stream())
    with pytest.raises(CheckpointError, match="loss was 'sigmoid', is 'shifted'"):
        check_same_run(old, description(flags="--loss shifted"), stream())


def test_options_of_the_loss_belong_to_the_run(shifted_loss):
    saved = checkpoint(description(flags="--loss shifted"), stream().position_after(3))
    assert saved.manifest.identity["shift"] == 0.5
    now = description(flags="--loss shifted")
    now["identity"]["shift"] = 2.0
    with pytest.raises(CheckpointError, match=r"shift was 0\.5, is 2\.0"):
        check_same_run(saved, now, stream())


def test_an_option_that_is_newer_than_the_checkpoint_has_its_default(shifted_loss):
    saved = description(flags="--loss shifted")
    del saved["identity"]["shift"]
    check_same_run(checkpoint(saved, stream().position_after(3)), description(flags="--loss shifted"), stream())


def test_settings_that_were_not_given_are_written_as_before():
    assert description()["identity"]["micro_batch_tokens"] == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", None),
        ("--beta 0.5", ["sigmoid.beta was 0.1, is 0.5", "bco_pair.beta was 0.1, is 0.5"]),
        ('--loss_options {"bco_pair":{"reward_shift":0}}', ["bco_pair.reward_shift was True, is False"]),
        ("--loss sigmoid:0.8,bco_pair:0.25", ["loss was 'sigmoid:0.8,bco_pair:0.2', is 'sigmoid:0.8,bco_pair:0.25'"]),
    ],
)
def test_names_weights_and_options_of_a_mix_belong_to_the_run(flags, said):
    mix = "--loss sigmoid:0.8,bco_pair:0.2"
    saved = checkpoint(description(flags=mix), stream().position_after(3))
    now = description(flags=f"{mix} {flags}")
    if said is None:
        check_same_run(saved, now, stream())
        return
    with pytest.raises(CheckpointError) as caught:
        check_same_run(saved, now, stream())
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == said


def test_a_job_over_tokens_has_an_identity_of_its_own():
    """What the split decides is part of it: the rows of a micro-batch under MiniMind's mean of means."""
    sft = of_job([])
    assert (sft["job"], sft["loss"], sft["loss_mean"]) == ("sft", "cross_entropy", "tokens")
    assert not {"reference", "filter_score_gap", "beta", "batch_size"} & set(sft)
    assert of_job(["--loss_mean", "micro_batch", "--batch_size", "3"])["batch_size"] == 3
    saved = checkpoint({**json.loads(json.dumps(description())), "identity": sft}, stream().position_after(3))
    with pytest.raises(CheckpointError, match="loss_mean was 'tokens', is 'micro_batch'"):
        check_same_run(saved, {**description(), "identity": of_job(["--loss_mean", "micro_batch"])}, stream())
    with pytest.raises(CheckpointError, match="job was 'sft', is 'dpo'"):
        check_same_run(saved, description(), stream())


def of_job(flags):
    settings, objective = KINDS["sft"].choose(parse_settings(flags, SFTConfig), None)
    prepared = SimpleNamespace(
        settings=settings,
        objective=objective,
        policy_config=SimpleNamespace(values={"optimizer": TORCH, "zero_optimization": {"stage": 2}}),
        source=SimpleNamespace(config=MiniMindConfig()),
        adapters=None,
    )
    table = type("Table", (), {"key": "data's", "__len__": lambda self: 26})()
    data = TrainingData(table=table, eval_table=None, stream=stream(), total_steps=6)
    return describe(prepared, data, "weights'")["identity"]
