"""The runs of a sweep: one for each combination of values, with its folder, its arguments and what is to be done.

SweepFlags -> plan_runs -> RunPlan: name, folder, arguments -> todo (by the folder's record) -> new, resume or finished
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minimind.checkpoints.manifest import write_atomically
from minimind.config import DPOConfig, parse_settings
from minimind.config.jobs import JOBS
from minimind.errors import ConfigError
from minimind.objective.choice import choose_objective
from minimind.objective.losses import Need
from minimind.sweep.flags import SweepFlags, Value
from minimind.training.jobs.kinds import KINDS

# Beside a run's own files: what the sweep gave it, and how it ended.
RECORD = "sweep_run.json"
NEW, RESUME, FINISHED = "new", "resume", "finished"
STARTED, FAILED, STOPPED = "started", "failed", "stopped"
# Flags that change nothing of a finished run.
_FREE = {"timeout", "num_workers", "cache_dir", "on_bad_checkpoint", "keep_memory", "disable_patches"}
_LONGEST_NAME = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan:
    """One run of a sweep.

    Attributes:
        job: name of the job that is trained.
        name: of its folder, made of the values that differ between runs.
        folder: its --save_dir.
        differing: flag -> value, of the flags that have several values.
        arguments: flag -> words, all that the run gets, without --save_dir and --from_resume.
    """

    job: str
    name: str
    folder: Path
    differing: Mapping[str, str]
    arguments: Mapping[str, Value]

    @property
    def argv(self) -> list[str]:
        """Command line of the job's script."""
        return [*_argv(self.arguments), "--save_dir", str(self.folder), "--from_resume", "1"]


def plan_runs(flags: SweepFlags) -> list[RunPlan]:
    """All combinations; of the flags with several values the last one changes fastest.

    The reference is cached where the loss allows it and no flag says otherwise: all runs share the cache.

    Raises:
        ConfigError: lists the combinations that training would refuse, each with its reason.
    """
    several = [name for name, values in flags.values.items() if len(values) > 1]
    plans, problems = [], []
    for chosen in itertools.product(*flags.values.values()):
        arguments = dict(zip(flags.values, chosen, strict=True))
        differing = {name: " ".join(arguments[name]) for name in several}
        name = _name(differing)
        try:
            arguments = _checked(flags.job, arguments)
        except ConfigError as error:
            problems.append(f"{name}: {error}")
        plans.append(
            RunPlan(job=flags.job, name=name, folder=flags.save_dir / name, differing=differing, arguments=arguments)
        )
    if problems:
        raise ConfigError.from_problems(problems)
    return plans


def todo(plan: RunPlan) -> str:
    """NEW, RESUME or FINISHED, by the record in the run's folder.

    Raises:
        ConfigError: the folder has a run with other flags, or one that no sweep has started.
    """
    record = read_record(plan)
    if record is None:
        if (plan.folder / "run.json").exists():
            raise ConfigError(f"{plan.folder}: has a run that no sweep has started; give another --save_dir")
        return NEW
    then, now = {**record["arguments"], "job": [record["job"]]}, {**_stored(plan.arguments), "job": [plan.job]}
    differing = [
        f"--{name} was {' '.join(then.get(name, ['not given']))}, is {' '.join(now.get(name, ['not given']))}"
        for name in {**then, **now}
        if name not in _FREE and then.get(name) != now.get(name)
    ]
    if differing:
        raise ConfigError(
            f"{plan.folder}: belongs to a sweep with other flags: {'; '.join(differing)}; give the same flags, or "
            "another --save_dir"
        )
    return FINISHED if record["status"] == FINISHED else RESUME


def read_record(plan: RunPlan) -> dict[str, Any] | None:
    """What the sweep has written about a run; None if it has not started it.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = plan.folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {
            "arguments": dict(record["arguments"]),
            "status": str(record["status"]),
            "exit": record.get("exit"),
            # Before there were other jobs, records did not name it.
            "job": str(record.get("job", DPOConfig.name)),
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give another --save_dir") from error


def write_record(plan: RunPlan, status: str, exit_status: int | None = None) -> None:
    """Write how a run is going.

    Raises:
        ConfigError: it cannot be written.
    """
    record = {"status": status, "exit": exit_status, "job": plan.job, "arguments": _stored(plan.arguments)}
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(plan.folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(f"{plan.folder}: cannot be written ({error}); give another --save_dir") from error


def _stored(arguments: Mapping[str, Value]) -> dict[str, list[str]]:
    return {name: list(value) for name, value in arguments.items()}


def _argv(arguments: Mapping[str, Value]) -> list[str]:
    argv: list[str] = []
    for name, value in arguments.items():
        # A value that begins with a minus sign is no flag.
        argv += [f"--{name}={value[0]}"] if len(value) == 1 else [f"--{name}", *value]
    return argv


def _checked(job: str, arguments: dict[str, Value]) -> dict[str, Value]:
    """The arguments of a run.

    Raises:
        ConfigError: training would refuse them.
    """
    if job == DPOConfig.name:
        return _with_cached_reference(arguments)
    KINDS[job].choose(parse_settings(_argv(arguments), JOBS[job]), None)  # raises
    return arguments


def _with_cached_reference(arguments: dict[str, Value]) -> dict[str, Value]:
    """Arguments with --reference cached, if the loss needs a reference that may be cached.

    Raises:
        ConfigError: the flags of the loss are wrong, or a value is.
    """
    _, objective = choose_objective(parse_settings(_argv(arguments)))
    if "reference" in arguments or "reference_update" in arguments or Need.REFERENCE not in objective.needs:
        return arguments
    cached = {**arguments, "reference": ("cached",)}
    try:
        choose_objective(parse_settings(_argv(cached)))
    except ConfigError:
        return arguments  # the loss needs more than the cache has
    return cached


def _name(differing: Mapping[str, str]) -> str:
    """A folder name that tells the values and is the same in every call."""
    text = "_".join(f"{flag}-{value}" for flag, value in differing.items()) or "run"
    name = re.sub(r"[^\w.+-]+", "-", text)
    if name == text and len(name) <= _LONGEST_NAME:
        return name
    # Two values may look alike without the characters that a file name should not have.
    return f"{name[:_LONGEST_NAME]}.{hashlib.sha256(text.encode()).hexdigest()[:6]}"
