"""Files of ds_configs/ in real launches: offload and checkpointing change where things lie, not what comes out.

What no CPU can run (NVMe, ZeRO++) is held against DeepSpeed's schema in tests/unit/engine/test_ds_config_files.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.distributed.launching import launch, metrics, train

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

# DeepSpeed's AdamW for CPUs is compiled when it is first used, for four minutes of a processor in each new virtual
# environment: its tests are long ones, and the others offload with torch's.
OFFLOADED = {"zero2_offload": "zero2", "zero3_offload": "zero3"}
BY_TORCH = {"zero2_offload:torch_adam": "zero2", "zero3_offload:torch_adam": "zero3"}
CHECKPOINTED = {"zero2:checkpointing": "zero2", "zero3:checkpointing": "zero3"}
STAGES = ("zero2", "zero3")
VARIANTS = "tests/distributed/workers/variants.py"


def variants(folder, weights, dtype, names, ranks):
    """What each rank has seen under each variant."""
    launch(VARIANTS, folder, weights, dtype, *names, ranks=ranks, timeout=800).succeeded()
    return [torch.load(folder / f"results{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """A mixture of experts in float32 on two ranks."""
    names = (*STAGES, *BY_TORCH, *CHECKPOINTED, "zero2:round_robin")
    return variants(tmp_path_factory.mktemp("variants"), "moe", "float32", names, ranks=2)


@pytest.mark.long
def test_offload_with_deepspeeds_optimizer_trains_and_resumes_the_same(tmp_path):
    results = variants(tmp_path, "moe", "float32", (*STAGES, *OFFLOADED), ranks=2)
    for variant, base in OFFLOADED.items():
        runs = of(results, variant)
        assert_same_training(runs, of(results, base), tolerance=1e-5)
        # DeepSpeed's AdamW multiplies its bias correction up step by step, and takes it anew when it goes on.
        assert_same_training([run["resumed"] for run in runs], runs, tolerance=1e-6)
        assert_nothing_changed_by_a_nonfinite_gradient(results, variant)


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    """The same in bf16 on three ranks, which divide few of its tensors."""
    return variants(tmp_path_factory.mktemp("rounded"), "moe", "bfloat16", STAGES, ranks=3)


def assert_same_training(one, other, tolerance):
    """Losses, gradient norms and end weights of two variants on all ranks."""
    for mine, expected in zip(one, other, strict=True):
        for losses, expected_losses in zip(mine["losses"], expected["losses"], strict=True):
            assert losses == pytest.approx(expected_losses, rel=tolerance, abs=0)
        assert mine["norms"] == pytest.approx(expected["norms"], rel=tolerance, abs=0)
        for name, tensor in expected["end"].items():
            difference = (mine["end"][name] - tensor).norm() / tensor.norm()
            assert difference <= tolerance, f"{name} is off by {difference:.2e}"


def of(results, variant):
    return [rank[variant] for rank in results]


@pytest.mark.parametrize("variant", [*BY_TORCH, *CHECKPOINTED])
def test_offload_and_checkpointing_train_the_same(variant, exact):
    base = {**BY_TORCH, **CHECKPOINTED}[variant]
    assert_same_training(of(exact, variant), of(exact, base), tolerance=1e-5)


@pytest.mark.parametrize("variant", [*STAGES, *BY_TORCH, *CHECKPOINTED])
def test_resumed_run_takes_the_same_steps(variant, exact):
    runs = of(exact, variant)
    assert_same_training([run["resumed"] for run in runs], runs, tolerance=0)


@pytest.mark.parametrize("variant", [*STAGES, *BY_TORCH, *CHECKPOINTED])
def test_nonfinite_gradient_changes_no_weight(variant, exact):
    assert_nothing_changed_by_a_nonfinite_gradient(exact, variant)


def assert_nothing_changed_by_a_nonfinite_gradient(results, variant):
    for run in of(results, variant):
        assert run["stopped"]
        assert min(run["norms"]) > 0.05, "clipping was to be at work"
    main = results[0][variant]
    for name, tensor in main["end"].items():
        assert torch.equal(main["after_nan"][name], tensor), name
        assert not torch.equal(main["start"][name], tensor), name


@pytest.mark.parametrize("variant", STAGES)
def test_float32_masters_equal_the_source_when_ranks_do_not_divide_the_tensors(variant, rounded):
    assert_masters_equal_the_source(rounded, variant, tolerance=0)


def assert_masters_equal_the_source(results, variant, tolerance):
    start = results[0][variant]["start"]
    for name, tensor in results[0]["source"].items():
        assert torch.equal(start[name], tensor), name
    runs = of(results, variant)
    assert all(run["stopped"] for run in runs)
    assert_same_training([run["resumed"] for run in runs], runs, tolerance)


@pytest.mark.long
def test_offload_in_bf16_trains_the_same_up_to_rounding(tmp_path):
    results = variants(tmp_path, "moe", "bfloat16", (*STAGES, *OFFLOADED), ranks=3)
    for variant, base in OFFLOADED.items():
        assert_same_training(of(results, variant), of(results, base), tolerance=2e-2)
        assert_masters_equal_the_source(results, variant, tolerance=2e-2)


@pytest.mark.parametrize("results", ["exact", "rounded"])
def test_reference_in_cpu_memory_scores_the_same(results, request):
    for rank in request.getfixturevalue(results):
        assert torch.equal(rank["reference"], rank["reference_offload"])


# Patch -> the methods of DeepSpeed's optimizer that it replaces; the buckets' is seen by `contiguous_gradients`.
REPLACED = {
    "detect_overflow_from_norm": {"check_overflow"},
    "skip_reduction_buckets": set(),
    "skip_unneeded_clipping": {"unscale_and_clip_grads"},
    "cast_gradients_once": {"get_flat_partition", "get_grad_norm_direct"},
}


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.long), 2])
def test_patches_of_deepspeeds_optimizer_change_no_bit(ranks, tmp_path):
    """In bf16, with two and three micro-batches a step, whether gradients are clipped or not; all patches and each."""
    ways = ("zero1", "zero2", "zero2:unclipped")
    off = [*(f"{way}:off=all" for way in ways), *(f"zero2:off={name}" for name in REPLACED)]
    unchecked = [f"{way}:off=compare_first_step" for way in ways]
    others = ["zero1:overlap", "zero2:overlap"]
    results = variants(tmp_path, "moe", "bfloat16", [*ways, *off, *unchecked, *others], ranks=ranks)
    for way, other in zip(ways, unchecked, strict=True):
        assert_same_training(of(results, way), of(results, other), tolerance=0)
        assert of(results, way)[0]["patched"] == of(results, other)[0]["patched"]
    for way in ("zero1", "zero2"):
        assert_same_training(of(results, way), of(results, f"{way}:overlap"), tolerance=0)
    for way in ways:
        runs, others = of(results, way), of(results, f"{way}:off=all")
        assert all(run["stopped"] for run in runs)
        assert_same_training(runs, others, tolerance=0)
        assert_same_training([run["resumed"] for run in runs], others, tolerance=0)
        assert max(runs[0]["norms"]) < 100
        assert set(runs[0]["patched"]) == {method for methods in REPLACED.values() for method in methods}
        assert runs[0]["bucket"] == (ranks > 1)
        assert (others[0]["patched"], others[0]["bucket"]) == ([], True)
    for name, methods in REPLACED.items():
        runs, others = of(results, "zero2"), of(results, f"zero2:off={name}")
        assert_same_training(runs, others, tolerance=0)
        assert set(others[0]["patched"]) == set(runs[0]["patched"]) - methods
        assert others[0]["bucket"] == (ranks > 1 or name == "skip_reduction_buckets")


# A change of DeepSpeed, or of a patch -> the patch that is then wrong, and the numbers of ranks on which it applies.
CHANGED = {
    "reduction": ("skip_reduction_buckets", (1,)),
    "cast": ("cast_gradients_once", (1, 2)),
    "norm": ("cast_gradients_once", (1, 2)),
    "clipping": ("skip_unneeded_clipping", (1, 2)),
    "overflow": ("detect_overflow_from_norm", (1, 2)),
    "patch": ("cast_gradients_once", (1, 2)),
}


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_wrong_patch_is_found_in_the_first_step(ranks, tmp_path):
    """The run is that of the changed DeepSpeed without patches, bit for bit; the other patches stay."""
    changes = {change: patch for change, (patch, where) in CHANGED.items() if ranks in where}
    # Without clipping at work the patch of clipping has something to skip.
    ways = {change: f"{'zero2:unclipped' if change == 'clipping' else 'zero2'}:changed={change}" for change in changes}
    names = [name for way in ways.values() for name in (way, f"{way}:off=all", f"{way}:off=compare_first_step")]
    done = launch(VARIANTS, tmp_path, "moe", "bfloat16", *names, ranks=ranks, timeout=800).succeeded()
    results = [torch.load(tmp_path / f"results{rank}.pt", weights_only=True) for rank in range(ranks)]
    for change, patch in changes.items():
        runs, plain = of(results, ways[change]), of(results, f"{ways[change]}:off=all")
        unchecked = of(results, f"{ways[change]}:off=compare_first_step")
        assert_same_training(runs, plain, tolerance=0)
        assert_same_training([run["resumed"] for run in runs], plain, tolerance=0)
        assert set(unchecked[0]["patched"]) - set(runs[0]["patched"]) == REPLACED[patch]
        assert runs[0]["bucket"] == (ranks > 1 or patch == "skip_reduction_buckets")
        if change != "overflow":  # which shows in a gradient that is not finite only
            with pytest.raises(AssertionError):
                assert_same_training(unchecked, plain, tolerance=0)
        assert f"patch {patch!r} is off: its numbers in the first step were not DeepSpeed's; " in done.output
        assert f"--disable_patches {patch} turns it off from the start" in done.output


def test_round_robin_gradients_of_deepspeed_still_swap_weights(exact):
    """Fails when a DeepSpeed has mended it: then `ds_zero.py` need not refuse it, and zero2_offload can have it."""
    start = exact[0]["zero2:round_robin"]["start"]
    assert any(not torch.equal(start[name], tensor) for name, tensor in exact[0]["source"].items())


@pytest.mark.long
def test_llama_with_checkpointing_trains_the_same(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 640}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    results = variants(tmp_path, tmp_path / "llama", "float32", (*STAGES, *CHECKPOINTED), ranks=2)
    for variant, base in CHECKPOINTED.items():
        assert_same_training(of(results, variant), of(results, base), tolerance=1e-5)


@pytest.mark.long
def test_offload_trains_from_the_command_line(tmp_path):
    flags = ("--reference_config", "ds_configs/reference_offload.json", "--max_steps", 2, "--log_interval", 1)
    train(*flags, "--save_dir", tmp_path, config="zero3_offload", ranks=2, timeout=800).succeeded()
    steps = metrics(tmp_path)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert math.isfinite(steps[1]["loss"])
    assert steps[1]["loss"] != steps[0]["loss"]
    assert list(tmp_path.glob("dpo_*.pth"))


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("config", ["zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_every_file_that_a_cpu_can_run_trains_on_any_number_of_ranks(config, ranks, tmp_path):
    dtype = "float32" if config == "zero0" else "bfloat16"
    flags = ("--dtype", dtype, "--max_steps", 3, "--log_interval", 1, "--learning_rate", 1e-3, "--save_dir", tmp_path)
    train(*flags, config=config, ranks=ranks, timeout=800).succeeded()
    steps = metrics(tmp_path)
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[-1]["rewards/margins"] > 0
