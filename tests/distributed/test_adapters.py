"""Adapters on real engines: they train as plain peft does, the reference is the base, a resumed run is the same run."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file

from minimind import demo
from minimind.model.quantized_layers import quantization_obstacle
from tests.distributed.launching import launch, metrics, train

pytestmark = pytest.mark.distributed


# Each stage on one rank and on two, and each kind at the stage that it is hardest for.
CASES = {
    1: "1:linear,2:linear,3:linear,3:dora,1:nf4,3:offload",
    2: "1:linear,2:linear,3:linear,3:experts,3:recomputed,2:nf4,3:nf4",
}


@pytest.mark.parametrize("ranks", CASES)
def test_adapters_train_as_in_plain_peft(ranks):
    cases = CASES[ranks].split(",")
    if problem := quantization_obstacle(torch.device("cpu"), torch.float32):
        warnings.warn(f"no 4-bit weights here: {problem}", stacklevel=1)
        cases = [case for case in cases if not case.endswith("nf4")]
    done = launch("tests/distributed/workers/adapters.py", ",".join(cases), ranks=ranks).succeeded()
    assert done.output.count("adapters agree with plain peft") == len(cases)


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters") / "pairs.jsonl"
    lines = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:24]), encoding="utf-8")
    return path


def flags(data, save_dir, *more):
    return [
        *("--data_path", data, "--tokenizer_path", demo.TOKENIZER_PATH, "--from_weight", demo.WEIGHT_PATH),
        *(
            "--dtype",
            "float32",
            "--save_dtype",
            "float32",
            "--lora_rank",
            4,
            "--learning_rate",
            1e-2,
        ),
        *("--batch_size", 2, "--accumulation_steps", 2, "--save_interval", 1, "--log_interval", 1, "--max_steps", 3),
        *("--save_dir", save_dir),
        *more,
    ]


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_a_resumed_run_is_the_uninterrupted_one_and_its_checkpoints_have_no_base(config, small_data, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    dropout = ("--lora_dropout", 0.1)
    train(*flags(small_data, whole, *dropout), config=config, ranks=2).succeeded()
    checkpoint = whole / "checkpoints/step00000003"
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    # Two moments, masters and weights of 4 bytes each, and what DeepSpeed adds; the base has 2 bytes an element.
    adapter = (whole / "lora_dpo_96/adapter_model.safetensors").stat().st_size
    assert size < 4 * adapter + 2**18 < demo.WEIGHT_PATH.stat().st_size

    shutil.copytree(whole, resumed)
    for step in (2, 3):
        shutil.rmtree(resumed / f"checkpoints/step0000000{step}")
    (resumed / "checkpoints/latest").write_text("step00000001")
    shutil.rmtree(resumed / "lora_dpo_96")
    done = train(*flags(small_data, resumed, "--from_resume", 1, *dropout), config=config, ranks=2).succeeded()
    assert "resuming after step 1\n" in done.output
    one, other = ([entry["loss"] for entry in metrics(folder)] for folder in (whole, resumed))
    assert one == other
    one, other = (load_file(folder / "lora_dpo_96/adapter_model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)

    done = train(*flags(small_data, resumed, "--from_resume", 1, *dropout, "--lora_alpha", 5), config=config, ranks=2)
    assert done.status != 0
    assert "adapters was" in done.output


def test_training_goes_on_from_an_adapter_with_either_reference(small_data, tmp_path):
    train(*flags(small_data, tmp_path / "first")).succeeded()
    again = flags(small_data, tmp_path / "base", "--from_adapter", tmp_path / "first/lora_dpo_96", "--max_steps", 1)
    train(*again).succeeded()
    start = [*again, "--save_dir", tmp_path / "start", "--lora_reference", "start"]
    train(*start).succeeded()
    (base,), (own,) = (metrics(tmp_path / name, "rewards/margins") for name in ("base", "start"))
    assert base["rewards/margins"] != 0
    assert own["rewards/margins"] == 0
