"""The rules of the guard: pure functions of curves, each with its source in the literature."""
