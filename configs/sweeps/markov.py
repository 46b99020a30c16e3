"""A sweep on a source of known entropy: does the law find it as its E, does no loss go below it?

  isoflop sweep --config=configs/sweeps/markov.py --workdir=runs/markov

About 3 minutes on two cores. On 2026-11-21: floor 3.6666, fitted E 3.6245 [3.5889, 3.6430] nats per
token; the held-out loss was predicted as 3.731 and trained to 3.735.

Why these numbers:
- All there is to learn is a table of next symbols of a Markov chain over 256 of them: one layer is
  enough for it, and windows of 32 show it as well as longer ones.
- 16M tokens are more than any fitted cell reads: nothing can be learned by heart.
"""

from configs import base


def get_config():
  """Configures six sizes and four budgets on the chain."""
  c = base.get_config()
  c.sweep.name = "markov"
  c.data.source = "markov"
  c.data.markov_tokens = 16_000_000
  c.data.seq_len = 32
  c.data.batch_size = 32
  c.data.isolate_documents = False
  c.model.depth = 1
  c.model.scan = False
  c.optim.lr_ref = 1e-2
  c.optim.warmup_tokens = 20_000
  c.sweep.sizes = (5, 8, 10, 12, 13, 15)
  c.sweep.budgets = (1e11, 2e11, 4e11, 8e11)
  c.sweep.min_tokens_per_param = 2.0
  c.sweep.max_tokens_per_param = 200.0
  c.sweep.seed_sizes = (8, 10)
  c.sweep.seed_budgets = (1e11,)
  c.sweep.probe_sizes = (8, 12)
  c.sweep.probe_tokens = 400_000
  return c
