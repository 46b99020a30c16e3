"""What is known of the floor E of a law before any run is seen: `fit.E`."""

import math
import re
from statistics import NormalDist
from typing import NamedTuple

from configs.errors import ConfigError

NUMBER = r"(\d+\.?\d*|\.\d+)"


class Floor(NamedTuple):
  """Bounds of E, and a normal prior, in the unit of the loss."""

  low: float = 0.0
  high: float = math.inf
  mean: float = 0.0
  sd: float = 0.0  # 0: no prior
  scatter: float = 0.0  # SD of a run about the law, which a prior is weighed against

  @property
  def fixed(self) -> bool:
    """Whether E is not fitted."""
    return self.low == self.high

  @property
  def bounded(self) -> bool:
    """Whether an end of its range is the user's, and E there no sign of too few runs."""
    return self[:2] != UNKNOWN[:2]

  def pull(self, delta: float) -> float:
    """Computes the curvature by E of a cost that weighs the prior as Huber's weighs the runs.

    It is E psi^2 / E psi' of a normal residual over the prior's variance (Huber 1964): of least
    squares the ratio of the two variances.
    """
    if not self.sd:
      return 0.0
    c, normal = delta / max(self.scatter, 1e-12), NormalDist()
    inside, outside = math.erf(c / math.sqrt(2)), 2 * normal.cdf(-c)
    square = inside - 2 * c * normal.pdf(c) + c**2 * outside
    return (self.scatter / self.sd) ** 2 * square / inside


UNKNOWN = Floor()


def read_floor(text: str) -> Floor:
  """Reads `fit.E` [nats per token]: "" (fitted), 1.6, 1.4..1.8 or 1.6+-0.1 (mean and SD)."""
  if text == "":
    return UNKNOWN
  match = re.fullmatch(rf"{NUMBER}(?:(\.\.|\+-){NUMBER})?", text)
  first, sign, second = match.groups() if match else ("0", None, None)
  value, end = float(first), float(second or first)
  if sign == "+-" and end > 0:
    return Floor(mean=value, sd=end)
  if (sign is None and value > 0) or (sign == ".." and value < end):
    return Floor(value, end)
  raise ConfigError(
    f"fit.E={text!r}: must be 1.6 (held there), 1.4..1.8 (between), 1.6+-0.1 (a normal prior: mean "
    "and SD), or '' (fitted), in nats per token"
  )
