"""Every file of ds_configs/ against our resolver and DeepSpeed's own schema, for a GPU world and for a CPU's."""

from __future__ import annotations

import json

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from minimind.config import parse_settings
from minimind.engine.ds_config import resolve_policy, resolve_reference
from minimind.errors import ConfigError
from tests.conftest import REPO

FILES = sorted(path.stem for path in (REPO / "ds_configs").glob("*.json"))
POLICIES = [name for name in FILES if not name.startswith("reference")]
GPU_ONLY = ("zero3_nvme", "zeropp")


def resolved(name, *flags, tmp_path, ranks=8, on_cpu=False, **changes):
    """A file of ds_configs/ resolved; `changes` of its ZeRO section, and a folder where it wants one to be named."""
    values = json.loads((REPO / f"ds_configs/{name}.json").read_text())
    values["zero_optimization"].update(changes)
    for section in values["zero_optimization"].values():
        if isinstance(section, dict) and section.get("nvme_path") == "/local_nvme":
            section["nvme_path"] = str(tmp_path)
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(values))
    resolve = resolve_reference if name.startswith("reference") else resolve_policy
    dtype = () if "--dtype" in flags else ("--dtype", "float32" if name == "zero0" else "bfloat16")
    return resolve(path, parse_settings([*flags, *dtype]), ranks, on_cpu=on_cpu)


def problem(name, *flags, **where) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(name, *flags, **where)
    return str(caught.value)


def test_the_ways_of_running_that_there_are():
    assert (
        sorted(
            "zero0 zero1 zero2 zero2_offload zero3 zero3_offload zero3_nvme zeropp reference reference_offload".split()
        )
        == FILES
    )
    readme = (REPO / "ds_configs/README.md").read_text(encoding="utf-8")
    for name in FILES:
        assert f"| `{name}.json` |" in readme


@pytest.mark.parametrize("name", FILES)
def test_files_resolve_on_gpus_and_say_what_deepspeed_understands(name, tmp_path):
    done = resolved(name, tmp_path=tmp_path)
    assert '"auto"' not in json.dumps(done.values)
    section = done.values["zero_optimization"]
    assert set(section) <= {alias for key, f in DeepSpeedZeroConfig.model_fields.items() for alias in (key, f.alias)}
    parsed = DeepSpeedZeroConfig(**section)
    assert parsed.stage == done.stage
    for key in ("offload_optimizer", "offload_param"):
        if key in section:
            assert getattr(parsed, key).model_dump(include=set(section[key]), mode="json") == section[key]


@pytest.mark.parametrize("name", [name for name in FILES if name not in GPU_ONLY])
def test_what_a_cpu_can_run_resolves_there_too(name, tmp_path):
    resolved(name, tmp_path=tmp_path, on_cpu=True, ranks=2)


def test_zeropp_keeps_its_three_parts(tmp_path):
    section = DeepSpeedZeroConfig(**resolved("zeropp", tmp_path=tmp_path, ranks=16).values["zero_optimization"])
    assert section.zero_hpz_partition_size == 8
    assert section.zero_quantized_weights
    assert section.zero_quantized_gradients


def test_zeropp_is_refused_on_a_cpu_and_where_its_groups_do_not_fit(tmp_path):
    message = problem("zeropp", tmp_path=tmp_path, on_cpu=True)
    assert "ZeRO++ ('zero_optimization.zero_quantized_weights', " in message
    assert "needs GPUs" in message
    message = problem("zeropp", tmp_path=tmp_path, ranks=12)
    assert "'zero_optimization.zero_hpz_partition_size' is 8, which does not divide 12 ranks" in message
    assert "needs stage 3, not 2" in problem("zero2", tmp_path=tmp_path, zero_quantized_gradients=True)
    message = problem("reference", tmp_path=tmp_path, on_cpu=True, zero_quantized_weights=True)
    assert "needs GPUs" in message


def test_nvme_is_refused_where_its_numbers_are_wrong(tmp_path):
    message = problem("zero3_nvme", tmp_path=tmp_path, on_cpu=True)
    assert "'zero_optimization.offload_optimizer.device' is nvme: on CPU ranks DeepSpeed trains with wrong" in message
    assert "'zero_optimization.offload_param.device' is nvme" in message
    assert "no checkpoints are written" in problem("zero3_nvme", "--keep_checkpoints", "1", tmp_path=tmp_path)
    resolved("zero3_nvme", "--from_resume", "1", tmp_path=tmp_path)  # a job's script may always pass it
    nvme = {"device": "nvme", "nvme_path": str(tmp_path)}
    assert "offload it to CPU memory instead" in problem("reference", tmp_path=tmp_path, offload_param=nvme)
    assert "needs stage 3, not 2" in problem("zero2", tmp_path=tmp_path, offload_optimizer=nvme)


def test_nvme_needs_a_folder(tmp_path):
    for missing in ({"device": "nvme"}, {"device": "nvme", "nvme_path": "/no/such/drive"}):
        message = problem("zero3", tmp_path=tmp_path, offload_optimizer=missing)
        assert "'zero_optimization.offload_optimizer.nvme_path' is" in message
        assert "which is not a folder on this machine" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"round_robin_gradients": True}, "'zero_optimization.round_robin_gradients' is true"),
        ({"pipeline_loading_checkpoint": True}, "'zero_optimization.pipeline_loading_checkpoint' is true"),
        ({"stage": 0, "offload_optimizer": {"device": "cpu"}}, "'zero_optimization.offload_optimizer' needs stage 1"),
        ({"offload_optimizer": {"devise": "cpu"}}, "unknown key 'zero_optimization.offload_optimizer.devise'; did you"),
        ({"offload_optimizer": {"device": "disk"}}, "'zero_optimization.offload_optimizer.device': Input should be"),
        ({"offload_optimizer": {"device": "cpu", "ratio": 2}}, "'zero_optimization.offload_optimizer.ratio'"),
        (
            {"stage": 3, "offload_param": {"pin_memry": True}},
            "did you mean 'zero_optimization.offload_param.pin_memory'",
        ),
        ({"stage": 3, "offload_param": {"buffer_size": -1}}, "'zero_optimization.offload_param.buffer_size'"),
        ({"offload_optimizer": True}, "'zero_optimization.offload_optimizer' is true; an object is expected"),
        ({"zero_hpz_partition_sizes": 8}, "did you mean 'zero_optimization.zero_hpz_partition_size'?"),
    ],
)
def test_problems_of_the_zero_section(changes, message, tmp_path):
    assert message in problem("zero2", "--dtype", "float32", tmp_path=tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aio": {"queue_dept": 8}}, "unknown key 'aio.queue_dept'; did you mean 'aio.queue_depth'?"),
        ({"aio": {"block_size": 0}}, "'aio.block_size': Input should be greater than 0"),
        ({"aio": 8}, "'aio' is 8; an object is expected, e.g. {\"queue_depth\": 32}"),
        ({"comms_logger": {"enable": True}}, "did you mean 'comms_logger.enabled'?"),
        (
            {"optimizer": {"type": "AdamW", "params": {"fused": True}}},
            "'optimizer.params.fused' belongs to torch's AdamW",
        ),
    ],
)
def test_problems_of_other_sections(changes, message, tmp_path):
    values = json.loads((REPO / "ds_configs/zero2.json").read_text())
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({**values, **changes}))
    with pytest.raises(ConfigError) as caught:
        resolve_policy(path, parse_settings([]), 2, on_cpu=True)
    assert message in str(caught.value)


def test_a_monitor_that_is_off_leaves_nothing_open(tmp_path):
    values = json.loads((REPO / "ds_configs/zero2.json").read_text())
    values["tensorboard"]["enabled"] = False
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(values))
    assert '"auto"' not in json.dumps(resolve_policy(path, parse_settings([]), 2, on_cpu=True).values)
