r"""An hour of two CPU cores: `quick.py` tuned, on three times its compute, held out at 3 and 10x.

  isoflop tune  --config=configs/sweeps/cpu.py --workdir=runs/cpu_tune
  isoflop sweep --config=configs/sweeps/cpu.py --config.optim.rule=runs/cpu_tune/tune_all.json \
    --workdir=runs/cpu

Result (docs/records/cpu.json): predicted 2.447 [2.380, 2.501] nats per token at 1.35e+13 FLOPs,
trained to 2.417 (-1.2%); the minimum lies where it was predicted, at 7 [3, 20] tokens per
parameter; predicted 2.299 [2.204, 2.381] nats per token at 4.5e+13 FLOPs, trained to 2.221 (-3.4%);
the minimum lies where it was predicted, at 6 [1, 39] tokens per parameter (two cores of an AMD EPYC
(Zen 5), other work beside it, 2026-11-28, 46:13 min).

The sweep spent 56 CPU minutes, its tune 28. Both go on where they were stopped.

Why these numbers, where they are not those of `quick.py`: a forecast that reaches ten times as far
needs a law that is fitted over a factor of ten. The text has 5.2M tokens: at the farthest budget
the smallest of the three sizes read it 2.8 times, which is nearly as good as new text (Muennighoff
et al. 2023, arXiv:2305.16264).
"""

from configs.sweeps import quick


def get_config():
  """Configures seven sizes, five isoFLOP budgets, two held out, and the grid of their tune."""
  c = quick.get_config()
  c.sweep.name = "cpu"
  c.optim.lr_ref = 9e-3  # of the tune's grid
  c.optim.lr_exponent = -1 / 3
  c.sweep.sizes = (4, 6, 8, 10, 12, 13, 14)
  c.sweep.budgets = (4.5e11, 8e11, 1.4e12, 2.5e12, 4.5e12)
  c.sweep.seed_sizes = (6, 8)
  c.sweep.seed_budgets = (4.5e11, 8e11)
  c.sweep.seeds = 3
  c.sweep.heldout_budgets = (3.0, 10.0)
  c.sweep.heldout_seeds = 2
  c.tune.sizes = (4, 7, 10)
  c.tune.token_counts = (200_000, 500_000, 1_250_000)
  c.tune.batch_sizes = (2, 4, 8)
  c.tune.lr_factors = (0.5, 0.75, 1.1, 1.7)
  c.tune.heldout_size = 12
  c.tune.heldout_tokens = 2_000_000
  return c
