"""Listeners: objects that react to the events of a run."""
