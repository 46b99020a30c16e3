"""What a sweep has written so far, read back from its folder."""

import csv
import dataclasses
import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError
from scaling.claims import prediction_json
from scaling.formats import bracket, flops, nats, ratio, si
from scaling.laws.chinchilla import Compute
from scaling.laws.forms import FORMS
from scaling.laws.law import Law
from scaling.laws.tables.runs import FAR
from train.system import files

TEXT_COLUMNS = ("cell", "kind", "objective", "status", "trunk")
ESTIMATORS = {
  "approach1": "1: envelope of curves",
  "approach2": "2: isoFLOP parabolas",
  "huber": "3: Huber",
  "mse": "3: least squares",
  "lad": "3: least absolute deviations",
}
OUTSIDE = 1.05  # times outside the fitted runs, from where an optimum is marked

Cell = dict[str, Any]  # a row of cells.csv: text as text, numbers as float, blanks as nan


@dataclasses.dataclass(frozen=True)
class Results:
  """The files of a sweep's folder; one that is missing is an empty dict or list."""

  workdir: Path
  cells: list[Cell] = dataclasses.field(default_factory=list)
  sweep: dict[str, Any] = dataclasses.field(default_factory=dict)
  fit: dict[str, Any] = dataclasses.field(default_factory=dict)
  prediction: dict[str, Any] = dataclasses.field(default_factory=dict)
  verification: dict[str, Any] = dataclasses.field(default_factory=dict)

  def done(self, *kinds: str) -> list[Cell]:
    """Selects the cells of these kinds that ran to their end and have a finite loss."""
    done = [c for c in self.cells if c["status"] == "done" and math.isfinite(c["loss"])]
    return [c for c in done if c["kind"] in kinds]

  @property
  def config(self) -> dict[str, Any]:
    """The sweep's config, by section; {} without a sweep."""
    return self.sweep.get("config", {})

  @property
  def arms(self) -> tuple[str, ...]:
    """The arms, whose sweeps lie in folders of their names; () in a sweep without."""
    return tuple(self.config.get("sweep", {}).get("arms", ()))

  @property
  def title(self) -> str:
    """The name of the sweep's folder, and its family of models."""
    family = self.config.get("model", {}).get("family", "").replace("_", "-")
    return f"{self.workdir.name} ({family})" if family else self.workdir.name

  @property
  def target(self) -> float:
    """The rule of thumb to compare with [tokens per parameter]."""
    return float(self.config.get("fit", {}).get("target_tokens_per_param", 20.0))

  @property
  def foreign(self) -> bool:
    """Whether these are someone's runs, fitted in a folder of their own: there is no sweep."""
    return not self.sweep and bool(self.cells)

  @property
  def complete(self) -> bool:
    """Whether the sweep has come to a verdict on a trained cell, of a law that is determined."""
    return not self.undetermined and any("trained_loss" in verdict for _, verdict in self.judged)

  @property
  def judged(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each budget that was sealed, with its verdict: {} before there is one."""
    sealed = self.prediction.get("budgets", [])
    return [*itertools.zip_longest(sealed, self.verification.get("budgets", []), fillvalue={})]

  @property
  def law(self) -> Law:
    """The fitted law, with FLOPs as a function of N and D as the fit estimated them."""
    return Law(FORMS[self.fit["form"]], self.fit["params"], Compute(**self.fit["compute"]))

  @property
  def undetermined(self) -> list[str]:
    """Why the runs do not determine the law (`laws.undetermined`); [] where they do."""
    return self.fit.get("undetermined", [])

  @property
  def determined(self) -> bool:
    """Whether there is a law, and the runs determine it."""
    return bool(self.fit) and not self.undetermined

  @property
  def profiles(self) -> list[dict[str, Any]]:
    """The isoFLOP profiles of approach 2, by budget."""
    return sorted(self.fit.get("approach2", {}).get("profiles", []), key=lambda p: p["C"])

  @property
  def optima(self) -> list[dict[str, Any]]:
    """The compute-optimal points by budget, the sealed one among them; [] without a law."""
    stored = [] if self.undetermined else self.fit.get("optimum", [])
    rows = [row | {k: [math.nan] * 2 for k, v in row.items() if v is None} for row in stored]
    for sealed in self.prediction.get("budgets", ()) if rows else ():
      row: dict[str, Any] = {"C": sealed["C"], "sealed": True, "extrapolation": math.inf}
      for name, key in (("N_opt", "N"), ("D_opt", "D"), ("tokens_per_param", "tokens_per_param")):
        row |= {name: sealed[key], f"{name}_interval": sealed[f"{key}_interval"]}
      rows.append(row | {"loss": sealed["loss"], "loss_interval": sealed["interval"]})
    return sorted(rows, key=lambda row: row["C"])

  @property
  def sets(self) -> list[dict[str, Any]]:
    """The law of each validation set that has one, if there are several."""
    return named(self.fit.get("sets", []))

  @property
  def cautions(self) -> list[str]:
    """What makes a law doubtful that its runs determine, for the headline."""
    cautions = []
    for row in (self.sweep.get("lr_rule") or {}).get("probes", ()):
      if row.get("at_edge"):
        cautions.append(
          f"the best learning rate probed at size {row['size']}, {row['lr']:.2e}, is at the "
          "probe's edge: other rates may have lower losses, and another law"
        )
    if self.profiles and not any(p["inside"] for p in self.profiles):
      cautions.append("no isoFLOP profile has its minimum inside its sizes")
    if far := sum(run["reason"] == FAR for run in self.fit.get("excluded", ())):
      cautions.append(f"{far} runs were left out: their {FAR} (--compare_forms)")
    fit = [cell for cell in self.cells if cell["kind"] == "fit"]
    largest = [cell for cell in fit if cell["C"] > 0.97 * max(c["C"] for c in fit)]
    if fit and not any(cell["status"] in ("done", "planned", "running") for cell in largest):
      cautions.append(f"none of the {len(largest)} runs of the largest budget trained")
    return cautions

  @property
  def headline(self) -> str:
    """The outcome so far in one sentence, with its numbers, and what makes it doubtful."""
    doubts = f" Warning: {'; '.join(self.cautions)}." if self.fit and self.cautions else ""
    return self._outcome + doubts

  @property
  def _outcome(self) -> str:
    if reasons := self.undetermined:
      return f"No law yet: undetermined by {self.fit['n_runs']} runs: {'; '.join(reasons)}."
    if self.verification.get("verdict"):
      return str(self.verification["verdict"])
    if self.prediction:
      said = (
        f"at {flops(p['C'])} FLOPs, N = {si(p['N'])} on {si(p['D'])} tokens will reach "
        f"{nats(p['loss'])} {bracket(p['interval'])} nats/token"
        for p in self.prediction["budgets"]
      )
      return f"Sealed, not yet tested: {'; '.join(said)}."
    if self.fit:
      return (
        f"Fitted on {self.fit['n_runs']} runs, nothing predicted yet: N_opt grows as "
        f"C^{self.fit['a']:.3f}, D_opt as C^{self.fit['b']:.3f}."
      )
    if not self.cells:
      return "Not begun."
    done = sum(c["status"] == "done" for c in self.cells)
    return f"{done} of {len(self.cells)} cells are done; nothing is fitted yet."

  def lacks(self, *needs: str) -> str:
    """Says what is missing of what a figure needs; "" if nothing is."""
    checks: dict[str, tuple[Any, str]] = {
      "runs": (self.done("fit"), "no fit cell is done"),
      "times": (
        any(math.isfinite(c["seconds"]) for c in self.done("fit", "heldout")),
        "no cell has a wall time",
      ),
      "curves": ((self.workdir / "cells").is_dir(), "there are no training curves"),
      "law": (self.fit.get("params"), "there is no fit.json yet"),
      "profiles": (self.profiles, "fit.json has no isoFLOP profiles"),
      "choices": (self.fit.get("choices"), "fit.json has no choices"),
      "sets": (
        self.sets and all(f"loss_{row['name']}" in self.cells[0] for row in self.sets),
        "there are no laws of several validation sets",
      ),
      "budgets": (
        len(self.prediction.get("budgets", ())) > 1 and self.done("heldout"),
        "no two held-out budgets, or no cell of them is done",
      ),
      "optimum": (len(self.optima) > 1, "fit.json tells no optimum at two budgets"),
    }
    return next((reason for present, reason in (checks[need] for need in needs) if not present), "")


def read(workdir: str | Path) -> Results:
  """Reads the files of a sweep, of which any may be missing.

  N, C and loss of a sweep's cells are those of the fit, and before it as the config says.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise DataError(f"workdir={str(workdir)!r}: no such folder; run `isoflop sweep` first")
  names = ("sweep", "fit", "verification")
  parts = {name: files.read_record(workdir / f"{name}.json") or {} for name in names}
  parts["prediction"] = prediction_json.read(workdir) or {}
  if "trained_loss" in (old := parts["verification"]):  # of version 2, which was of one budget
    held = old.get("held", old.get("inside"))
    parts["verification"] = old | {"budgets": [old], "held": held}
  cells = _read_table(workdir / "cells.csv")
  counting = parts["sweep"].get("config", {}).get("fit", {}) | parts["fit"].get("counting", {})
  for cell in cells:
    cell["N"] = cell.get(f"params_{counting.get('params')}", cell["N"])
    cell["C"] = 6 * cell["N"] * cell["D"] if counting.get("flops") == "6nd" else cell["C"]
    cell["loss_main"] = cell["loss"]
    for name in ("loss", "loss_stderr", "bits_per_byte") if counting.get("loss") else ():
      cell[name] = cell.get(f"{name}_{counting['loss']}", cell[name])
  cells = cells or _read_table(workdir / "runs.csv")
  for cell in cells:
    cell["tokens_per_param"] = cell["D"] / cell["N"]
  return Results(workdir, cells, **parts)


def _read_table(path: Path) -> list[Cell]:
  if not path.exists():
    return []
  cells: list[Cell] = []
  with path.open(newline="") as lines:
    table = csv.DictReader(lines)
    for row in table:
      line = f"line {table.line_num}"
      if None in row or None in row.values():
        raise files.damaged(path, f"{line} has more or fewer fields than line 1")
      cells.append(files.Stored([], path))
      for name, text in row.items():
        try:
          cells[-1][name] = text if name in TEXT_COLUMNS else float(text or "nan")
        except ValueError:
          fault = f"{line}, column {name}: {text!r} is not a number"
          raise files.damaged(path, fault) from None
  return cells


def named(sets: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """Selects the rows that have a law, each with the name of its set of runs or of losses."""
  return [row | {"name": row["set"] or "main"} for row in sets if "a" in row]


def column(cells: Iterable[Cell], name: str) -> np.ndarray:
  """Stacks one column of some cells [n]."""
  return np.array([c[name] for c in cells], float)


def outside(optimum: dict[str, Any]) -> bool:
  """Whether an optimum lies outside the runs that were fitted."""
  return optimum.get("extrapolation", 1.0) > OUTSIDE


def side_by_side(fits: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
  """Makes a row of each parameter: its name, and its value and interval in each of some laws."""
  return [
    (rows[0][0], *(text for _, *pair in rows for text in pair))
    for rows in zip(*map(parameters, fits), strict=True)
  ]


def parameters(fit: dict[str, Any]) -> list[tuple[str, str, str]]:
  """Formats a law's parameters and exponents: name, value, interval."""
  kinds = FORMS[fit["form"]].kinds
  scales = {name: ratio for name, kind in kinds.items() if kind.log}  # of any order of magnitude
  return [
    (name, form(value), bracket(fit["intervals"].get(name), form))
    for name, value in (fit["params"] | {"a": fit["a"], "b": fit["b"]}).items()
    for form in (scales.get(name, nats),)
  ]
