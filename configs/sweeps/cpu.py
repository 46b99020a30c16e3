"""An hour of two CPU cores: `h200.py` at a thousandth of its compute, on Python's own source.

  isoflop sweep --config=configs/sweeps/cpu.py --workdir=runs/cpu

Planned, and not yet run: 2.3e14 FLOPs, for which `isoflop plan` says 57 minutes on two cores of an
AMD EPYC server CPU (2026-11-21), good to a factor of two.
"""

from configs.sweeps import h200


def get_config():
  """Configures seven sizes of 140k to 1.3M parameters, three budgets, and one held out."""
  c = h200.get_config("0.001")
  c.sweep.name = "cpu"
  return c
