"""What a sweep has written so far, read back from its workdir, for its figures and report."""

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError
from scaling.formats import bracket, flops, nats, si
from scaling.laws import chinchilla
from scaling.laws.chinchilla import at_edge, unbounded
from train.system import files

COUNTS = {"body_head": "N", "body": "params_body", "total": "params_total"}  # by fit.params
TEXT_COLUMNS = ("cell", "kind", "objective", "status")

Cell = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Record:
  """What a sweep has written so far; a missing file is an empty dict or list."""

  workdir: Path
  sweep: dict[str, Any]
  cells: list[Cell]  # rows of cells.csv: text as text, numbers as float, blanks as nan
  fit: dict[str, Any]
  prediction: dict[str, Any]
  verification: dict[str, Any]

  def done(self, *kinds: str) -> list[Cell]:
    """Returns the cells of these kinds that ran to their end and have a finite loss."""
    done = [c for c in self.cells if c["status"] == "done" and math.isfinite(c["loss"])]
    return [c for c in done if c["kind"] in kinds]

  @property
  def foreign(self) -> bool:
    """Whether these are someone's runs, fitted in a folder of their own: there is no sweep."""
    return not self.sweep and bool(self.cells)

  @property
  def law(self) -> chinchilla.Chinchilla:
    """The fitted law."""
    return chinchilla.Chinchilla(**{k: np.array(v) for k, v in self.fit["params"].items()})

  @property
  def undetermined(self) -> tuple[str, ...]:
    """Parameters of the law that the runs do not determine, without which it has no optimum."""
    return unbounded(self.fit.get("convergence", {}).get("at_bound", ()))

  @property
  def profiles(self) -> list[dict[str, Any]]:
    """The isoFLOP profiles of approach 2, by budget."""
    return sorted(self.fit.get("approach2", {}).get("profiles", []), key=lambda p: p["C"])

  @property
  def optimum(self) -> list[dict[str, Any]]:
    """The compute-optimal points by budget, with the sealed one among them; [] of no law."""
    if self.undetermined:
      return []
    rows = [
      {k: [math.nan] * 2 if v is None else v for k, v in row.items()}  # an open interval
      for row in self.fit.get("optimum", [])
    ]
    sealed = self.prediction
    if rows and sealed:
      pairs = (("N_opt", "N"), ("D_opt", "D"), ("loss", "loss"))
      row = {a: sealed[b] for a, b in pairs} | {
        f"{a}_interval": sealed.get(f"{b}_interval" if b != "loss" else "interval")
        for a, b in pairs
      }
      ratio = {k: sealed[k] for k in ("tokens_per_param", "tokens_per_param_interval")}
      rows.append({"C": sealed["C"], "sealed": True, "extrapolation": math.inf} | row | ratio)
    return sorted(rows, key=lambda o: o["C"])

  @property
  def target(self) -> float:
    """The rule of thumb to compare with [tokens per parameter]."""
    return float(self.sweep.get("config", {}).get("fit", {}).get("target_tokens_per_param", 20.0))

  @property
  def objectives(self) -> tuple[str, ...]:
    """The objectives whose sweeps lie in folders of their names; () in a sweep of one."""
    return tuple(self.sweep.get("config", {}).get("sweep", {}).get("objectives", ()))

  @property
  def headline(self) -> str:
    """The outcome so far in one sentence, with its numbers."""
    if self.verification.get("verdict"):
      return self.verification["verdict"]
    if p := self.prediction:
      return (
        f"Sealed, not yet tested: at {flops(p['C'])} FLOPs, N = {si(p['N'])} on {si(p['D'])} "
        f"tokens will reach {nats(p['loss'])} {bracket(p['interval'])} nats/token."
      )
    if bound := self.undetermined:
      return f"No law yet: on {self.fit['n_runs']} runs {at_edge(bound)}."
    if self.fit:
      return (
        f"Fitted on {self.fit['n_runs']} runs, nothing predicted yet: N_opt grows as "
        f"C^{self.fit['a']:.3f}, D_opt as C^{self.fit['b']:.3f}."
      )
    done = sum(c["status"] == "done" for c in self.cells)
    return f"{done} of {len(self.cells)} cells are done; nothing is fitted yet."

  def lacks(self, *needs: str) -> str:
    """Returns what is missing of what a figure needs, or ""."""
    there: dict[str, tuple[Any, str]] = {
      "runs": (self.done("fit"), "no fit cell is done"),
      "curves": ((self.workdir / "cells").is_dir(), "there are no training curves"),
      "law": (self.fit.get("params"), "there is no fit.json yet"),
      "profiles": (self.profiles, "fit.json has no isoFLOP profiles"),
      "choices": (self.fit.get("choices"), "fit.json has no choices"),
      "optimum": (len(self.optimum) > 1, "fit.json tells no optimum at two budgets"),
    }
    return next((reason for found, reason in map(there.__getitem__, needs) if not found), "")


def read(workdir: str | Path) -> Record:
  """Reads the records of a sweep, of which any may be missing.

  Raises:
    DataError: there is no such folder, or a record in it is broken.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise DataError(f"workdir={str(workdir)!r}: no such folder; run `isoflop sweep` first")
  cells: list[Cell] = []
  tables = [workdir / name for name in ("cells.csv", "runs.csv") if (workdir / name).exists()]
  if tables:
    with tables[0].open(newline="") as lines:
      for row in csv.DictReader(lines):
        cells.append({k: v if k in TEXT_COLUMNS else float(v or "nan") for k, v in row.items()})
  names = ("sweep", "fit", "prediction", "verification")
  records = {name: files.read_json(workdir / f"{name}.json") or {} for name in names}
  counted = records["sweep"].get("config", {}).get("fit", {}) | records["fit"].get("counting", {})
  for cell in cells if tables and tables[0].name == "cells.csv" else ():  # as the fit counts
    cell["N"] = cell[COUNTS.get(counted.get("params"), "N")]
    cell["C"] = 6 * cell["N"] * cell["D"] if counted.get("flops") == "6nd" else cell["C"]
  for cell in cells:
    cell["tokens_per_param"] = cell["D"] / cell["N"]
  return Record(workdir, cells=cells, **records)


def column(cells: list[Cell], name: str) -> np.ndarray:
  """Returns one column of some cells [n]."""
  return np.array([c[name] for c in cells], float)


def extrapolated(optimum: dict[str, Any]) -> bool:
  """Returns whether an optimum lies outside the runs that were fitted."""
  return optimum.get("extrapolation", 1.0) > 1.05
