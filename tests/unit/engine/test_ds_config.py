"""DeepSpeed files: what is left open is filled, and nothing is left open."""

from __future__ import annotations

import json

import pytest

from minimind.config import parse_settings
from minimind.engine.ds_config import resolve_policy, resolve_reference
from minimind.engine.ds_zero import fit_bucket
from minimind.errors import ConfigError
from tests.conftest import REPO


def resolved(tmp_path, changes, *flags, ranks=2):
    values = {**json.loads((REPO / "ds_configs/zero3.json").read_text()), **changes}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(values))
    return resolve_policy(path, parse_settings(list(flags)), ranks, on_cpu=True)


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_bundled_files_have_no_auto_left(name):
    done = resolve_policy(REPO / f"ds_configs/{name}.json", parse_settings([]), 2, on_cpu=True)
    assert '"auto"' not in json.dumps(done.values)
    assert done.stage == int(name[-1])
    assert done.values["train_batch_size"] == 8


def test_autos_of_hugging_face_s_examples_become_deepspeed_s_defaults(tmp_path):
    section = {"stage": 3, "stage3_prefetch_bucket_size": "auto", "reduce_bucket_size": "auto"}
    done = resolved(tmp_path, {"zero_optimization": section})
    assert done.values["zero_optimization"] == {
        "stage": 3, "stage3_prefetch_bucket_size": 50_000_000, "reduce_bucket_size": 500_000_000,
    }  # fmt: skip


@pytest.mark.parametrize(("file", "trained", "fitted"), [(1000, 300, 300), (1000, 3000, 1000), (None, 300, 300)])
def test_a_bucket_is_no_larger_than_all_gradients_and_the_file_s_stays(file, trained, fitted):
    values = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    if file is not None:
        values["zero_optimization"]["reduce_bucket_size"] = file
    before = json.dumps(values)
    done = fit_bucket(values, trained)
    assert done["zero_optimization"] == {"stage": 2, "reduce_bucket_size": fitted}
    assert done["bf16"] == values["bf16"]
    assert json.dumps(values) == before


def test_monitors_write_into_the_run_s_folder(tmp_path):
    changes = {"csv_monitor": {"enabled": True}, "tensorboard": {"enabled": True, "output_path": "elsewhere"}}
    done = resolved(tmp_path, changes, "--save_dir", "out/mine")
    assert done.values["csv_monitor"] == {"enabled": True, "output_path": "out/mine", "job_name": "csv"}
    assert done.values["tensorboard"] == {"enabled": True, "output_path": "elsewhere", "job_name": "mine"}


def test_a_run_has_its_name_in_tensorboard_from_a_folder(tmp_path):
    def section(changes, *flags):
        return resolved(tmp_path, {"tensorboard": changes}, "--save_dir", "out/mine", *flags).values["tensorboard"]

    auto = {"output_path": "auto", "job_name": "auto"}
    assert section(auto) == {"output_path": "out/mine/tensorboard", "job_name": "mine"}
    assert section(auto, "--run_name", "a") == {"output_path": "out/mine/tensorboard", "job_name": "a"}
    assert section({"job_name": "b"})["job_name"] == "b"
    assert section({"job_name": "b"}, "--run_name", "b")["job_name"] == "b"
    with pytest.raises(ConfigError, match=r"'tensorboard\.job_name' is 'b', but --run_name is a; drop one"):
        section({"job_name": "b"}, "--run_name", "a")


def test_clipping_is_off_at_0_and_never_missing(tmp_path):
    assert resolved(tmp_path, {}, "--grad_clip", "0").values["gradient_clipping"] == 0.0
    assert resolved(tmp_path, {}).values["gradient_clipping"] == 1.0


def test_flag_that_repeats_the_file_is_no_disagreement(tmp_path):
    done = resolved(tmp_path, {"gradient_clipping": 0.5}, "--grad_clip", "0.5")
    assert done.values["gradient_clipping"] == 0.5


def test_dtype_of_the_file_is_taken_when_no_flag_says_otherwise(tmp_path):
    done = resolved(tmp_path, {"bf16": {"enabled": False}, "fp16": {"enabled": False}})
    assert done.settings.config.optimisation.dtype == "float32"
    assert done.settings.origins["dtype"] == "DeepSpeed file"


@pytest.mark.parametrize(
    ("name", "ranks", "overridden"), [("zero2", 1, True), ("zero2", 2, False), ("zero3", 1, False)]
)
def test_a_value_that_is_not_the_file_s_is_named_with_its_reason(name, ranks, overridden):
    done = resolve_policy(REPO / f"ds_configs/{name}.json", parse_settings([]), ranks, on_cpu=False)
    assert done.values["zero_optimization"]["overlap_comm"] is not overridden
    reason = "one rank has nothing to send; the DeepSpeed file says true"
    assert done.overridden == ({"zero_optimization.overlap_comm": reason} if overridden else {})


def test_reference_has_the_policy_s_precision():
    settings = parse_settings(["--dtype", "float32", "--batch_size", "3"])
    values = resolve_reference(REPO / "ds_configs/reference.json", settings, 2, on_cpu=True).values
    assert values["bf16"] == values["fp16"] == {"enabled": False}
    assert values["train_batch_size"] == 6
    assert '"auto"' not in json.dumps(values)


@pytest.mark.parametrize("kind", ["SGD", "sgd"])
def test_sgd_is_allowed_under_zero_and_named_as_torch_has_it(kind, tmp_path):
    done = resolved(tmp_path, {"optimizer": {"type": kind, "params": {"lr": "auto", "momentum": 0.9}}})
    assert done.values["zero_allow_untested_optimizer"] is True
    assert done.values["optimizer"]["type"] == "SGD"
    assert "zero_allow_untested_optimizer" not in resolved(tmp_path, {}).values


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer": {"type": "Lamb"}}, "norms of whole tensors"),
        ({"optimizer": {"type": "SGD"}, "zero_allow_untested_optimizer": False}, "DeepSpeed shards SGD only with it"),
    ],
)
def test_optimizers_that_zero_does_not_shard_are_refused(changes, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        resolved(tmp_path, changes)


@pytest.mark.parametrize(
    ("dtype", "told"),
    [("bfloat16", "take an optimizer step before"), ("float16", "divide the gradients by a loss scale")],
)
def test_16_bits_without_zero_are_refused_on_a_gpu_too(dtype, told):
    path = REPO / "ds_configs/zero0.json"
    with pytest.raises(ConfigError, match=f"{dtype} at ZeRO stage 0: DeepSpeed would {told}"):
        resolve_policy(path, parse_settings(["--dtype", dtype]), 2, on_cpu=False)
    assert resolve_policy(path, parse_settings(["--dtype", "float32"]), 2, on_cpu=False).stage == 0
