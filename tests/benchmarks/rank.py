"""Entry of a benchmarked rank: records the time, and binds it to a core if asked, before torch starts its threads.

deepspeed tests/benchmarks/rank.py MODULE FLAGS      -> that module as a script
"""

import os
import runpy
import sys
import time

STARTED = "MINIMIND_BENCH_STARTED"
BIND = "MINIMIND_BENCH_BIND"

if __name__ == "__main__":
    os.environ[STARTED] = str(time.time())
    if os.environ.get(BIND):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["LOCAL_RANK"])]})
    # The launcher puts --local_rank first.
    module = next(argument for argument in sys.argv[1:] if not argument.startswith("-"))
    sys.argv.remove(module)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
