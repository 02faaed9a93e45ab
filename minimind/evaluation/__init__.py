"""Benchmarks of trained weights by lm-eval, the evaluation harness."""
