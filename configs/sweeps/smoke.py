"""The whole way of a sweep, to a verdict, in about two minutes on two CPU cores: to try a change.

  isoflop sweep --config=configs/sweeps/smoke.py --workdir=runs/smoke

It is `markov.py` with smaller models, shorter runs, no probe and no repeats: nothing is to be
concluded from its law, which so short runs leave wide.
"""

from configs.sweeps import markov


def get_config():
  """Configures six sizes and four budgets a hundredth of those of `markov.py`."""
  c = markov.get_config()
  c.sweep.name = "smoke"
  c.data.markov_tokens = 4_000_000
  c.optim.warmup_tokens = 4_000
  c.sweep.sizes = (3, 4, 5, 6, 8, 10)
  c.sweep.budgets = (1e10, 2e10, 4e10, 8e10)
  c.sweep.min_tokens_per_param, c.sweep.max_tokens_per_param = 0.0, 1e9
  c.sweep.seed_sizes = c.sweep.seed_budgets = c.sweep.probe_sizes = ()
  return c
