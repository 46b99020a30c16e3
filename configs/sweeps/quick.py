"""The main job: a verified scaling law of real text, in minutes on two CPU cores.

  isoflop sweep --config=configs/sweeps/quick.py --workdir=runs/quick
"""

from configs import base


def get_config():
  """Returns five sizes, four isoFLOP budgets, and a held-out budget three times the largest."""
  c = base.get_config()
  c.sweep.name = "quick"
  c.data.seq_len = 64
  c.data.batch_size = 8
  c.data.isolate_documents = False
  c.optim.warmup_tokens = 10_000
  c.sweep.sizes = (0, 1, 3, 5, 7)
  c.sweep.budgets = (0.5e11, 1e11, 2e11, 4e11)
  c.sweep.seed_sizes = (1, 3)
  c.sweep.seed_budgets = (0.5e11, 1e11)
  c.sweep.probe_sizes = (1, 5)
  c.sweep.probe_tokens = 200_000
  return c
