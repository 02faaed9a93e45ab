"""The check at the start of a run: free memory, and a warning with numbers and a remedy."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import torch

from minimind.config import DPOConfig, replace_values
from minimind.plan import check
from minimind.plan.check import free_memory, memory_warning
from minimind.plan.choice import Machine
from minimind.plan.options import DS_CONFIGS, read_zero
from tests.unit.plan.test_memory import sizes_of

SIZES = sizes_of(hidden_size=2048, num_hidden_layers=24)


def test_warning_has_numbers_and_a_remedy():
    values = {name: read_zero(DS_CONFIGS / f"{name}.json") for name in ("zero2", "reference")}
    config = replace_values(DPOConfig(), {"deepspeed": "ds_configs/zero2.json"})

    def warning(gib: int, on_cpu: bool = False) -> str | None:
        machine = Machine(ranks_per_node=2, device_memory=gib * 2**30, on_cpu=on_cpu)
        return memory_warning(SIZES, config, machine, values["zero2"], values["reference"])

    assert warning(80) is None
    assert re.search(r"needs up to [\d.]+ GiB \(parameters 2.01, .*\), and the GPU has 20.0 GiB; ", warning(20))
    assert "--deepspeed ds_configs/zero2.json --gradient_checkpointing 1 fits" in warning(20)
    assert "or more ranks. `python launch/plan.py`" in warning(1)
    assert "free main memory has 1.00 GiB" in warning(1, on_cpu=True)


def test_remedy_names_the_reference_config_and_respects_main_memory():
    values = {name: read_zero(DS_CONFIGS / f"{name}.json") for name in ("zero3", "reference")}

    def warning(host: int, **flags: str) -> str | None:
        config = replace_values(DPOConfig(), {"deepspeed": "ds_configs/zero3.json", **flags})
        machine = Machine(ranks_per_node=2, device_memory=5 * 2**30, host_memory=host * 2**30)
        return memory_warning(SIZES, config, machine, values["zero3"], values["reference"])

    remedy = "--deepspeed ds_configs/zero3_offload.json --reference_config ds_configs/reference_offload.json "
    assert remedy + "--gradient_checkpointing 1 fits" in warning(host=100)
    assert "zero3_offload.json --gradient" in warning(host=100, reference_config="ds_configs/reference_offload.json")
    assert "or more ranks. `python launch/plan.py`" in warning(host=4)


def test_main_memory_is_for_offload_with_gpus_and_for_ranks_on_a_cpu(monkeypatch):
    class Gpus:
        @staticmethod
        def get_device_properties(_device):
            return SimpleNamespace(total_memory=80)

    monkeypatch.setattr(torch, "get_device_module", lambda _device: Gpus)
    monkeypatch.setattr(check, "free_memory", lambda: 1000)
    gpus, cpus = (check.this_machine(torch.device(kind), ranks=8, ranks_per_node=4) for kind in ("cuda", "cpu"))
    assert (gpus.nodes, gpus.device_memory, gpus.host_memory) == (2, 80, 1000)
    assert (cpus.device_memory, cpus.host_memory, cpus.on_cpu) == (250, 0, True)


def write_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_free_memory_is_that_of_meminfo(tmp_path):
    assert free_memory(tmp_path) > 2**50
    write_files(tmp_path, {"proc/meminfo": "MemTotal:       100 kB\nMemAvailable:   42 kB\n"})
    assert free_memory(tmp_path) == 42 * 1024


def test_free_memory_respects_the_limits_of_control_groups(tmp_path):
    two = {
        "proc/meminfo": "MemAvailable: 42 kB\n",
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/job/step/memory.max": "max\n",
        "sys/fs/cgroup/job/step/memory.current": "1000\n",
        "sys/fs/cgroup/job/memory.max": "9000\n",
        "sys/fs/cgroup/job/memory.current": "5000\n",
        "sys/fs/cgroup/job/memory.stat": "anon 4700\ninactive_file 300\n",
    }
    assert free_memory(write_files(tmp_path / "two", two)) == 9000 - 5000 + 300
    one = {
        "proc/meminfo": "MemAvailable: 42 kB\n",
        "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/as/the/host/sees/it\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
    }
    assert free_memory(write_files(tmp_path / "one", one)) == 4000
