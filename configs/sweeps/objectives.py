"""Three objectives, one specification: causal, masked and span-corrupted language modelling.

  isoflop sweep --config=configs/sweeps/objectives.py --workdir=runs/objectives

The text and tokenizer of `quick.py`, for a decoder (clm), an encoder (mlm) and an encoder-decoder
(span): three sweeps with a law, a sealed prediction and a verdict each, in
runs/objectives/{clm,mlm,span}, and runs/objectives/report.html with the three side by side.

About twenty minutes on two cores. With budgets of 2.5e11 to 7e11 FLOPs, a quarter of an hour, the
predictions at 2.1e12 FLOPs were on Python 3.11's standard library, in nats per predicted token, clm
2.588 [2.560, 2.622] (trained to 2.574), mlm 2.887 [2.788, 2.973] (2.782, a miss), span 3.169
[3.116, 3.217] (3.152; but at half of N* 2.865).

Why these numbers:
- Equal sizes, budgets and held-out factor are what makes the optima comparable. A text token counts
  once in D, whether or not it is predicted; predicted tokens per parameter stand beside it.
- mlm first learns how frequent tokens are and nothing else, and no power law describes that. With
  rotary positions, 512 tokens a step and 15 % masked, 33k parameters had a loss of 4.58 nats after
  590k tokens; with T5's relative positions 4.15, and with steps of 256 tokens too 3.78. Hence both,
  for all three objectives; for mlm 30 % masked (Wettig et al. 2022, arXiv:2202.08005, find more
  than BERT's 15 % to be better), no cells below 8.5 tokens per parameter, and larger budgets than
  those of `quick.py`. These were chosen on mlm runs up to 7e11 FLOPs, none of them held out.
- The learning rate is probed on 500k tokens, as mlm's first 200k say little about the rest.
- An encoder-decoder has two stacks at the same size, but a text token passes one of them: per token
  it costs about as much as a decoder of that size, which has half its parameters. One range of
  sizes serves all three.
- span first stays on a plateau, where its decoder hardly reads the encoder: given another text's
  source, the largest fitted cell of size 2 loses 0.05 nats, and the held-out cell that had just
  left the plateau 0.61. The law fitted here is that of the plateau, and says nothing beyond it.
- Sixteen sentinels are enough for 64 tokens, and keep the head of span that of the others.
"""

from configs.sweeps import quick


def get_config():
  """Configures six sizes and four isoFLOP budgets for each of three objectives."""
  c = quick.get_config()
  c.sweep.name = "objectives"
  c.sweep.arms = {
    "clm": {"objective": "clm"},
    "mlm": {
      "objective": "mlm",
      "corruption": {"mlm_rate": 0.3},
      "sweep": {"min_tokens_per_param": 8.5},
    },
    "span": {"objective": "span"},
  }
  c.model.positions = "relative"
  c.data.batch_size = 4
  c.optim.lr_ref, c.optim.lr_exponent = 9e-3, -1 / 3  # quick's are tuned, for clm alone
  c.corruption.sentinels = 16
  c.sweep.sizes = (1, 2, 3, 5, 7, 8)
  c.sweep.budgets = (2.5e11, 4.3e11, 7.4e11, 1.27e12)
  c.sweep.min_tokens_per_param = 4.0
  c.sweep.max_tokens_per_param = 200.0
  c.sweep.seed_sizes, c.sweep.seed_budgets, c.sweep.seeds = (5, 7), (2.5e11,), 3
  c.sweep.probe_tokens = 500_000
  return c
