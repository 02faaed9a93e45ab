"""The planning script from its flags to its answer, the choice it makes, and the check that a run makes of itself."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minimind.config import DPOConfig, parse_settings, replace_values
from minimind.errors import ConfigError, MiniMindError, WeightsError
from minimind.plan import check
from minimind.plan.check import free_memory, shortage
from minimind.plan.choice import Machine
from minimind.plan.command import main, plan
from minimind.plan.options import DS_CONFIGS, cheapest, options, read_zero
from tests.conftest import REPO
from tests.unit.plan.test_memory import sizes_of

ISSUE = "--hidden_size 4096 --num_hidden_layers 32 --nodes 4 --gpus_per_node 8 --gpu_memory 80GiB".split()
SIZES = sizes_of(hidden_size=2048, num_hidden_layers=24)


def rows(text: str) -> dict[str, list[str]]:
    """The table's cells by file, split where columns are at least two spaces apart."""
    lines = [re.split(r"\s{2,}", line) for line in text.splitlines() if ".json  " in line]
    return {line[0]: line[1:] for line in lines}


def printed_command(text: str) -> list[str]:
    return shlex.split(text[text.index("    deepspeed ") :].replace("\\\n", " "))


def test_every_shipped_file_has_a_row_and_the_command_can_be_typed(capsys):
    main(ISSUE)
    text = capsys.readouterr().out
    shipped = {path.name for path in DS_CONFIGS.glob("*.json")} - {"reference.json", "reference_offload.json"}
    assert set(rows(text)) == shipped
    assert "5.67 B parameters" in text
    assert "32 ranks (4 x 8)" in text
    words = printed_command(text)
    assert words[:4] == ["deepspeed", "--hostfile", "launch/hostfile", "launch/train_dpo.py"]
    settings = parse_settings(words[4:])
    assert (REPO / settings.config.engine.deepspeed).is_file()
    assert settings.config.model.from_weight == "full_sft_4096.pth"


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_the_readme_s_table_is_what_the_script_prints(name):
    printed = plan(ISSUE).splitlines()
    shown = [line[4:] for line in (REPO / name).read_text(encoding="utf-8").splitlines() if ".json  " in line]
    assert len(shown) >= 5
    assert [line for line in shown if line not in printed] == []


def test_the_script_starts_without_deepspeed():
    blocked = "import sys; sys.modules['deepspeed'] = None; from minimind.plan.command import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", blocked, "--gpu_memory", "8GiB"], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "The cheapest that fits" in done.stdout


def test_flags_of_training_stay_in_the_command():
    text = plan([*ISSUE, "--max_seq_len", "512", "--beta", "0.2", "--data_path", "my pairs.jsonl", "--use_moe", "1"])
    settings = parse_settings(printed_command(text)[4:])
    assert (settings.config.data.max_seq_len, settings.config.objective.beta) == (512, 0.2)
    assert settings.config.data.data_path == "my pairs.jsonl"
    assert settings.config.model.from_weight == "full_sft_4096_moe.pth"
    assert "--hidden_size" not in text
    # Fresh weights have nothing to read sizes off.
    fresh = parse_settings(printed_command(plan([*ISSUE, "--from_weight", "none"]))[4:]).config
    assert (fresh.model.from_weight, fresh.model.hidden_size, fresh.model.num_hidden_layers) == ("none", 4096, 32)


def test_sizes_are_read_off_weights():
    given = ["--from_weight", str(REPO / "minimind/demo/start.pth"), "--gpu_memory", "1GiB"]
    text = plan([*given, "--gpus_per_node", "2"])
    assert "start.pth" in text
    assert "--num_gpus 2" in text
    with pytest.raises(ConfigError, match=r"--hidden_size is 4096, but .*start.pth has \d+; drop the flag"):
        plan([*given, "--hidden_size", "4096"])


def test_one_file_alone_and_checkpointed_alone():
    text = plan([*ISSUE, "--deepspeed", "ds_configs/zero1.json", "--gradient_checkpointing", "1"])
    assert list(rows(text)) == ["zero1.json"]
    assert "--gradient_checkpointing 1" in text


def test_a_plan_that_nothing_fits_says_what_is_least_and_what_would_help():
    text = plan(["--hidden_size", "8192", "--num_hidden_layers", "80", "--gpu_memory", "2GiB"])
    assert "Nothing fits. The least is" in text
    assert "--micro_batch_tokens" in text
    assert "deepspeed --" not in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--hidden_size 512", "--gpu_memory is missing"),
        ("--gpu_memory 80", "--gpu_memory 80: a size with its unit is expected, e.g. 80GiB"),
        ("--gpu_memory 0GiB", "a size with its unit"),
        ("--gpu_memory 80GiB --host_memory much", "--host_memory much"),
        ("--gpu_memory 80GiB --nodes 0", "--nodes 0 is below 1"),
        ("--gpu_mem 80GiB", "unrecognized argument: --gpu_mem; did you mean --gpu_memory?"),
        ("--gpu_memory 80GiB --hiden_size 4", "did you mean --hidden_size?"),
        ("--gpu_memory 80GiB --nodes two", "--nodes"),
        ("--gpu_memory 80GiB --hidden_size 510 --num_attention_heads 170", "no MiniMind model has these sizes"),
        ("--gpu_memory 80GiB --deepspeed nowhere.json", "nowhere.json: no such DeepSpeed configuration"),
        ("--gpu_memory 80GiB --deepspeed README.md", "README.md: no JSON object"),
        ("--gpu_memory 80GiB --from_weight none --vocab_size 100", "fresh weights (--from_weight none) have 6400"),
        ("--gpu_memory 80GiB --batch_size 0", "--batch_size 0 is below 1"),
    ],
)
def test_bad_flags_are_one_clear_error(arguments, told, monkeypatch):
    monkeypatch.chdir(REPO)
    with pytest.raises(ConfigError) as caught:
        plan(arguments.split())
    assert told in str(caught.value)


def test_missing_weights_and_the_status():
    with pytest.raises(WeightsError, match="leave it out to plan by the sizes"):
        plan(["--gpu_memory", "80GiB", "--from_weight", "nowhere.pth"])
    with pytest.raises(SystemExit) as ended:
        main(["--gpu_memory", "80"])
    assert str(ended.value.code).startswith("ConfigError: --gpu_memory 80")


def test_a_stage_that_there_is_not(tmp_path):
    path = tmp_path / "four.json"
    path.write_text('{"zero_optimization": {"stage": 4}}')
    with pytest.raises(MiniMindError, match=r"four.json: 'zero_optimization.stage' is 4"):
        read_zero(path)


def chosen(gib: float, ranks: int = 2, host: int = 0, **flags) -> tuple[str, bool] | None:
    machine = Machine(ranks_per_node=ranks, device_memory=int(gib * 2**30), host_memory=host)
    best = cheapest(options(SIZES, replace_values(DPOConfig(), flags), machine), machine)
    return None if best is None else (best.file.stem, best.checkpointing)


def test_the_cheapest_leaves_the_device_last():
    """With ever less memory: no recomputing, then recomputing, more sharding, then offload, then nothing."""
    assert chosen(80) == ("zero2", False)
    assert chosen(20) == ("zero2", True)
    assert chosen(6, ranks=8) == ("zero3", True)
    assert chosen(6)[0].endswith("offload")
    assert chosen(1) is None
    # What does not fit into main memory does not fit.
    assert chosen(6, host=2**30) is None
    # With more micro-batches, stage 1 reduces once for all of them.
    assert chosen(80, accumulation_steps=4)[0] == "zero1"
    # bfloat16 has no stage 0, and what changes numbers is never chosen; float32 on one rank needs no sharding.
    assert chosen(200, ranks=1, dtype="float32")[0] == "zero0"


def test_a_run_is_warned_with_numbers_and_a_remedy():
    values = {name: read_zero(DS_CONFIGS / f"{name}.json") for name in ("zero2", "reference")}
    config = replace_values(DPOConfig(), {"deepspeed": "ds_configs/zero2.json"})

    def told(gib: int, on_cpu: bool = False) -> str:
        machine = Machine(ranks_per_node=2, device_memory=gib * 2**30, on_cpu=on_cpu)
        return shortage(SIZES, config, machine, values["zero2"], values["reference"])

    assert told(80) == ""
    assert re.search(r"needs up to [\d.]+ GiB \(parameters 2.01, .*\), and has 20.0 GiB of the GPU", told(20))
    assert "--deepspeed ds_configs/zero2.json --gradient_checkpointing 1 would fit" in told(20)
    assert "more ranks need less" in told(1)
    assert "of free memory" in told(1, on_cpu=True)


def test_a_remedy_names_the_reference_s_file_and_heeds_main_memory():
    values = {name: read_zero(DS_CONFIGS / f"{name}.json") for name in ("zero3", "reference")}

    def told(host: int, **flags: str) -> str:
        config = replace_values(DPOConfig(), {"deepspeed": "ds_configs/zero3.json", **flags})
        machine = Machine(ranks_per_node=2, device_memory=5 * 2**30, host_memory=host * 2**30)
        return shortage(SIZES, config, machine, values["zero3"], values["reference"])

    remedy = "--deepspeed ds_configs/zero3_offload.json --reference_config ds_configs/reference_offload.json "
    assert remedy + "--gradient_checkpointing 1 would fit" in told(host=100)
    assert "zero3_offload.json --gradient" in told(host=100, reference_config="ds_configs/reference_offload.json")
    assert "more ranks need less" in told(host=4)


def test_offload_on_gpus_is_measured_by_free_main_memory(monkeypatch):
    class Gpus:
        @staticmethod
        def get_device_properties(_device):
            return SimpleNamespace(total_memory=80)

    monkeypatch.setattr(torch, "get_device_module", lambda _device: Gpus)
    monkeypatch.setattr(check, "free_memory", lambda: 1000)
    gpus, cpus = (check.this_machine(torch.device(kind), ranks=8, ranks_per_node=4) for kind in ("cuda", "cpu"))
    assert (gpus.nodes, gpus.device_memory, gpus.host_memory) == (2, 80, 1000)
    assert (cpus.device_memory, cpus.host_memory, cpus.on_cpu) == (250, 0, True)


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_free_memory(tmp_path):
    assert free_memory(tmp_path) > 2**50
    written(tmp_path, {"proc/meminfo": "MemTotal:       100 kB\nMemAvailable:   42 kB\n"})
    assert free_memory(tmp_path) == 42 * 1024


def test_free_memory_is_at_most_what_the_control_groups_leave(tmp_path):
    two = {
        "proc/meminfo": "MemAvailable: 42 kB\n",
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/job/step/memory.max": "max\n",
        "sys/fs/cgroup/job/step/memory.current": "1000\n",
        "sys/fs/cgroup/job/memory.max": "9000\n",
        "sys/fs/cgroup/job/memory.current": "5000\n",
        "sys/fs/cgroup/job/memory.stat": "anon 4700\ninactive_file 300\n",
    }
    assert free_memory(written(tmp_path / "two", two)) == 9000 - 5000 + 300
    one = {
        "proc/meminfo": "MemAvailable: 42 kB\n",
        "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/as/the/host/sees/it\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
    }
    assert free_memory(written(tmp_path / "one", one)) == 4000
