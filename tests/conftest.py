"""Fixtures that several kinds of tests use; `shared` is the material beside a checkout, which may be missing."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run tests marked long (make test-all)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files; leave out long tests unless --long is given."""
    left_out = [item for item in items if item.get_closest_marker("long") and not config.getoption("--long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    chosen = [item for item in items if item.get_closest_marker("long") is None or config.getoption("--long")]
    items[:] = ordered(chosen)


def ordered(items: list[pytest.Item]) -> list[pytest.Item]:
    """Files that start ranks, each with an equal share of the others after it.

    Two workers seldom start ranks at once then: four ranks on two cores spin while they wait for each other. A fifth of
    the other files is left for the end, so that no worker ends alone with a slow one.
    """
    files: dict[bool, dict[Path, list[pytest.Item]]] = {True: {}, False: {}}
    for item in items:
        files[item.get_closest_marker("distributed") is not None].setdefault(item.path, []).append(item)
    quick = iter(files[False].values())
    share = 4 * len(files[False]) // (5 * max(1, len(files[True])))
    groups = [group for slow in files[True].values() for group in (slow, *itertools.islice(quick, share))]
    return list(itertools.chain.from_iterable((*groups, *quick)))


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their number: a time stamp in packed bytes gives each worker of xdist another name."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds of each part of the suite, fixtures included, for the table in tests/README.md."""
    seconds: Counter[str] = Counter()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            # tests/unit/data/test_rows.py -> unit, tests/distributed/test_plan.py -> distributed/test_plan.py
            _, part, *rest = report.nodeid.partition("::")[0].split("/")
            seconds["/".join((part, *rest)) if part == "distributed" else part] += report.duration
    if not seconds:
        return
    terminalreporter.section("seconds by part")
    for part, total in seconds.most_common():
        terminalreporter.write_line(f"{total:7.1f}  {part}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Golden numbers, real pairs and MiniMind's tokenizers; tests that need them skip where they are missing."""
    if not SHARED.is_dir():
        pytest.skip(f"golden numbers and real data are not beside the checkout ({SHARED.name}/ is missing)")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer():
    """The demo's tokenizer."""
    # Imported here: the process that only hands out tests to the workers would import torch and transformers too.
    from transformers import AutoTokenizer

    from minimind import demo

    return AutoTokenizer.from_pretrained(demo.TOKENIZER_PATH)


@pytest.fixture
def write_rows(tmp_path):
    """Write rows, dictionaries or raw lines, as a JSON-lines file."""

    def write(*rows, name="pairs.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def conversation(question: str, answer: str, *more: str) -> list[dict[str, str]]:
    """Messages of a conversation: user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate((question, answer, *more))]


def pair(question: str, chosen: str, rejected: str) -> dict[str, list[dict[str, str]]]:
    """A preference row of one turn."""
    return {"chosen": conversation(question, chosen), "rejected": conversation(question, rejected)}


@pytest.fixture
def cpu_kernels():
    """Uses the CPU's kernels in a test, as a training run does; without this fixture torch's operations run."""
    from minimind import native
    from minimind.native.library import compiled_kernels

    if compiled_kernels() is None:
        pytest.skip("no compiler here for the CPU kernels")
    with native.using(native.AUTO):
        yield


@pytest.fixture(params=["auto", "torch"])
def either_kernels(request):
    """Runs a test with the CPU's kernels, then with torch's operations."""
    from minimind import native

    if request.param == native.AUTO:
        request.getfixturevalue("cpu_kernels")
        yield
    else:
        with native.using(native.TORCH):
            yield


@pytest.fixture
def one_rank(tmp_path):
    """A process group of one, for code that reduces over ranks."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
