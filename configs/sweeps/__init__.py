"""Sweeps: each file is one experiment that `isoflop sweep --config=FILE` runs to its verdict."""
