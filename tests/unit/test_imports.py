"""Imports point one way.

launch -> {sweep, inspection, evaluation} -> {training, chat, conversion} -> checkpoints -> engine ->
{ranks, data, objective} -> {weights, model} -> {native, config, errors}; training and chat -> generation;
training -> diagnosis -> {data, pages}
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.forked import run_fresh

# What each part may import besides itself. `minimind/__init__.py` is the public face and exempt; `version` is
# free.
BOTTOM = {"config", "errors", "durable", "locks"}
MIDDLE = BOTTOM | {"weights", "model"}
BELOW_TRAINING = MIDDLE | {"engine", "checkpoints", "ranks", "data", "objective"}
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "durable": set(),
    "locks": set(),
    "version": set(),
    "config": {"errors"},
    "native": set(),
    "model": BOTTOM | {"native"},
    "weights": BOTTOM | {"model"},
    "data": BOTTOM,  # knows neither model nor engine
    "objective": BOTTOM | {"native"},  # pure functions of tensors
    "ranks": {"errors"},  # processes; no DeepSpeed, no model
    "engine": MIDDLE | {"ranks", "data", "objective", "native"},
    "checkpoints": BOTTOM | {"ranks", "engine"},
    "plan": BELOW_TRAINING,
    "generation": {"errors"},  # a model is given
    "pages": set(),  # markup and charts
    "diagnosis": BOTTOM | {"data", "pages"},  # reads numbers and rows of a run, touches no engine
    "training": BELOW_TRAINING | {"diagnosis", "demo", "plan", "native", "generation"},
    "demo": set(),
    "demo's make_* scripts": BELOW_TRAINING | {"the public face", "demo"},
    "inspection": BELOW_TRAINING
    | {"training", "plan", "pages"},  # by the run's own code, so that it sees what a run sees
    "conversion": MIDDLE | {"checkpoints"},  # reads what training wrote; needs no engine
    "chat": MIDDLE | {"conversion", "generation"},
    "evaluation": MIDDLE | {"conversion", "chat"},
    "sweep": BELOW_TRAINING
    | {"training", "inspection", "diagnosis", "pages"},  # starts runs as other processes, and reads their files
    "chain": BELOW_TRAINING | {"training", "sweep", "demo", "diagnosis"},  # starts runs, and reads their metrics
    "launch": BELOW_TRAINING
    | {"training", "plan", "inspection", "sweep", "chain", "conversion", "chat", "evaluation", "diagnosis"}
    | {"the public face"},
}
FREE = {"version"}

# Parts that touch no files and no process group.
PURE = ("model", "objective")
FILES = {"os", "io", "pathlib", "shutil", "tempfile", "glob", "fileinput", "pickle", "shelve", "sqlite3", "mmap"}
PROCESSES = {"subprocess", "multiprocessing", "socket"}


def part_of(path: Path) -> str:
    """The row of the table that a file belongs to."""
    first, *rest = path.relative_to(REPO).parts
    if first == "launch":
        return "launch"
    if rest[0] == "demo" and rest[-1].startswith("make_"):
        return "demo's make_* scripts"
    return rest[0].removesuffix(".py")


def sources() -> list[Path]:
    found = [*(REPO / "minimind").rglob("*.py"), *(REPO / "launch").rglob("*.py")]
    return sorted(path for path in found if path != REPO / "minimind" / "__init__.py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of all that a file imports, wherever in it; `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where an arrow points"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_start(tree: ast.Module) -> Iterator[str]:
    """Full names of what a module imports when it is imported itself: not in functions."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from imported(node)


def target_of(name: str) -> str | None:
    """The part that an imported name lies in; None for what is not ours."""
    first, *rest = name.split(".")
    if first == "launch":
        return "launch"
    if first != "minimind":
        return None
    package = REPO / "minimind"
    if rest and ((package / rest[0]).is_dir() or (package / f"{rest[0]}.py").is_file()):
        return rest[0]
    return "the public face"


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def backward_arrows(part: str, tree: ast.AST) -> list[str]:
    own = {part, "demo"} if part.startswith("demo") else {part}
    return [
        name
        for name in imported(tree)
        if (target := target_of(name)) is not None and target not in ARROWS[part] | own | FREE
    ]


def dotted(node: ast.AST) -> str:
    """`torch.distributed.barrier` of such an expression; empty for others."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else ""


def forbidden_in_pure(tree: ast.AST) -> list[str]:
    found = [
        name
        for name in imported(tree)
        if name.split(".")[0] in FILES | PROCESSES or name.startswith(("torch.distributed", "safetensors"))
    ]
    for node in ast.walk(tree):
        name = dotted(node)
        if name.startswith("torch.distributed") or name in ("torch.load", "torch.save"):
            found.append(name)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            found.append("open()")
    return found


def relative(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


# Each walks through all files in one test: a test for each of 400 files costs more than the walk.
def test_no_arrow_points_back():
    parts = {path: part_of(path) for path in sources()}
    assert len(parts) > 300
    assert set(parts.values()) - ARROWS.keys() == set(), "has no row in the table of arrows"
    found = {relative(path): backward_arrows(part, parse(path)) for path, part in parts.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_only_engine_imports_deepspeed():
    importing = {
        part_of(path) for path in sources() if any(name.split(".")[0] == "deepspeed" for name in imported(parse(path)))
    }
    assert importing == {"engine"}


def test_model_and_objective_touch_no_files_and_no_process_group():
    pure = [path for path in sources() if part_of(path) in PURE]
    assert len(pure) > 30
    found = {relative(path): forbidden_in_pure(parse(path)) for path in pure}
    assert {path: names for path, names in found.items() if names} == {}


def test_nothing_but_training_and_the_chain_imports_demo():
    importing = {
        part_of(path).split("'")[0]
        for path in sources()
        if any(target_of(name) == "demo" for name in imported(parse(path)))
    }
    assert {"training", "chain"} <= importing <= {"training", "chain", "demo"}


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_pygal_is_imported_when_a_chart_is_drawn(path):
    """Within functions: no run shall pay for it at its start."""
    assert [name for name in imported_at_start(parse(path)) if name.split(".")[0] == "pygal"] == []


def test_the_table_itself_points_one_way():
    """Whatever order of imports it allows, no part can be reached from one that it may import."""
    for part in ARROWS:
        reached, waiting = set(), list(ARROWS[part] - {part})
        while waiting:
            target = waiting.pop()
            if target not in reached:
                reached.add(target)
                waiting += ARROWS.get(target, set())
        assert part not in reached


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ("data", "from minimind.model.modeling import MiniMindForCausalLM"),
        ("data", "import minimind.engine.scorer"),
        ("model", "from minimind import weights"),
        ("weights", "from minimind.training.run import main"),
        ("objective", "def f():\n    from minimind.data.packs import pack"),
        ("engine", "from minimind import demo"),
        ("engine", "from minimind import MiniMindConfig"),
        ("demo", "from minimind.config import DPOConfig"),
        ("errors", "import minimind.config"),
        ("training", "import launch.train_dpo"),
        ("training", "from minimind.inspection.report import Report"),
    ],
)
def test_the_walk_sees_an_arrow_that_points_back(part, code):
    assert len(backward_arrows(part, ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "from pathlib import Path",
        "import torch.distributed as dist",
        "from torch import distributed",
        "import torch\ntorch.distributed.barrier()",
        "import torch\ntorch.load('a.pth')",
        "open('a')",
        "from safetensors.torch import load_file",
    ],
)
def test_the_walk_sees_files_and_process_groups(code):
    assert forbidden_in_pure(ast.parse(code))


def test_the_public_face_and_the_plan_work_without_deepspeed():
    """Not by their own imports alone: nothing that model, weights, data, objective and plan pull in needs it."""
    blocked = (
        "import sys; assert 'deepspeed' not in sys.modules; sys.modules['deepspeed'] = None\n"
        "from minimind.plan.command import main; main(sys.argv[1:])"
    )
    run = run_fresh(blocked, "--gpu_memory", "8GiB")
    assert run.returncode == 0, run.stderr[-2000:]
    assert "The cheapest option that fits" in run.stdout
