"""Trained runs as arrays: read from a table, checked, named by their content."""

import collections
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from configs.errors import DataError

# What some forms need besides, see `scaling.laws.forms`, and what `isoflop tune` does.
EXTRAS = ("U", "P", "pretrained", "lr", "batch", "timescale", "width")
LARGEST = 1e99  # of any N, D, C or loss that could be meant
DIVERGED = 1e98  # the loss of a run that has none, where such runs are read
MIN_RUNS = 6  # one more than the law has parameters
FAR = "N is more than fit.reach times from the best for its C, and the runs bend away from the form"
MIN_SPREAD = 0.1  # least SD of log D that log N leaves unexplained


class UnidentifiableError(DataError):
  """The law's parameters cannot be told from these runs."""


@dataclasses.dataclass(frozen=True)
class Runs:
  """Trained runs, in one fixed order; arrays are float64 [n]."""

  ids: tuple[str, ...]  # names, as the file has them, else its line numbers
  N: np.ndarray  # parameters
  D: np.ndarray  # tokens processed
  C: np.ndarray  # training FLOPs
  loss: np.ndarray  # validation loss [nats per token]
  excluded: tuple[tuple[str, str], ...] = ()  # runs of the file that are not here: (id, reason)
  params: str = "given"  # what N counts: of PARAMS, or "given": as whoever gave the numbers counts
  flops: str = "exact"  # what C counts: exact (as given), or 6nd
  loss_on: str = ""  # the validation set that the loss is on; "": the main one
  filters: tuple[str, ...] = ()  # the conditions that chose them: "where D/N > 5", "exclude ..."
  by_loss: tuple[str, ...] = ()  # those of them that left out runs by their loss
  extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # EXTRAS, [n] each
  labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # the file's texts [n]
  whole: "Runs | None" = None  # with those that a fit left out (`misfit.solve_near`); None: these

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def variables(self) -> dict[str, np.ndarray]:
    """What a form may read, by name, arrays [n]."""
    return {"N": self.N, "D": self.D, "C": self.C, **self.extra}

  def subset(self, index: np.ndarray) -> "Runs":
    """Selects the runs at some positions [m], in that order."""
    return dataclasses.replace(
      self,
      whole=None,
      ids=tuple(self.ids[i] for i in index),
      extra={name: values[index] for name, values in self.extra.items()},
      labels={name: values[index] for name, values in self.labels.items()},
      **{name: getattr(self, name)[index] for name in ("N", "D", "C", "loss")},
    )


def make_runs(
  N: ArrayLike,
  D: ArrayLike,
  loss: ArrayLike,
  C: ArrayLike | None = None,
  ids: Sequence[str] = (),
  extra: Mapping[str, ArrayLike] | None = None,
  labels: Mapping[str, np.ndarray] | None = None,
) -> Runs:
  """Makes runs of arrays [n], in a canonical order; C defaults to 6 N D.

  Raises:
    DataError: a value is not a positive finite number, or N, D or C below 1.
  """
  with np.errstate(over="ignore"):
    product = 6.0 * np.asarray(N, float) * np.asarray(D, float)
  given = {"N": N, "D": D, "C": product if C is None else C, "loss": loss}
  columns: dict[str, Any] = {name: np.asarray(values, float) for name, values in given.items()}
  ids = ids or [str(i) for i in range(columns["N"].size)]
  for name, values in columns.items():
    most = np.inf if name == "C" else LARGEST  # C may be a product of them
    bad = np.flatnonzero(~((values > 0) & (values < most)))
    if len(bad):
      raise DataError(
        f"run {ids[bad[0]]}, column {name}: {values[bad[0]]} is not a positive finite number; "
        "correct the run or remove it"
      )
    if name in "NDC" and (values < 1).any():
      i = int(np.argmin(values))
      unit = "petaflop/s-days" if name == "C" else "billions"
      raise DataError(
        f"run {ids[i]}, column {name}: {name} is {values[i]:.4g}: in {unit}? N counts "
        "parameters, D tokens and C FLOPs; multiply the column"
      )
  order = np.lexsort([columns[name] for name in ("loss", "C", "D", "N")])
  return Runs(
    ids=tuple(ids[i] for i in order),
    **{name: values[order] for name, values in columns.items()},
    flops="6nd" if C is None else "exact",
    extra={name: np.asarray(values, float)[order] for name, values in (extra or {}).items()},
    labels={name: values[order] for name, values in (labels or {}).items()},
  )


def input_hash(runs: Runs) -> str:
  """Computes the SHA-256 of all runs' (N, D, C, loss), whatever their order in the file."""
  runs = runs.whole or runs
  table = np.stack([runs.N, runs.D, runs.C, runs.loss], axis=1).astype("<f8")
  return hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest()


def faults(runs: Runs) -> list[tuple[tuple[str, ...], str, str]]:
  """Lists why a design of runs cannot tell the law, worst first; nothing if it can.

  Returns:
    Per fault the quantities that cannot be told, the reason, and the remedy.
  """
  faults: list[tuple[tuple[str, ...], str, str]] = []
  optimum = ("a", "N_opt", "D_opt")
  points = len(set(zip(runs.N, runs.D, strict=True)))
  if points < MIN_RUNS:
    reasons = collections.Counter(reason for _, reason in runs.excluded).most_common(3)
    out = "; left out were " + ", ".join(f"{n} by {why!r}" for why, n in reasons) if reasons else ""
    reason = (
      f"{len(runs)} runs at {points} distinct (N, D); the law has 5 parameters and needs "
      f"{MIN_RUNS} or more"
    )
    faults.append((("E", "A", "B", "alpha", "beta", *optimum), reason, f"train more cells{out}"))
  levels = [len(np.unique(values)) for values in (runs.N, runs.D)]
  for level, name, factor, exponent in zip(
    levels, ("sizes N", "token counts D"), "AB", ("alpha", "beta"), strict=True
  ):
    if level < 3:
      reason = f"{level} distinct {name}; {exponent} cannot be told from E with fewer than 3"
      faults.append((("E", factor, exponent, *optimum), reason, "train more of them"))
  if min(levels) < 3:
    return faults
  log_n, log_d = np.log(runs.N), np.log(runs.D)
  slope, intercept = np.polyfit(log_n - log_n.mean(), log_d, 1)
  spread = np.std(log_d - intercept - slope * (log_n - log_n.mean()))
  if spread < MIN_SPREAD:
    reason = (
      f"D follows N^{slope:.2f} to within {100 * spread:.1f} % in all {len(runs)} runs (as it "
      "does at one tokens-per-parameter ratio or one budget); alpha and beta cannot be told apart"
    )
    faults.append((("A", "B", "alpha", "beta", *optimum), reason, "vary D at each N"))
  return faults


def identifiability(runs: Runs) -> dict[str, str | None]:
  """Tells for each quantity of the law why a design of runs cannot tell it; None where it can."""
  names = ("E", "A", "B", "alpha", "beta", "a", "N_opt", "D_opt")
  reasons: dict[str, str | None] = dict.fromkeys(names)
  for affected, reason, _ in faults(runs):  # the last is the most particular
    reasons |= dict.fromkeys(affected, reason)
  return reasons


def check_identifiable(runs: Runs) -> None:
  """Raises UnidentifiableError for runs from which the law's parameters cannot be told."""
  for _, reason, remedy in faults(runs):
    raise UnidentifiableError(f"fit: {reason}: {remedy}")
