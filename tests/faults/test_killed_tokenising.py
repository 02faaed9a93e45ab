"""Tokenising that is killed (SIGKILL) at random places and started again gives the files of an uninterrupted one."""

from __future__ import annotations

import json

from tests.conftest import pair
from tests.forked import run_fresh

# Forks a child for each start, so that everything is imported once. A thread of the child kills its process as soon as
# its partial folder has some size, wherever the main thread is then.
SCRIPT = """
import json, os, random, signal, sys, threading
from pathlib import Path
from transformers import AutoTokenizer
from minimind import demo
from minimind.data import table_cache, tokens
from minimind.data.sources import open_source
from minimind.data.table_build import TokenisingListener

tokens._ROWS_PER_TASK = 4
source, folder = open_source(Path(sys.argv[1])), Path(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(demo.TOKENIZER_PATH)

class Started(TokenisingListener):
    def on_rows(self, done):
        if done.bytes_read == 0:
            os.write(report, f"{done.rows}\\n".encode())

def load(name):
    table_cache.load_table(
        source, tokenizer, max_length=64, num_workers=0, cache_dir=folder / name, listener=Started()
    )

def kill_at(size):
    while sum(file.stat().st_size for file in (folder / "killed").glob("*.partial-*/*")) < size:
        pass
    os.kill(os.getpid(), signal.SIGKILL)

def start(size):
    if not (child := os.fork()):
        if size is not None:
            threading.Thread(target=kill_at, args=(size,), daemon=True).start()
        load("killed")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

read, report = os.pipe()
load("whole")
(whole,) = (folder / "whole").iterdir()
total = sum(file.stat().st_size for file in whole.iterdir())
draw = random.Random(7)
statuses = [start(size) for size in sorted(draw.randrange(total // 10, total) for _ in range(8))] + [start(None)]
os.close(report)
rows = [int(line) for line in os.fdopen(read).read().split()]
print(json.dumps({"statuses": statuses, "rows": rows[1:]}))
"""


def test_killed_and_started_again(write_rows, tmp_path):
    path = write_rows(
        *(pair(f"Number {number}?", "Yes. " * (number % 9 + 1), f"No, {number}!") for number in range(200))
    )
    done = run_fresh(SCRIPT, path, tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["statuses"].count(-9) >= 3
    assert result["statuses"][-1] == 0
    # A later start goes on after the rows of the one before.
    assert any(rows > 0 for rows in result["rows"])
    assert result["rows"] == sorted(result["rows"])
    (whole,), (killed,) = (list((tmp_path / name).iterdir()) for name in ("whole", "killed"))
    assert {file.name: file.read_bytes() for file in killed.iterdir()} == {
        file.name: file.read_bytes() for file in whole.iterdir()
    }
