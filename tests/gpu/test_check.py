"""The acceptance test's own logic, without a GPU: limits, results of processes, the page, the exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from tests.conftest import REPO
from tests.gpu import check as module
from tests.gpu.check import CHECKS, Check, Outcome, bench_figure, exit_status, page, run_all, run_check


def script(code: str, **changes) -> Check:
    return Check(**{"name": "one", "arguments": ("-c", code), "seconds": 30, "remedy": "look", **changes})


def pytest_of(tmp_path, code: str) -> Check:
    path = tmp_path / "test_some.py"
    path.write_text(code)
    arguments = ("-m", "pytest", "-q", "-s", "-o", "addopts=", "-p", "no:cacheprovider", str(path))
    return script("", arguments=arguments)


PASSES = "def test_a():\n    print('FIGURE 7 pairs/s')\n"
SKIPS = "import pytest\n@pytest.mark.skip(reason='one GPU')\ndef test_b():\n    pass\n"
FAILS = "def test_c():\n    assert 1 == 2, 'numbers differ'\n"


@pytest.mark.parametrize(
    ("code", "state", "figure"),
    [
        (PASSES + SKIPS, "ok", "7 pairs/s; 1 tests, 1 skipped"),
        (SKIPS, "skipped", "one GPU"),
        (PASSES + FAILS, "FAILED", "1 of 2: test_c: AssertionError: numbers differ"),
        ("import os\ndef test_d():\n    os._exit(9)\n", "FAILED", "status 9: "),
        ("def broken(:\n", "FAILED", "1 of 1: "),
        ("", "FAILED", "status 5: "),  # nothing was collected: a check that checks nothing
    ],
)
def test_result_of_tests(code, state, figure, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # of other packages: seconds of imports
    outcome = run_check(pytest_of(tmp_path, code), 60, tmp_path / "out")
    assert outcome.state == state
    assert outcome.figure.startswith(figure)


@pytest.mark.parametrize(
    ("code", "state", "figure"),
    [
        ("print('FIGURE 1'); print('FIGURE 2')", "ok", "1; 2"),
        ("raise ValueError('wrong size')", "FAILED", "status 1: ValueError: wrong size"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "FAILED", "status -11: "),
    ],
)
def test_result_of_a_script(code, state, figure, tmp_path):
    outcome = run_check(script(code), 30, tmp_path)
    assert (outcome.state, outcome.figure) == (state, figure)


def test_a_check_that_hangs_is_ended_with_its_children(tmp_path):
    child = "import time; time.sleep(600)"
    code = (
        "import subprocess, sys, pathlib, time; "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(p.pid)); time.sleep(600)"
    )
    outcome = run_check(script(code), 5, tmp_path / "out")
    assert outcome.state == "TOO SLOW"
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):  # killed; its entry goes when its new parent has read the status
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("the child is alive")


def test_a_failure_stops_nothing_and_the_time_of_all_is_limited(tmp_path):
    checks = [
        script("raise ValueError", name="a"),
        script("pass", name="b"),
        script("import time; time.sleep(60)", name="c"),
    ]
    outcomes = run_all([*checks, script("pass", name="d")], 8, tmp_path)
    assert [one.state for one in outcomes] == ["FAILED", "ok", "TOO SLOW", "NOT RUN"]


def outcome(state: str, figure: str = "5 pairs/s") -> Outcome:
    return Outcome(check=script("", name=f"check {state}"), state=state, figure=figure, seconds=3.4)


def test_the_page_says_what_to_do_where_a_check_is_bad():
    text = page("1 x GPU", [outcome("ok"), outcome("FAILED", "test_c: numbers differ"), outcome("skipped", "one GPU")])
    title, _, header, *rows, _, verdict = text.splitlines()
    assert title == "1 x GPU"
    assert header.split() == ["check", "result", "seconds", "figure", "if", "it", "fails"]
    assert [row.split("  ")[-1].strip() for row in rows] == ["5 pairs/s", "look", "one GPU"]
    assert verdict == "1 ok, 1 skipped, 1 FAILED"


@pytest.mark.parametrize(
    ("states", "status"),
    [(["ok", "skipped"], 0), (["skipped"], 0), (["ok", "FAILED"], 1), (["TOO SLOW"], 1), (["ok", "NOT RUN"], 1)],
)
def test_exit_status(states, status):
    assert exit_status([outcome(state) for state in states]) == status


def test_figure_of_the_benchmark(tmp_path):
    record = {"lines": [{"trainer": "ours", "pairs_per_second": 120.4, "mfu": 0.412}]}
    (tmp_path / "bench-train.json").write_text(json.dumps(record))
    assert bench_figure(tmp_path) == "ours 120 pairs/s, MFU 41%"


def test_a_benchmark_without_a_record_has_failed(tmp_path):
    assert run_check(script("pass", figure=bench_figure), 30, tmp_path).state == "FAILED"


# It imports everything in a process of its own.
@pytest.mark.long
def test_every_check_selects_something_and_together_they_select_every_test():
    """By names: a test that is renamed must not drop out of the page."""
    chosen = [one.arguments[one.arguments.index("no:cacheprovider") + 1 :] for one in CHECKS if one.figure is None]
    # One process for all: it imports torch once.
    code = (
        "import json, sys, pytest\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    print('NEXT', flush=True)\n"
        "    pytest.main(['--collect-only', '-q', '-o', 'addopts=', '-p', 'no:cacheprovider', *arguments])\n"
    )
    command = [sys.executable, "-c", code, json.dumps([["tests/gpu"], *chosen])]
    out = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout
    everything, *parts = ({line for line in part.splitlines() if "::" in line} for part in out.split("NEXT")[1:])
    assert len(parts) == len(chosen)
    assert all(parts)
    assert set().union(*parts) == {name for name in everything if "test_check.py" not in name}
    assert len({one.name for one in CHECKS}) == len(CHECKS)


def test_without_a_gpu_everything_is_skipped_with_the_reason(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "OUT", tmp_path)
    assert module.main() == 0
    text = capsys.readouterr().out
    assert text.count("no CUDA device here") == len(CHECKS)
    assert (tmp_path / "page.txt").read_text().startswith("no GPU here, torch ")
