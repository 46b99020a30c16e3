"""Scaling laws of runs as arrays: forms, fits, intervals, questions. Needs numpy and jax only."""
