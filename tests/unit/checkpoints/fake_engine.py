"""A stand-in for DeepSpeed's engine that writes two files; tests/distributed runs the real engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from minimind.checkpoints.store import Checkpoints

LAYOUT = {"ranks": 1, "zero_optimization": {"stage": 3}}
DESCRIBED = {"identity": {"beta": 0.1}, "batch": {"batch_size": 1}, "sharding": LAYOUT}
FILES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")


class FakeEngine:
    """Writes through its checkpoint engine, as DeepSpeed does; writing the second file raises `fails`."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails = fails
        self.optimizer = None
        self.checkpoint_engine = SimpleNamespace(save=self.write)
        self.loaded = None

    def write(self, state, path):
        if self.fails is not None and path.endswith(FILES[1]):
            Path(path).write_bytes(b"half")
            raise self.fails
        Path(path).write_bytes(state)

    def _copy_recovery_script(self, folder):
        raise AssertionError("would fail on one rank alone")

    def save_checkpoint(self, folder, tag, client_state, save_latest, exclude_frozen_parameters):
        assert not save_latest
        self.saved_whole = not exclude_frozen_parameters
        for name in FILES:
            self.checkpoint_engine.save(f"{name} of {client_state['step']}".encode(), str(Path(folder, tag, name)))
        self._copy_recovery_script(folder)

    def load_checkpoint(self, folder, tag, load_module_strict):
        self.loaded, self.strict = tag, load_module_strict
        return folder, {}


def policy_of(engine: FakeEngine, has_adapters: bool = False) -> SimpleNamespace:
    """A policy with this engine."""
    return SimpleNamespace(engine=engine, has_adapters=has_adapters)


def save(checkpoints: Checkpoints, *steps: int, fails: Exception | None = None, **options) -> None:
    for step in steps:
        policy = policy_of(FakeEngine(fails))
        checkpoints.save(policy, step, {"pairs": step}, {"seconds": 2.5}, **options)
