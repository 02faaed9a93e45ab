"""Fixtures of the tests of minimind/inspection/."""

from tests.unit.data.conftest import load

__all__ = ["load"]
