"""DeepSpeed's shared memory is compiled with few headers first, then as DeepSpeed does it.

The real op is compiled by every launch on two ranks (tests/distributed).
"""

from __future__ import annotations

import pytest
from deepspeed import git_version_info
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

from minimind.engine.patches import narrow_headers as patch
from minimind.engine.patches.registry import PatchSelection
from minimind.errors import ConfigError


@pytest.fixture
def loads(monkeypatch):
    """Name and folders of headers of each load of the op; a load of a name in `fails` raises that error."""
    done, fails = [], {}

    def load(self, verbose=False):
        done.append((self.name, self.include_paths()))
        if self.name in fails:
            raise fails[self.name]
        return f"{self.name} loaded"

    monkeypatch.setattr(ShareMemCommBuilder, "load", load)
    return done, fails


def narrow(report=pytest.fail, **options):
    patch.narrow_headers(PatchSelection(report=report, **options))
    return ShareMemCommBuilder()


def test_own_headers_come_before_torchs(loads):
    usual = ShareMemCommBuilder().include_paths()
    assert narrow().load() == f"{patch.NAME} loaded"
    assert loads[0] == [(patch.NAME, [*usual, str(patch.HEADERS)])]
    # The names of the headers that DeepSpeed's sources include.
    assert all((patch.HEADERS / name).is_file() for name in ("torch/extension.h", "ATen/ATen.h"))


@pytest.mark.parametrize(
    "error", [ConfigError("no member named stack"), RuntimeError("ninja"), ImportError("no such file")]
)
def test_headers_that_do_not_compile_are_left_out(loads, error):
    said, usual = [], ShareMemCommBuilder().include_paths()
    loads[1][patch.NAME] = error
    assert narrow(said.append).load() == "deepspeed_shm_comm loaded"
    assert loads[0][1] == ("deepspeed_shm_comm", usual)
    assert str(error) in said[0]


def test_the_error_of_the_usual_compile_is_the_runs(loads):
    loads[1].update({patch.NAME: ConfigError("no compiler"), "deepspeed_shm_comm": ConfigError("no compiler at all")})
    with pytest.raises(ConfigError, match="no compiler at all"):
        narrow(lambda line: None).load()


def test_an_op_that_was_compiled_with_deepspeed_is_used(loads, monkeypatch):
    monkeypatch.setitem(git_version_info.installed_ops, "deepspeed_shm_comm", True)
    assert narrow().load() == "deepspeed_shm_comm loaded"


def test_switched_off_it_changes_nothing(loads):
    said = []
    assert narrow(said.append, disabled=frozenset({"narrow_headers"})).load() == "deepspeed_shm_comm loaded"
    assert "compiles for a minute or two" in said[0]
