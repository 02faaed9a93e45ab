"""Checkpoints: manifest, saving, finding, loading and resharding."""
