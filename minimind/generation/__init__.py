"""Answers of a model: batches with a cache of keys and values, greedy or sampled with a seed."""
