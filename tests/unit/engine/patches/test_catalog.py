"""The catalog lists every patch that a module of engine/patches declares."""

from __future__ import annotations

import importlib
import pkgutil

from minimind.engine import patches
from minimind.engine.patches.catalog import PATCHES
from minimind.engine.patches.registry import Patch


def test_catalog_lists_every_declared_patch():
    modules = [
        importlib.import_module(f"{patches.__name__}.{info.name}") for info in pkgutil.iter_modules(patches.__path__)
    ]
    declared = {
        id(value): value.name for module in modules for value in vars(module).values() if isinstance(value, Patch)
    }
    assert sorted(declared.values()) == sorted(patch.name for patch in PATCHES)
