"""Causal and masked language modelling on one text: how many tokens per parameter each wants.

  isoflop sweep --config=configs/sweeps/objectives.py --workdir=runs/objectives

The text and tokenizer of `quick.py`, for a decoder (clm) and for an encoder with 15 and 30 % of the
tokens masked (mlm): each a sweep with a law, a sealed prediction and a verdict, in
runs/objectives/{clm,mlm_15,mlm_30}, and runs/objectives/report.html with all of them side by side.
About three quarters of an hour on two idle cores; results: docs/verdict.md, "Three objectives".

Why these numbers:
- A text token counts once in D, whether or not it is predicted; predicted tokens per parameter
  stand beside it.
- mlm first learns how frequent tokens are and nothing else: up to .5M to 1M tokens, at any of these
  sizes. With cells of 1.3M tokens and more the law of 17 runs was undetermined (N* within a
  factor 13), with those of them above 2.2M within 1.3 to 1.7. Hence `min_tokens`, chosen on
  these runs with 30 % masked, and larger budgets than clm's, so that what is left brackets minima.
- T5's relative positions leave that plateau sooner than rotary ones, so all three have them.
- Batch and rate are those of a tune of mlm (docs/tune.md), and each arm probes its own rate. The
  best batch grows with D: one for all costs about 1 % at 6M tokens, and favours short runs.
- 30 % masked has two seeds and larger models at the largest budget: its minimum moves to larger
  models faster, and single runs that scatter by 1 % did not determine it.
- span is not here: it leaves its plateau at ten times the tokens (docs/verdict.md).
"""

from configs.sweeps import quick


def get_config():
  """Configures an isoFLOP design for clm, and a larger one for mlm at two mask rates."""
  c = quick.get_config()
  c.sweep.name = "objectives"
  c.sweep.sizes = (5, 7, 8, 9, 10, 12, 13, 14)
  c.sweep.arms = {
    "clm": {
      "objective": "clm",
      "optim": {"lr_ref": 8.6e-3},
      "sweep": {
        "budgets": (1e12, 1.8e12, 3.2e12, 5.6e12),
        "heldout_budgets": (2.0,),
        "min_tokens": 0,
        "min_tokens_per_param": 2.5,
      },
    },
    "mlm_15": {"objective": "mlm", "corruption": {"mlm_rate": 0.15}},
    "mlm_30": {
      "objective": "mlm",
      "corruption": {"mlm_rate": 0.3},
      "sweep": {"min_tokens_per_param": 5.0, "seed_sizes": c.sweep.sizes, "seeds": 2},
    },
  }
  c.model.positions = "relative"
  c.data.batch_size = 12
  c.optim.lr_ref = 5.7e-3
  c.sweep.budgets = (1.8e12, 3.2e12, 5.6e12, 1e13)
  c.sweep.heldout_budgets = (1.5,)
  c.sweep.min_tokens = 2_200_000
  c.sweep.min_tokens_per_param = 9.0
  c.sweep.max_tokens_per_param = 200.0
  c.sweep.seed_sizes, c.sweep.seeds = (), 1
  c.sweep.probe_sizes = (7,)
  c.sweep.probe_tokens = 2_000_000
  c.sweep.probe_factors = (0.6, 1.0, 1.7)
  return c
