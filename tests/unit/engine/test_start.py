"""Parts of a rank's start that need no process group; tests/distributed starts real ranks."""

from __future__ import annotations

import os
import time

import pytest

from minimind.engine.start import check_compile_locks, compiled_ops_folder, limit_primitive_cache
from minimind.errors import ConfigError

LIMITS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_primitive_cache_is_limited_unless_the_user_has_set_a_limit(monkeypatch):
    monkeypatch.setenv(LIMITS[0], "7")
    monkeypatch.setenv(LIMITS[1], "")  # registers the variable, so that monkeypatch removes it afterwards
    monkeypatch.delenv(LIMITS[1])
    limit_primitive_cache()
    assert os.environ[LIMITS[0]] == "7"
    assert os.environ[LIMITS[1]] == "128"


def test_folder_of_compiled_ops_is_the_one_that_torch_uses(monkeypatch, tmp_path):
    from torch.utils.cpp_extension import get_default_build_root

    assert compiled_ops_folder({"TORCH_EXTENSIONS_DIR": str(tmp_path)}) == tmp_path
    assert str(compiled_ops_folder({})) == get_default_build_root()


@pytest.fixture
def lock(tmp_path):
    """Makes the lock of an op's compile, of a given age in seconds."""

    def make(op: str, age: float):
        path = tmp_path / "py312_cpu" / op / "lock"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
        return path

    return make


@pytest.mark.parametrize("agreed", [False, True])
@pytest.mark.parametrize("op", ["deepspeed_shm_comm", "cpu_adam"])
def test_old_compile_lock_is_refused_with_its_path_and_age(op, agreed, lock, tmp_path):
    path = lock(op, 600)
    with pytest.raises(ConfigError) as caught:
        check_compile_locks(tmp_path, agreed=agreed)
    assert str(caught.value).startswith(f"{path}: lock of a compile that never ended (10 minutes old)")
    assert caught.value.agreed == agreed


@pytest.mark.parametrize(("op", "age"), [("cpu_adam", 200), ("sparse_attn", 600)])
def test_lock_of_a_running_compile_or_of_an_unused_op_is_accepted(op, age, lock, tmp_path):
    lock(op, age)
    check_compile_locks(tmp_path, agreed=False)


def test_folder_without_compiled_ops_is_accepted(tmp_path):
    check_compile_locks(tmp_path / "missing", agreed=False)
