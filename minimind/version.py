"""The version, where both the build and the run can read it without importing anything heavy."""

__version__ = "0.1.0"
