"""Probes the learning rate at a few sizes, and makes a rule for all sizes of it."""

import math

import numpy as np

from configs.errors import RunError
from scaling.sweep import plan, store
from scaling.sweep.training import Arm, train_cells
from train import optim

MAX_EXTENSIONS = 3  # of a probe whose best rate is at its edge


def probe(arm: Arm) -> dict | None:
  """Trains the learning-rate probe and makes a rule of it; None: the sweep has no probe.

  At each size the best multiple of the rule's rate is the minimum of a parabola in log rate through
  the best cell and its neighbours; where the best cell is at the edge, the rate beyond it is tried
  too. The rule's lr_ref becomes the geometric mean over the sizes; its exponent stays, as a few
  probes a factor apart in N determine it worse than the literature does. A size whose best rate is
  still at the edge after `MAX_EXTENSIONS` is said, and marked in the rule: a law of other rates
  than the best is another law.
  """
  config = arm.config
  factors = {size: list(config.sweep.probe_factors) for size in config.sweep.probe_sizes}
  if not factors:
    return None
  for _ in range(MAX_EXTENSIONS + 1):
    cells = {
      size: plan.probe_cells(config, arm.tokens.vocab_size, size, factors[size]) for size in factors
    }
    train_cells(arm, [cell for some in cells.values() for cell in some], "probe")
    best, open_sizes = {}, set[int]()
    for size in factors:
      losses = [store.outcome(arm.workdir, cell).get("loss", math.inf) for cell in cells[size]]
      if not math.isfinite(min(losses)):
        raise RunError(f"no learning-rate probe of size {size} trained; see workers.log")
      best[size], beyond = best_factor(factors[size], losses)
      if beyond:
        factors[size] = sorted([*factors[size], beyond])
        open_sizes.add(size)
    if not open_sizes:
      break
  n_params = {size: some[0].N for size, some in cells.items()}
  rates = {s: best[s] * optim.base_learning_rate(config.optim, n_params[s]) for s in factors}
  for size in open_sizes:
    arm.display.say(
      f"Warning: the best learning rate probed at size {size}, {rates[size]:.2e}, is at the "
      f"probe's edge after {MAX_EXTENSIONS} extensions; begin with optim.lr_ref nearer to the best"
    )
  exponent = config.optim.lr_exponent
  x = np.log([n_params[s] / config.optim.lr_ref_params for s in factors])
  y = np.log([rates[s] for s in factors])
  return {
    "lr_ref": float(np.exp(np.mean(y - exponent * x))),
    "lr_ref_params": config.optim.lr_ref_params,
    "lr_exponent": exponent,
    "probes": [
      {"size": s, "N": n_params[s], "lr": rates[s], "factor": best[s], "at_edge": s in open_sizes}
      for s in factors
    ],
  }


def best_factor(factors: list[float], losses: list[float]) -> tuple[float, float | None]:
  """Finds the best of ascending factors, and the one to try beyond an edge, if it is there.

  `losses` are inf where training diverged.
  """
  i = int(np.argmin(losses))
  if i == 0:
    return factors[0], factors[0] ** 2 / factors[1] if len(factors) > 1 else None
  if i == len(factors) - 1:
    return factors[-1], factors[-1] ** 2 / factors[-2]
  if not math.isfinite(losses[i + 1]) or not math.isfinite(losses[i - 1]):
    return factors[i], None
  x = np.log(factors[i - 1 : i + 2])
  c2, c1, _ = np.polyfit(x - x[1], losses[i - 1 : i + 2], 2)
  shift = -c1 / (2 * c2) if c2 > 0 else 0.0
  return float(factors[i] * np.exp(np.clip(shift, x[0] - x[1], x[2] - x[1]))), None
