r"""Eight minutes of one H100: `h200.py` at a tenth of its compute, held out at five times.

  isoflop plan --target=h100 --config=configs/sweeps/gpu_minutes.py \
    --config.data.source=text:~/books
  isoflop sweep --config=configs/sweeps/gpu_minutes.py --workdir=runs/minutes \
    --config.data.source=text:~/books

The argument is that of `h200.py`: `gpu_minutes.py:0.0003,mlm` is a rehearsal on a CPU. 4e16 FLOPs
in all, of which the three held-out cells are 3e16. `tests/release/gpu_minutes.sh` runs it, and then
benchmarks of the same card. Compiled on an H100 (2026-11-28), and not yet run on one.

Why these numbers, where they are not those of `h200.py`: five sizes from 0.7M to 11M are enough for
four budgets whose optima, at 20 tokens per parameter, would be 1.3M to 4M, and 9M at the held-out
one; simulated with runs that scatter by 0.2 and by 0.5 %, all of 12 sweeps determined N* there
within a factor of 2.1 and 2.9, and with three budgets one of 12 did not. Half the vocabulary keeps
the smallest one's body larger than its embedding. Layers are unrolled, which is 1.3 times as near
to the card's peak by the compiled programs (docs/targets.md) and compiles in as much time;
activations are bfloat16.
"""

import math

from configs.sweeps import h200


def get_config(argument: str = "1"):
  """Configures the sweep; the argument is that of `h200.py`."""
  c = h200.get_config(argument)
  scale = float(argument.partition(",")[0])
  vocabulary = max(512, int(c.data.tokenizer.partition(":")[2]) // 2)
  c.data.tokenizer = f"bpe:{vocabulary}"
  c.sweep.name = f"gpu minutes {argument}"
  c.model.scan = False
  c.model.activations = "bfloat16" if scale == 1 else "float32"  # a CPU gains nothing by it
  c.sweep.sizes = h200.nearest((2, 3, 4, 5, 6), c.model.ladder, vocabulary, math.sqrt(scale))
  c.sweep.budgets = tuple(scale * budget for budget in (2e14, 4.5e14, 1e15, 2e15))
  c.sweep.max_tokens_per_param = 130.0
  c.sweep.seed_sizes = c.sweep.sizes[:2]
  c.sweep.seed_budgets = c.sweep.budgets[:1]
  c.sweep.probe_sizes = c.sweep.sizes[:3:2]
  c.sweep.probe_tokens = round(6e6 * math.sqrt(scale))
  c.sweep.heldout_budgets = (5.0,)
  c.sweep.heldout_sizes = (0.7, 1.0, 1.4)
  c.train.eval_tokens = round(1e6 * math.sqrt(scale))
  return c
