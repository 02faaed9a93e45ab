"""Checkpoints: DeepSpeed's files, plus what makes them safe to go on from.

save_dir/checkpoints/step00000100/   DeepSpeed's model and optimizer states of every rank
                    /run.json        what the run was, so that another is not continued by mistake
save_dir/checkpoints/latest          the newest complete one, written last and at once
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minimind.engine.policy import Policy
from minimind.engine.process import World, barrier, from_main
from minimind.errors import CheckpointError


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie.
        identity: what must be the same for a run to go on from them: data, weights, sizes, ranks, stage, schedule.
        world: the ranks.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], world: World) -> None:
        self.folder = folder
        # As JSON gives it back: what is compared with a checkpoint's has made the same journey.
        self.identity = json.loads(json.dumps(dict(identity)))
        self.world = world

    def save(self, policy: Policy, step: int) -> Path:
        """Write the state after global step `step`. `latest` names it only when every rank has written its part."""
        tag = f"step{step:08d}"
        # DeepSpeed's own `latest` can name a checkpoint that another rank has not finished.
        policy.engine.save_checkpoint(str(self.folder), tag=tag, client_state={"step": step}, save_latest=False)
        barrier()
        if self.world.is_main:
            sizes = {path.name: path.stat().st_size for path in sorted((self.folder / tag).glob("*.pt"))}
            run = {"step": step, "files": sizes, **self.identity}
            _write_whole(self.folder / tag / "run.json", json.dumps(run, indent=1, ensure_ascii=False))
            _write_whole(self.folder / "latest", tag)
        barrier()
        return self.folder / tag

    def newest(self) -> Path | None:
        """The newest checkpoint, complete and of this run, or None if there is none; on all ranks alike.

        Raises:
            CheckpointError: `latest` names a checkpoint that is not whole, or belongs to another run.
        """
        return from_main(self.world, self._newest)

    def load(self, policy: Policy, checkpoint: Path) -> int:
        """Load a checkpoint into the policy; returns the global step it was written after.

        Raises:
            CheckpointError: files that DeepSpeed cannot load.
        """
        try:
            path, client_state = policy.engine.load_checkpoint(str(self.folder), tag=checkpoint.name)
        except Exception as error:
            # Torn files make torch and DeepSpeed raise almost anything.
            raise CheckpointError(f"{checkpoint}: cannot be loaded ({type(error).__name__}: {error})") from error
        if path is None:
            raise CheckpointError(f"{checkpoint}: holds nothing that DeepSpeed can load")
        return int(client_state["step"])

    def _newest(self) -> Path | None:
        latest = self.folder / "latest"
        if not latest.is_file():
            return None
        checkpoint = self.folder / latest.read_text(encoding="utf-8").strip()
        try:
            run = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
            sizes = {name: (checkpoint / name).stat().st_size for name in run["files"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{latest} names {checkpoint.name}, which is incomplete ({error})") from error
        written = run["files"]
        torn = [f"{name} has {size} of {written[name]} bytes" for name, size in sizes.items() if size != written[name]]
        if torn:
            raise CheckpointError(f"{checkpoint}: is damaged: {', '.join(torn)}; `latest` may name an earlier one")
        differing = [
            f"{name} was {run.get(name)!r}, is {value!r}"
            for name, value in self.identity.items()
            if run.get(name) != value
        ]
        if differing:
            listed = "\n".join(f"  {line}" for line in differing)
            raise CheckpointError(
                f"{checkpoint}: belongs to a run with other settings:\n{listed}\n"
                "Give the same again to go on, or start anew in another --save_dir."
            )
        return checkpoint


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the new one, whenever the machine stops."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
