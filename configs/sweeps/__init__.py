"""Sweeps: each file is one experiment that `isoflop sweep --config=FILE` runs from plan to verdict."""
