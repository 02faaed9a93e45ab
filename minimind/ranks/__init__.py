"""Processes: launchers, agreement between ranks, signals, and lost or stuck ranks."""
