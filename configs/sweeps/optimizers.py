"""AdamW against Muon: what does the optimizer gain at equal compute?

  isoflop sweep --config=configs/sweeps/optimizers.py --workdir=runs/optimizers

The design of `quick.py`, once per optimizer: two laws with a sealed prediction and a verdict each,
in runs/optimizers/{adamw,muon}, and runs/optimizers/report.html with the gain in nats, and in
compute for equal loss, at every budget. Twice the time of `quick.py`, and a little more.

Why these numbers:
- Each optimizer has a learning rate of its own, probed at the sizes and rates of `quick.py`. Muon's
  updates are scaled to the size of AdamW's, so one range serves both; a probe goes on beyond it
  where the best rate is at its edge.
- Sizes, budgets, seeds and the order of the data are the same in both arms, so each cell has a
  twin: intervals of the gain resample twins together, and what they have in common cancels.
- C counts the model's products, as everywhere. The optimizer's own, which for Muon are five
  Newton-Schulz steps on each matrix, show in the seconds of the runs.
"""

from configs.sweeps import quick


def get_config():
  """Configures the quick sweep for two optimizers."""
  c = quick.get_config()
  c.sweep.name = "optimizers"
  c.sweep.arms = {
    "adamw": {"optim": {"name": "adamw"}},
    "muon": {"optim": {"name": "muon"}},
  }
  c.sweep.seed_sizes, c.sweep.seed_budgets, c.sweep.seeds = (5, 7), (3e11,), 3
  c.optim.lr_ref, c.optim.lr_exponent = 9e-3, -1 / 3  # quick's are tuned, for AdamW alone
  return c
