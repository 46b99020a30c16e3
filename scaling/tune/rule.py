"""The learning rates and batches of a sweep's cells: by a probe's rule, or by a tune.json."""

import math

import numpy as np
from ml_collections import ConfigDict

from configs.errors import ConfigError
from scaling.laws.rates import optimum
from train.objectives import registry


def with_lr_rule(config: ConfigDict, rule: dict | None) -> ConfigDict:
  """Returns the config with the learning-rate rule that a probe gave; None: as it is."""
  if not rule:
    return config
  config = config.copy_and_resolve_references()
  config.optim.lr_ref = rule["lr_ref"]
  config.optim.lr_exponent = rule["lr_exponent"]
  return config


def pinned(config: ConfigDict) -> ConfigDict:
  """Writes the hash of `optim.rule` behind it; a sweep that has a rule has no probe."""
  if not config.optim.rule:
    return config
  if config.optim.lr:
    raise ConfigError(f"optim.lr={config.optim.lr}: optim.rule gives the rates; leave one out")
  config = config.copy_and_resolve_references()
  config.optim.rule = optimum.read(config.optim.rule)[1]
  config.sweep.probe_sizes = ()
  return config


def by_rule(config: ConfigDict, n_params: int, tokens: float) -> tuple[float, int, float | None]:
  """Takes a run's learning rate, sequences per step and weight decay from `optim.rule`.

  The batch is rounded to a power of two, so that few programs are compiled, and the others are the
  best ones at that batch. A factor that the law does not have is the config's (decay: None).
  """
  law, _ = optimum.read(config.optim.rule)
  batch_size = config.data.batch_size
  each, best = registry.tokens_per_step(config) / batch_size, law.best(n_params, tokens)
  if "batch" in best:
    batch_size = 2 ** max(0, round(math.log2(best["batch"] / each)))
    best = law.best(n_params, tokens, batch=batch_size * each)
  decay = batch_size * each / (best["lr"] * best["timescale"]) if "timescale" in best else None
  return best["lr"], batch_size, decay


def told_cost(config: ConfigDict, n_params: float, tokens: float) -> str:
  """Says how much loss the choice of `optim.rule` may cost at (N, D), as far as its law knows."""
  law, name = optimum.read(config.optim.rule)
  if law.covariance is None:
    return f"{name} does not say how sure its rates are: it has too few (N, D)"
  most = np.quantile(law.draw_loss_lost(n_params, tokens), config.fit.level)
  return (
    f"rate and batch there cost {at_most(most)} of the loss ({config.fit.level:.0%}, by the law of "
    "its tune)"
  )


def at_most(lost: float) -> str:
  """Says a bound of what a choice loses [share of the loss]; one beyond the loss bounds nothing."""
  return f"at most {lost:.2%}" if lost < 1 else "a share that its runs do not bound"
