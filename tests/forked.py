"""Processes that are forked, where a new interpreter would import torch and transformers for seconds.

`forked`, from the test's own process: for code that computes with no tensor, since threads of OpenMP and of autograd do
not survive a fork. `run_fresh`, from a server that has imported the model and has done nothing else: for code that
needs a process as it is before the first tensor, or one whose memory is measured.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

# DeepSpeed is not imported by the model, and not here.
_IMPORTED = ("pytest", "torch", "minimind.model.modeling")


@contextlib.contextmanager
def forked(work: Callable[..., object], *arguments: object) -> Iterator[BaseProcess]:
    """Run `work(*arguments)` in a process of its own, which is killed in the end if it still runs.

    An exception is printed there and gives exit code 1.
    """
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    with warnings.catch_warnings():
        # Python warns that a thread of this process could hold a lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def fresh_context() -> ForkServerContext:
    """Starts processes by forking the server, which is Python's own: one for a test process, and ends with it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


def run_fresh(
    script: str, *arguments: object, environment: Mapping[str, str] | None = None, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """`python -c script arguments`, forked from a server; changes of the environment come after the imports."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        given = (script, list(map(str, arguments)), dict(environment or {}), str(out), str(err))
        process = fresh_context().Process(target=_run_script, args=given)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"longer than {timeout:.0f} s: {out.read_text()}{err.read_text()}")
        return subprocess.CompletedProcess(script, process.exitcode, out.read_text(), err.read_text())


def _run_script(script: str, arguments: list[str], environment: dict[str, str], out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
