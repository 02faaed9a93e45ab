"""Adapters on real engines: they train as plain peft does, the reference is the base, a resumed run is the same run."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from minimind import demo
from minimind.conversion.trained import open_trained
from minimind.model.quantized_layers import quantization_obstacle
from minimind.weights.construction import model_from_tensors
from minimind.weights.sources import open_weights
from tests.distributed.launching import launch, metrics, train

pytestmark = pytest.mark.distributed


# Each stage on one rank and on two, and each kind at the stage that it is hardest for.
CASES = {
    1: "1:linear,2:linear,3:linear,3:dora,2:nf4,3:nf4_offload,3:offload,3:recomputed",
    2: "1:linear,2:linear,3:linear,3:experts,3:nf4",
}


@pytest.mark.parametrize("ranks", CASES)
def test_adapters_train_as_in_plain_peft(ranks):
    cases = CASES[ranks].split(",")
    if problem := quantization_obstacle(torch.device("cpu"), torch.float32):
        warnings.warn(f"no 4-bit weights here: {problem}", stacklevel=1)
        cases = [case for case in cases if "nf4" not in case]
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


def resumed_from_step_1(whole, folder):
    """A copy of a finished run as it was after its first step."""
    shutil.copytree(whole, folder)
    for step in (2, 3):
        shutil.rmtree(folder / f"checkpoints/step0000000{step}")
    (folder / "checkpoints/latest").write_text("step00000001")
    shutil.rmtree(folder / "lora_dpo_96")
    return folder


def losses(folder):
    return [entry["loss"] for entry in metrics(folder)]


# Token budgets, and a base in 4 bits where it can be computed with.
BUDGET = ("--batch_size", 4, "--accumulation_steps", 1, "--micro_batch_tokens", 512)
PACKED = () if quantization_obstacle(torch.device("cpu"), torch.float32) else ("--quantize", "nf4")


@pytest.mark.parametrize(("config", "more"), [("zero2", ("--merge", 1)), ("zero3", (*BUDGET, *PACKED))])
def test_a_resumed_run_is_the_uninterrupted_one_and_its_checkpoints_have_no_base(config, more, small_data, tmp_path):
    more = (*more, "--lora_dropout", 0.1)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(*flags(small_data, whole, *more), config=config, ranks=2).succeeded()
    size = sum(file.stat().st_size for file in (whole / "checkpoints/step00000003").iterdir())
    # Two moments, masters and weights of 4 bytes each, and what DeepSpeed adds; the base has 2 bytes an element.
    adapter = (whole / "lora_dpo_96/adapter_model.safetensors").stat().st_size
    assert size < 4 * adapter + 2**18 < demo.WEIGHT_PATH.stat().st_size

    resumed_from_step_1(whole, resumed)
    done = train(*flags(small_data, resumed, "--from_resume", 1, *more), config=config, ranks=2).succeeded()
    assert "resuming after step 1\n" in done.output
    assert losses(whole) == losses(resumed)
    one, other = (load_file(folder / "lora_dpo_96/adapter_model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    check_checkpoints(whole)
    if config == "zero2":
        check_exports(whole)
        check_another_base_is_refused(small_data, resumed, tmp_path, more)


def check_checkpoints(folder):
    """A run, and its last checkpoint, are exported as the adapter that it wrote, merged with its base."""
    expected = open_trained(folder / "lora_dpo_96", {}).weights
    for path in (folder, folder / "checkpoints/step00000003"):
        found = open_trained(path, {})
        assert (found.kind, found.step, found.base) == ("checkpoint", 3, demo.WEIGHT_PATH)
        assert all(torch.equal(found.weights.read(name), expected.read(name)) for name in expected.shapes())


def check_exports(folder):
    """The merged folder, and the adapter in plain peft over the base, give the same logits."""
    import peft  # here: every process that collects tests would import it for seconds

    tokens = torch.arange(40)[None] % 100
    merged = AutoModelForCausalLM.from_pretrained(folder / "dpo_96", dtype=torch.float32).eval()
    source = open_weights(demo.WEIGHT_PATH, {})
    state = {name: source.read(name).float() for name in source.shapes()}
    base = model_from_tensors(source.config, state)
    with torch.no_grad():
        before = base(tokens).logits.clone()
        theirs = peft.PeftModel.from_pretrained(base, folder / "lora_dpo_96").eval()(tokens).logits
        torch.testing.assert_close(merged(tokens).logits, theirs, rtol=0, atol=1e-4)
        assert float((theirs - before).abs().max()) > 1e-2


def check_another_base_is_refused(data, folder, tmp_path, more):
    weights = torch.load(demo.WEIGHT_PATH, weights_only=True)
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
    torch.save(weights, tmp_path / "other.pth")
    other = ("--from_resume", 1, *more, "--from_weight", tmp_path / "other.pth", "--lora_alpha", 5)
    done = train(*flags(data, folder, *other), config="zero2", ranks=2)
    assert done.status != 0
    assert "start weights was" in done.output
    assert "adapters was" in done.output


def test_adapters_resume_under_another_stage_and_number_of_ranks(small_data, tmp_path):
    """The losses agree but for rounding."""
    whole = tmp_path / "whole"
    train(*flags(small_data, whole), config="zero2", ranks=2).succeeded()
    resumed = resumed_from_step_1(whole, tmp_path / "resumed")
    alone = ("--from_resume", 1, "--accumulation_steps", 4)
    train(*flags(small_data, resumed, *alone), config="zero3", ranks=1).succeeded()
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-5)
    one, other = (load_file(folder / "lora_dpo_96/adapter_model.safetensors") for folder in (whole, resumed))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5)


def test_training_goes_on_from_an_adapter_with_either_reference(small_data, tmp_path):
    train(*flags(small_data, tmp_path / "first")).succeeded()
    again = flags(small_data, tmp_path / "base", "--from_adapter", tmp_path / "first/lora_dpo_96", "--max_steps", 1)
    train(*again).succeeded()
    start = [*again, "--save_dir", tmp_path / "start", "--lora_reference", "start"]
    train(*start).succeeded()
    (base,), (own,) = (metrics(tmp_path / name, "rewards/margins") for name in ("base", "start"))
    assert base["rewards/margins"] != 0
    assert own["rewards/margins"] == 0
