"""Data that are tokenised while a run trains on them: in shards, of which a few are in use at a time."""
