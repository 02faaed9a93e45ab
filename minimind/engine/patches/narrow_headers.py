"""DeepSpeed's shared-memory communication is compiled from the headers of torch that it uses, not from all of them.

    ShareMemCommBuilder.load -> a folder of headers before torch's own -> compile in half of the time
                                                                      -> fails: compile as DeepSpeed does

The compiled code is the same. The first run of a machine waits for it, and so does the first test.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from minimind.engine.patches.registry import Patch, PatchSelection, find
from minimind.errors import ConfigError

_BUILDER = "deepspeed.ops.op_builder.cpu:ShareMemCommBuilder"
_INSTALLED = "deepspeed.git_version_info:installed_ops"
NARROW_HEADERS = Patch(
    name="narrow_headers",
    purpose="compiles DeepSpeed's shared memory for CPU ranks from a part of torch's headers",
    without="the first run on a machine compiles for a minute or two",
    names=(f"{_BUILDER}.load", f"{_BUILDER}.include_paths", _INSTALLED),
)

HEADERS = Path(__file__).parent / "headers"
# A folder of its own among torch's extensions: DeepSpeed without this patch would compile anew what lies in its folder.
NAME = "deepspeed_shm_comm_narrow"


def narrow_headers(patches: PatchSelection) -> None:
    """Compile the op from few headers in this process, from here on; before `init_distributed`."""
    if not patches.uses(NARROW_HEADERS):
        return
    builder = find(_BUILDER)
    original = builder.load

    @functools.wraps(original)
    def load(self: Any, verbose: bool = False) -> Any:
        if find(_INSTALLED).get(self.name, False):  # compiled when DeepSpeed was installed
            return original(self, verbose)
        usual = self.name, self.include_paths
        self.name = NAME
        # A compiler searches these (-I) before torch's own (-isystem): DeepSpeed's #include finds ours by its name.
        self.include_paths = lambda: [*usual[1](), str(HEADERS)]
        try:
            return original(self, verbose)
        except (ConfigError, RuntimeError, ImportError) as error:
            # Another torch may need more headers; a rank that waited for the compile finds no library. A compiler that
            # is missing is reported by the usual way.
            patches.report(f"  patch {NARROW_HEADERS.name!r} is off: {error}; {NARROW_HEADERS.without}")
            self.name, self.include_paths = usual
            return original(self, verbose)

    builder.load = load
