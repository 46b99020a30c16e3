"""The main job: a verified scaling law of real text, in minutes on two CPU cores.

  isoflop sweep --config=configs/sweeps/quick.py --workdir=runs/quick
"""

from configs import base


def get_config():
  """Returns five sizes, four isoFLOP budgets, and a held-out budget three times the largest."""
  c = base.get_config()
  c.sweep.name = "quick"
  c.data.batch_size = 4
  c.data.isolate_documents = False
  c.optim.warmup_tokens = 10_000
  c.sweep.sizes = (0, 2, 4, 6, 8)
  c.sweep.budgets = (0.5e11, 1e11, 2e11, 4e11)
  c.sweep.seed_sizes = (2, 4)
  c.sweep.seed_budgets = (0.5e11, 1e11)
  c.sweep.probe_sizes = (2, 6)
  c.sweep.probe_tokens = 150_000
  return c
