"""Fixtures for the kernels' tests."""

from __future__ import annotations

import pytest

from minimind.native import products
from minimind.native.processor import Products


@pytest.fixture
def kernel_calls(monkeypatch) -> list[str]:
    """The kernel's calls. It is enabled also on processors where it is not the fastest way and would not be used."""
    calls: list[str] = []
    call = products.call

    def counted(name, *arguments):
        if name == "matmul":
            calls.append(name)
        return call(name, *arguments)

    monkeypatch.setattr(products, "call", counted)
    monkeypatch.setattr(products, "_fastest", lambda: Products.KERNEL)
    return calls
