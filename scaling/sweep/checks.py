"""What the fields of `config.sweep` may hold: looked at before any cell is planned."""

import math
from collections.abc import Iterable

from ml_collections import ConfigDict

from configs import ladders
from configs.errors import ConfigError


def check(config: ConfigDict) -> None:
  """Raises ConfigError where a field of `config.sweep` cannot be, or wastes compute."""
  s = config.sweep
  if s.design not in ("isoflop", "grid"):
    raise ConfigError(f"sweep.design={s.design!r}: unknown; choose isoflop or grid")
  axis = "budgets" if s.design == "isoflop" else "token_counts"
  for name in ("sizes", axis, "seed_sizes", "seed_budgets", "probe_sizes"):
    again = [value for i, value in enumerate(s[name]) if value in s[name][:i]]
    if again:
      raise ConfigError(
        f"sweep.{name}={tuple(s[name])}: {again[0]} comes twice (a flag that is given again adds "
        "to the first); name it once"
      )
  if len(s.sizes) < 2 or len(s[axis]) < 2:
    raise ConfigError(
      f"sweep.sizes={tuple(s.sizes)}, sweep.{axis}={tuple(s[axis])}: a law in N and D needs at "
      "least two of each"
    )
  for name in ("seed_sizes", "probe_sizes"):
    known = ladders.rungs(config.model.ladder) if name == "probe_sizes" else s.sizes
    wrong = [size for size in s[name] if size not in known]
    if wrong:
      raise ConfigError(f"sweep.{name}={tuple(s[name])}: {wrong[0]} is not among {sorted(known)}")
  if set(s.seed_budgets) - set(s.budgets):
    raise ConfigError(f"sweep.seed_budgets={tuple(s.seed_budgets)}: not all in sweep.budgets")
  ascending = list(s.probe_factors) == sorted(set(s.probe_factors))
  for name, holds, need in (
    (axis, _positive(s[axis]), "be positive, every value of it"),
    ("seeds", s.seeds >= 1, "be at least 1, as it counts the first"),
    ("workers", s.workers >= 0, "not be negative; 0: one per core"),
    ("pack", s.pack >= 0, "not be negative; 0 leaves it to the planner"),
    ("heldout_factor", 1 <= s.heldout_factor < math.inf, "be at least 1"),
    ("heldout_budget", 0 <= s.heldout_budget < math.inf, "not be negative; 0: by heldout_factor"),
    ("heldout_sizes", _positive(s.heldout_sizes), "name positive multiples of N*, as (0.5, 1, 2)"),
    ("probe_tokens", not s.probe_sizes or _positive([s.probe_tokens]), "be positive"),
    (
      "probe_factors",
      not s.probe_sizes or (ascending and _positive(s.probe_factors)),
      "name positive multiples of a learning rate in ascending order, as (0.5, 1, 2)",
    ),
  ):
    if not holds:
      value = tuple(s[name]) if isinstance(s[name], tuple) else s[name]
      raise ConfigError(f"sweep.{name}={value}: must {need}")
  if config.train.stop_at_step:
    raise ConfigError(
      f"train.stop_at_step={config.train.stop_at_step}: a sweep's runs go to their ends; leave it "
      "at 0"
    )
  if s.probe_sizes and config.optim.lr:
    raise ConfigError(
      f"optim.lr={config.optim.lr}: a sweep with probes takes its learning rates from them; "
      "leave it at 0, or set sweep.probe_sizes=() to train every size at this rate"
    )


def _positive(values: Iterable[float]) -> bool:
  """Returns whether there are values, and all are positive numbers."""
  values = list(values)
  return bool(values) and all(0 < value < math.inf for value in values)
