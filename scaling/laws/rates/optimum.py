"""The law of the best learning rate, batch size and decay timescale: what is kept of a fit."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from configs.errors import ConfigError
from train.system import files

DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class Optimum:
  """How the best factors grow with N and D, how sure that is, and what missing them costs."""

  names: tuple[str, ...]  # of the factors, k
  optimum: np.ndarray  # log x* = c0 + c1 log N + c2 log D, in nats, tokens and parameters [k, 3]
  covariance: np.ndarray | None  # of it [3k, 3k]; None where the cells are too few for intervals
  freedom: int  # degrees of freedom of the covariance
  curvature: np.ndarray  # A, of log loss, at the geometric means of N and D [k, k]
  powers: tuple[float, float]  # (p, q) with which curvature grows in N and D
  centre: np.ndarray  # the logarithms of the geometric means of N and D

  def best(self, N: float, D: float, **given: float) -> dict[str, float]:
    """Computes the best factors at (N, D), where some are `given`: a batch size, for instance."""
    x = self.optimum @ [1.0, np.log(N), np.log(D)]
    held = np.array([name in given for name in self.names])
    if held.any():
      moved = np.log([given[name] for name in self.names if name in given]) - x[held]
      A = self.curvature
      x[~held] -= np.linalg.solve(A[np.ix_(~held, ~held)], A[np.ix_(~held, held)] @ moved)
      x[held] += moved
    return dict(zip(self.names, np.exp(x).tolist(), strict=True))

  def loss_lost(self, N: float, D: float, factors: Mapping[str, float]) -> float:
    """Computes by what share factors at (N, D) miss the least loss there, as the law has it."""
    best = self.optimum @ [1.0, np.log(N), np.log(D)]
    off_1K = np.log([[factors[name] for name in self.names]]) - best
    return float(self._lost(N, D, off_1K)[0])

  def _lost(self, N: float, D: float, off_RK: np.ndarray) -> np.ndarray:
    """Computes what is lost at distances from the optimum, in log factors [R]."""
    scale = np.exp(np.asarray(self.powers) @ (np.log([N, D]) - self.centre))
    log_lost_R = scale * np.einsum("ri,ij,rj->r", off_RK, self.curvature, off_RK)
    return np.expm1(np.minimum(log_lost_R, 700.0))  # a law of few cells has draws beyond a float

  def draw_loss_lost(self, N: float, D: float) -> np.ndarray:
    """Draws what the law's choice at (N, D) loses, as its optimum is uncertain [DRAWS]."""
    assert self.covariance is not None
    k, point, rng = len(self.names), np.array([1.0, np.log(N), np.log(D)]), np.random.default_rng(0)
    covariance = np.einsum("iajb,a,b->ij", self.covariance.reshape(k, 3, k, 3), point, point)
    scale = np.sqrt(self.freedom / rng.chisquare(self.freedom, DRAWS))
    off_RK = rng.multivariate_normal(np.zeros(k), covariance, DRAWS) * scale[:, None]
    return self._lost(N, D, off_RK)

  def intervals(self, level: float) -> np.ndarray | None:
    """Computes the interval of each coefficient [2, k, 3]: Student's."""
    if self.covariance is None:
      return None
    spread = np.sqrt(np.diag(self.covariance)).reshape(self.optimum.shape)
    reach = special.stdtrit(self.freedom, (1 + level) / 2) * spread
    return np.stack([self.optimum - reach, self.optimum + reach])

  def best_interval(self, N: float, D: float, level: float) -> dict[str, list[float]] | None:
    """Computes the interval of each best factor at (N, D)."""
    if self.covariance is None:
      return None
    point, k = np.array([1.0, np.log(N), np.log(D)]), len(self.names)
    spread = np.sqrt(np.einsum("iaib,a,b->i", self.covariance.reshape(k, 3, k, 3), point, point))
    reach = special.stdtrit(self.freedom, (1 + level) / 2) * spread
    ends = np.exp(self.optimum @ point + np.outer([-1, 1], reach))
    return {name: ends[:, i].tolist() for i, name in enumerate(self.names)}

  def to_json(self) -> dict[str, Any]:
    """Turns it into JSON; `load` turns it back."""
    fields = {x.name: getattr(self, x.name) for x in dataclasses.fields(Optimum)}
    arrays = {k: v.tolist() for k, v in fields.items() if isinstance(v, np.ndarray)}
    return fields | arrays


def load(content: Mapping[str, Any]) -> Optimum:
  """Reads the law from the content of tune.json."""
  law = dict(content["law"])
  arrays = {name: np.array(law[name]) for name in ("optimum", "curvature", "centre")}
  covariance = None if law["covariance"] is None else np.array(law["covariance"])
  names, powers = tuple(law["names"]), tuple(law["powers"])
  return Optimum(**law | arrays | {"covariance": covariance, "names": names, "powers": powers})


def read(rule: str) -> tuple[Optimum, str]:
  """Reads the law of `optim.rule`, "PATH" or "PATH#HASH"; returns it and the name with the hash.

  Raises:
    ConfigError: there is no such file, or it has another hash.
    DataError: it was altered.
  """
  name, _, expected = rule.partition("#")
  path = Path(name).expanduser().absolute()
  content = files.read_record(path)
  if not {"law", "hash"} <= (content or {}).keys():
    raise ConfigError(f"optim.rule={name}: no tune.json there; `isoflop tune` writes one")
  digest = content["hash"][:16]
  if expected not in ("", digest):
    raise ConfigError(f"optim.rule={rule}: the file's hash is {digest}; put the first file back")
  return load(content), f"{path}#{digest}"
