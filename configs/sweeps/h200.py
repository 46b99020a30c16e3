r"""An H200 for an hour or so: a law on 95M tokens of books, for models of 2M to 38M parameters.

  isoflop sweep --config=configs/sweeps/h200.py --workdir=runs/h200 \
    --config.data.source=text:~/books

The argument is a scale of the compute and an objective: `h200.py:1,mlm`, `h200.py:1,span`. Below 1
the same file is a rehearsal on a CPU: `h200.py:0.0001` has a hundredth of every size and of every
number of tokens, ten minutes on two cores; `h200.py:0.001` is planned at an hour, `h200.py:0.01` at
ten. Where the machine is lent for half an hour at a time, run

  timeout --signal=TERM 28m isoflop sweep ...

and the same again: every run saves its state and goes on from there. Planned, and not yet run on a
GPU: 2.5e17 FLOPs, of which the three held-out cells are half.

Why these numbers:
- Widths are 64 a layer in heads of 64, which suits a GPU's flash attention and its tiles. Sizes are
  a factor 1.4 to 2 apart. At 20 tokens per parameter the budgets' optima would be 4M, 7M and 13M,
  and the held-out one 18M; there are twice as many larger sizes than smaller ones, as text of a
  small vocabulary tends to ask for fewer tokens than that.
- Text is repeated: at 2e16 FLOPs 7M parameters read 90M tokens four times. Muennighoff et al. 2023
  (arXiv:2305.16264) find up to four epochs nearly as good as new text; no fitted cell has over 4.1:
  that is what 59 tokens per parameter cut off, for all three objectives. A held-out cell that is
  smaller than planned may need 8.1, where repeated text is worth less than new; nine are allowed.
- A step is 32 sequences of 1,024 tokens, near the batch that the rule of Porian et al. 2024
  (arXiv:2406.19146) gives 4M parameters; the shortest cell still takes 600 steps.
- A book is about 130 sequences long, so attention crosses the boundaries: isolated documents would
  need a mask for every sequence, which one in a hundred would use.
- Operands are bfloat16, weights and sums float32. Logits would be 0.5 GB; they are made in two
  parts, and of the head alone something is computed again.
- Scaled down, N and D shrink by the root of the compute, and so do the tokens of a step: the number
  of steps stays. Vocabulary and context shrink too, or the head would be most of the model.
"""

import math

from configs import base, ladders, presets
from configs.errors import ConfigError

OBJECTIVES = tuple(names[0] for names in base.FAMILIES.values())
SIZES = (3, 4, 5, 6, 7, 8, 9)  # of the ladder `standard`: 2.1, 4.2, 7.5, 12, 19, 27 and 38M


def get_config(argument: str = "1"):
  """Configures the sweep at a scale of its compute, for an objective: "SCALE" or "SCALE,OBJECTIVE".

  Raises:
    ConfigError: the scale is not in (0, 1], or there is no such objective.
  """
  number, _, objective = argument.partition(",")
  objective = objective or "clm"
  try:
    scale = float(number)
  except ValueError:
    scale = math.nan
  if not 0 < scale <= 1 or objective not in OBJECTIVES:
    raise ConfigError(
      f"h200.py:{argument}: write SCALE or SCALE,OBJECTIVE, as 1 or 0.01,mlm; SCALE at most 1, "
      f"OBJECTIVE one of {', '.join(OBJECTIVES)}"
    )
  root = math.sqrt(scale)
  shrink = 2 ** round(-0.3 * math.log2(scale))
  vocabulary = max(512, 4096 // shrink)

  c = base.get_config()
  c.sweep.name = f"h200 {argument}"
  presets.set_family(c, base.family_of(objective))
  c.model.ladder = "standard" if scale == 1 else "small"
  c.model.dtype = "bfloat16"
  c.model.scan = scale == 1  # a CPU takes longer for scanned layers, see quick.py
  c.data.tokenizer = f"bpe:{vocabulary}"
  c.data.seq_len = 1024 // shrink
  c.data.batch_size = round(32 * root * shrink)
  c.data.isolate_documents = False
  c.data.max_epochs = 9.0
  c.optim.warmup_tokens = round(2e6 * root)
  c.sweep.sizes = nearest(SIZES, c.model.ladder, vocabulary, root)
  c.sweep.budgets = tuple(scale * budget for budget in (2e15, 6e15, 2e16))
  c.sweep.min_tokens_per_param = 1.0
  c.sweep.max_tokens_per_param = 59.0
  c.sweep.seed_sizes = c.sweep.sizes[1:3]
  c.sweep.seed_budgets = c.sweep.budgets[:1]
  c.sweep.probe_sizes = c.sweep.sizes[1:4:2]
  c.sweep.probe_tokens = round(2e7 * root)
  c.sweep.heldout_budgets = (2.0,)
  c.sweep.heldout_sizes = (0.75, 1.0, 1.5)
  c.train.eval_tokens = round(2e6 * root)
  return c


def nearest(sizes: tuple[int, ...], ladder: str, vocabulary: int, factor: float) -> tuple[int, ...]:
  """Finds the rungs of a ladder nearest to `factor` times those sizes of the whole sweep."""

  def log_n(rung: ladders.Rung, vocabulary: int) -> float:
    return math.log(12 * rung.depth * rung.width**2 + vocabulary * rung.width)

  rungs = ladders.rungs(ladder)
  targets = [log_n(ladders.standard(size), 4096) + math.log(factor) for size in sizes]
  near = (min(rungs, key=lambda r: abs(log_n(rungs[r], vocabulary) - t)) for t in targets)
  return tuple(sorted(set(near)))
