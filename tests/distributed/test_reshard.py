"""A checkpoint is resharded: resumed with other ranks or another ZeRO stage, a run keeps its metrics."""

from __future__ import annotations

import shutil

import pytest
import torch

from minimind import demo
from minimind.conversion.trained import open_trained
from tests.distributed.launching import launch, metrics, train

# A test starts several launches, which a busy machine slows down.
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

# Sizes that four ranks do not divide, so that stage 3 pads: head_dim 10.
MODEL = ("--from_weight", "none", "--hidden_size", 40, "--num_hidden_layers", 2, "--num_attention_heads", 4)
# Each resumes from the checkpoint of the one before, one step later: (ranks, DeepSpeed file, batch_size,
# accumulation_steps).
CHAIN = (
    (1, "zero2", 3, 4),
    (2, "zero3", 3, 2),
    (4, "zero3", 3, 1),
    (2, "zero2", 3, 2),
    (1, "zero0", 3, 4),
    (3, "zero1", 2, 2),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("elastic") / "pairs.jsonl"
    lines = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:26]), encoding="utf-8")
    return path


def flags(data, save_dir, *more):
    # 26 pairs x 4 epochs in steps of 12: 8 steps, with epochs that end within them.
    return [
        *("--data_path", data, "--tokenizer_path", demo.TOKENIZER_PATH, *MODEL, "--max_seq_len", 64, "--epochs", 4),
        *("--learning_rate", 1e-3, "--save_dtype", "float32", "--save_interval", 1, "--log_interval", 1),
        *("--save_dir", save_dir, *more),
    ]


def stop_after(step, folder, at):
    """Make a folder with only the checkpoint of one step, as if the run had stopped after it."""
    tag = f"step{step:08d}"
    shutil.copytree(folder / "checkpoints" / tag, at / "checkpoints" / tag)
    (at / "checkpoints/latest").write_text(tag)
    return at


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Folder of finished runs, named by the step that they resumed after; 0 is the uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs")
    split = ("--dtype", "float32", "--batch_size", 3, "--accumulation_steps", 2)
    train(*flags(data, folder / "0", *split), ranks=2).succeeded()
    return folder


def go_on(data, runs, step):
    """Resume after a step with the setting of CHAIN for it; first runs the earlier ones that this test run left out."""
    if not (runs / f"{step - 1}").exists():
        go_on(data, runs, step - 1)
    folder = stop_after(step, runs / f"{step - 1}", runs / f"{step}")
    ranks, config, *_ = CHAIN[step - 1]
    moved = ("--dtype", "float32", "--from_resume", 1)
    return train(*flags(data, folder, *moved), config=config, ranks=ranks, timeout=280).succeeded()


@pytest.mark.parametrize("step", range(1, len(CHAIN) + 1))
def test_metrics_after_resharding_are_those_of_the_uninterrupted_run(step, data, runs):
    done = go_on(data, runs, step)
    ranks, config, batch_size, accumulation = CHAIN[step - 1]
    assert f"resuming after step {step}, resharded: " in done.output
    assert f"-> {ranks} ranks, ZeRO-{config[-1]}" in done.output
    for name, value in (("batch_size", batch_size), ("accumulation_steps", accumulation)):
        assert [name, str(value), "(checkpoint)"] in [line.split() for line in done.output.splitlines()]
    whole, moved = runs / "0", runs / f"{step}"
    expected = {entry["step"]: entry for entry in metrics(whole)}
    assert [entry["step"] for entry in metrics(moved)] == list(range(step + 1, 9))
    for entry in metrics(moved):
        for name in ("loss", "rewards/margins", "logps/chosen", "logps/rejected", "grad_norm", "learning_rate"):
            # Measured: 1e-7.
            assert entry[name] == pytest.approx(expected[entry["step"]][name], abs=1e-5), name
    end, other = (torch.load(run / "dpo_40.pth", weights_only=True) for run in (whole, moved))
    for name in end:
        torch.testing.assert_close(other[name], end[name], rtol=0, atol=1e-4)
    # An export reads the checkpoint of every stage on one process: the weights are those that the ranks wrote.
    trained = open_trained(moved, {})
    assert (trained.kind, trained.step) == ("checkpoint", 8)
    assert set(trained.weights.shapes()) == set(other) - {"lm_head.weight"}
    assert all(torch.equal(trained.weights.read(name), other[name]) for name in trained.weights.shapes())


def test_resharding_in_bf16_keeps_the_float32_masters(data, tmp_path):
    schedule = ("--learning_rate", 5e-3, "--max_steps", 3)
    split = ("--batch_size", 3, "--accumulation_steps", 2)
    train(*flags(data, tmp_path / "one", *schedule, *split), config="zero1", ranks=2).succeeded()
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    (tmp_path / "other/dpo_40.pth").unlink()

    # Resumed after its last step, the run only writes its weights, bit for bit those of the other stage.
    moved = (*schedule, "--from_resume", 1)
    train(*flags(data, tmp_path / "other", *moved), config="zero3", ranks=4, timeout=280).succeeded()
    end, again = (torch.load(tmp_path / run / "dpo_40.pth", weights_only=True) for run in ("one", "other"))
    assert all(torch.equal(end[name], again[name]) for name in end)

    # Resumed before the last step, a step with bf16 weights cast from the masters has the same loss.
    before = stop_after(2, tmp_path / "one", tmp_path / "before")
    train(*flags(data, before, *moved), config="zero3", ranks=1).succeeded()
    (last,), (*_, expected) = metrics(before), metrics(tmp_path / "one")
    assert last["loss"] == pytest.approx(expected["loss"], abs=1e-3)
    assert abs(expected["rewards/margins"]) > 0.01
    assert last["rewards/margins"] == pytest.approx(expected["rewards/margins"], rel=0.1)


def test_batch_size_that_does_not_divide_the_global_batch_is_refused(data, runs, tmp_path):
    folder = stop_after(1, runs / "0", tmp_path / "run")
    moved = ("--dtype", "float32", "--from_resume", 1, "--batch_size", 5)
    done = train(*flags(data, folder, *moved), ranks=1)
    assert done.status != 0
    assert done.output.count("ConfigError") == 1
    assert "the checkpoint has 12 pairs per global step" in done.output
    assert "which batch_size 5 (flag) does not divide" in done.output


def test_deepspeeds_universal_checkpoint_from_stage_2_to_3_still_fails(runs, tmp_path):
    """If this fails, DeepSpeed converts checkpoints between stages 2 and 3, and parts of reshard.py can be removed."""
    folder = stop_after(2, runs / "0", tmp_path)
    done = launch("tests/distributed/workers/universal.py", folder / "checkpoints", "step00000002")
    assert "UNIVERSAL" in done.output, done.output[-6000:]
    assert "UNIVERSAL LOADED" not in done.output, "DeepSpeed has fixed it: parts of reshard.py can be removed"
