"""Describes each use of DeepSpeed's private names as a patch, and decides whether a run uses it.

    Patch (name, tested versions, private names) + --disable_patches + the installed DeepSpeed
        -> PatchSelection.uses -> True
                                  False: DeepSpeed runs unchanged, and a printed line says why

Private names may change with any DeepSpeed release. A patch is therefore used only on versions that it was tested on.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import deepspeed

# What `find` returns for a name that the installed DeepSpeed lacks; no attribute of it exists, and None is a value.
_MISSING = object()
# The value of --disable_patches that turns every patch off.
ALL = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionRange:
    """DeepSpeed versions from `lowest` up to, but not including, `below`; compared number by number."""

    lowest: tuple[int, ...]
    below: tuple[int, ...]

    def contains(self, version: str) -> bool:
        """Whether a version like "0.19.8" or "0.19.9+cu124" lies in the range; a version without a number does not."""
        # Only the release numbers count: a pre-release of `below` already has the code of `below`.
        match = re.match(r"\d+(?:\.\d+)*", version)
        return match is not None and self.lowest <= tuple(int(part) for part in match[0].split(".")) < self.below

    def __str__(self) -> str:
        lowest, below = (".".join(map(str, part)) for part in (self.lowest, self.below))
        return f">={lowest},<{below}"


# 0.19.8 is the first version with `GradPartitionBufferGroup`. pyproject.toml has the same bounds.
TESTED = VersionRange(lowest=(0, 19, 8), below=(0, 20))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patch:
    """A change of DeepSpeed, or a use of its internals, that relies on private names.

    Attributes:
        name: its name for --disable_patches.
        purpose: what it changes.
        without: what the run does when it is off.
        names: private names that must exist, as "module:name" or "module:Class.method".
        attributes: private attributes that the patched object must have; set by DeepSpeed's constructors.
        versions: the DeepSpeed versions that it was tested on.
    """

    name: str
    purpose: str
    without: str
    names: Sequence[str] = ()
    attributes: Sequence[str] = ()
    versions: VersionRange = TESTED

    def missing(self, target: object = None) -> list[str]:
        """The names and attributes that the installed DeepSpeed lacks; attributes only if a target is given."""
        absent = [name for name in self.names if find(name) is _MISSING]
        return absent + [name for name in self.attributes if target is not None and not hasattr(target, name)]


def find(name: str) -> Any:
    """A private object of DeepSpeed, by "module:name" or "module:Class.method"; `_MISSING` if there is none.

    Patches import no private module themselves: a DeepSpeed without it would then fail at the import, instead of
    running with the patch off.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        return _MISSING
    for part in path.split("."):
        found = getattr(found, part, _MISSING)
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchSelection:
    """Which patches a run uses.

    Attributes:
        disabled: names of the patches that the user turned off; ALL stands for every patch.
        version: DeepSpeed's version.
        report: called with a line for each patch that is off where it would have been used.
    """

    disabled: frozenset[str] = frozenset()
    version: str = deepspeed.__version__
    report: Callable[[str], object] = print

    def why_off(self, patch: Patch, target: object = None) -> str | None:
        """Why a patch is off, None if it is on.

        Args:
            patch: the patch.
            target: the DeepSpeed object that it would be applied to.
        """
        if {patch.name, ALL} & self.disabled:
            return "--disable_patches turns it off"
        if not patch.versions.contains(self.version):
            return f"DeepSpeed {self.version} is outside {patch.versions}, the versions that it was tested on"
        if missing := patch.missing(target):
            return f"DeepSpeed {self.version} has no {', '.join(missing)}"
        return None

    def uses(self, patch: Patch, target: object = None) -> bool:
        """Whether a patch is on; if it is off, report why, and what the run does instead."""
        reason = self.why_off(patch, target)
        if reason is not None:
            self.report(f"  patch {patch.name!r} is off: {reason}; {patch.without}")
        return reason is None


def select_patches(disable_patches: str | None, speaks: bool) -> PatchSelection:
    """The selection that a value of --disable_patches describes.

    Args:
        disable_patches: names separated by commas, or "all"; None: every patch is used.
        speaks: whether this rank prints the lines about patches that are off; one rank does.
    """
    reported: set[str] = set()

    def report(line: str) -> None:
        # Both engines and every save ask for the same patches; each line is printed once.
        if speaks and line not in reported:
            reported.add(line)
            print(line, flush=True)

    return PatchSelection(disabled=_split(disable_patches), report=report)


def flag_problems(disable_patches: str | None, patches: Iterable[Patch]) -> list[str]:
    """Problems of a value of --disable_patches: names that are no patch."""
    known = [*(patch.name for patch in patches), ALL]
    problems = []
    for name in sorted(_split(disable_patches) - set(known)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        problems.append(f"--disable_patches: unknown patch {name!r}; {hint}")
    return problems


def _split(value: str | None) -> frozenset[str]:
    return frozenset(name.strip() for name in (value or "").split(",") if name.strip())
