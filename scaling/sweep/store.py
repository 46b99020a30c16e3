"""The run store: a sweep's folder, what stands in it, and its table.

sweep.json            config, corpus, the probe's outcome, every planned cell
cells/<id>/run.json   the record of one run, with metrics.jsonl and checkpoints/ beside it
trunks/<id>/...       likewise, for the runs that cells are branched from
cells.csv             one row per cell
fit.json, prediction.json, verification.json, report.md, report.html, figures/
"""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from configs.errors import UsageError
from scaling.sweep.plan import Cell, Trunk
from train.system import files

COLUMNS = [
  "cell", "kind", "objective", "size", "width", "depth",
  "params_total", "params_embedding", "params_head", "params_body",
  "N", "D", "C", "C_6nd", "flops_spent", "lr", "seed",
  "loss", "loss_stderr", "bits_per_byte", "tokens_per_param", "status", "seconds",
  "D_predicted",
]  # fmt: skip


def folder(workdir: Path, run: Cell | Trunk) -> Path:
  """Returns the folder of a run."""
  return workdir / ("trunks" if isinstance(run, Trunk) else "cells") / run.id


def outcome(workdir: Path, run: Cell | Trunk) -> dict:
  """Returns the record of a run; {"status": "planned"} before it has begun."""
  return files.read_json(folder(workdir, run) / "run.json") or {"status": "planned"}


def row(workdir: Path, cell: Cell, objective: str) -> dict[str, Any]:
  """Returns a cell's row of cells.csv."""
  result = outcome(workdir, cell)
  groups = cell.groups
  return {
    "cell": cell.id,
    "kind": cell.kind,
    "objective": objective,
    "size": cell.size,
    "width": cell.width,
    "depth": cell.depth,
    "params_total": groups["total"],
    "params_embedding": groups["embedding"],
    "params_head": groups["head"],
    "params_body": groups["body"],
    "N": cell.N,
    "D": cell.D,
    "C": cell.C,
    "C_6nd": cell.C_6nd,
    "flops_spent": cell.flops_spent,
    "lr": cell.lr,
    "seed": cell.seed,
    "loss": result.get("loss", ""),
    "loss_stderr": result.get("loss_stderr", ""),
    "bits_per_byte": result.get("bits_per_byte", ""),
    "tokens_per_param": cell.D / cell.N,
    "status": result["status"],
    "seconds": result.get("seconds", ""),
    "D_predicted": cell.D_predicted,
  }


def rows(workdir: Path, cells: Iterable[Cell], objective: str) -> list[dict[str, Any]]:
  """Returns the rows of cells.csv."""
  return [row(workdir, cell, objective) for cell in cells]


def write_table(workdir: Path, table: list[dict[str, Any]]) -> None:
  """Writes cells.csv."""
  text = io.StringIO()
  writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
  writer.writeheader()
  writer.writerows(table)
  files.write_text(workdir / "cells.csv", text.getvalue())


def write_sweep(workdir: Path, head: dict, cells: Iterable[Cell]) -> None:
  """Writes sweep.json: what makes the sweep what it is, and the cells planned so far."""
  planned = [dataclasses.asdict(cell) | {"D": cell.D} for cell in cells]
  files.write_json(workdir / "sweep.json", head | {"cells": planned})


def read_sweep(workdir: Path) -> tuple[dict, list[Cell]]:
  """Returns sweep.json without its cells, and the cells.

  Raises:
    UsageError: the folder holds no sweep.
  """
  head = files.read_json(workdir / "sweep.json")
  if head is None:
    raise UsageError(f"workdir={workdir}: no sweep.json there; `isoflop sweep` makes one")
  names = {field.name for field in dataclasses.fields(Cell)}
  planned = head.pop("cells")
  return head, [Cell(**{k: v for k, v in cell.items() if k in names}) for cell in planned]


def unknown(workdir: Path, cells: list[Cell], new: list[Cell]) -> list[Cell]:
  """Returns the new cells that are not among the sweep's.

  Raises:
    UsageError: one has the name of another cell that differs.
  """
  known = {cell.id: cell for cell in cells}
  for cell in new:
    if (old := known.get(cell.id, cell)) != cell:
      names = (field.name for field in dataclasses.fields(Cell))
      name = next(name for name in names if getattr(old, name) != getattr(cell, name))
      raise UsageError(
        f"workdir={workdir}: holds {cell.id} with {name}={getattr(old, name)!r}, planned now with "
        f"{getattr(cell, name)!r}; name another workdir, or go on with the version that began it"
      )
  return [cell for cell in new if cell.id not in known]


def usable(result: dict) -> bool:
  """Returns whether a record holds a loss that can be fitted."""
  return result["status"] == "done" and math.isfinite(result["loss"])
