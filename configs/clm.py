"""One decoder-only model, causal language modelling, on Python's own standard library.

  isoflop train --config=configs/clm.py --workdir=runs/clm

About 20 s on one CPU core; validation loss about 1.9 nats per byte.
"""

from configs import base


def get_config():
  """Returns a 115k-parameter model on a million bytes."""
  c = base.get_config()
  c.model.size = 5
  c.train.tokens = 1_000_000
  return c
