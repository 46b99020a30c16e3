"""Finds out whether the files that a prediction and its verdict rest on are as they were written.

It finds what was changed by mistake or by hand. It is no protection against who wants to deceive:
whoever changes a file can also change its digests.
"""

import csv
from pathlib import Path
from typing import Any

from configs.errors import UsageError
from scaling.claims import prediction_json
from scaling.laws.tables import read, runs
from train.system import files


def check(workdir: Path) -> None:
  """Compares the files of a sweep's folder with their digests and with each other.

  Raises:
    DataError: a file was altered, or lacks a part; the message names file and field.
    UsageError: a prediction was sealed on other runs.
  """
  sealed = prediction_json.read(workdir)
  check_cells(workdir)
  for name in ("fit.json", "verification.json"):
    files.read_record(workdir / name)
  head = files.read_json(workdir / "sweep.json")
  if head and sealed and (workdir / "cells.csv").exists():
    counting = head["config"]["fit"]
    loss = counting.get("loss", "")
    now = read.read_runs(workdir, "", counting["params"], counting["flops"], loss=loss)
    check_runs(workdir, sealed, now)


def check_source(path: Path) -> None:
  """Compares the runs of a sweep, as `check` does, where a table of runs is a sweep's."""
  folder = path.parent if path.name == "cells.csv" else path
  if (folder / "sweep.json").exists():
    check_cells(folder)


def check_cells(workdir: Path) -> None:
  """Compares the runs of a sweep with their digests, and with cells.csv those done by then."""
  paths = [path for x in ("trunks", "cells") for path in sorted((workdir / x).glob("*/run.json"))]
  if not paths:  # of a table that is no sweep's: its fit needs no jax, which the store imports
    return
  from scaling.sweep import store
  from train import record

  records = [record.read(path.parent) or {} for path in paths]
  path = workdir / "cells.csv"
  there = (workdir / "sweep.json").exists() and path.exists()
  if not there or not any("digests" in stored for stored in records):
    return
  head, cells = store.read_sweep(workdir)
  by_id = {cell.id: cell for cell in cells}
  with path.open(newline="") as lines:
    table = csv.DictReader(lines)
    if lost := {"cell", "status", "N", "D", "C", "loss"} - set(table.fieldnames or ()):
      raise files.damaged(path, f"no column {min(lost)}")
    for row in table:
      if None in row.values():
        raise files.damaged(path, f"line {table.line_num} is cut short")
      cell = by_id.get(row["cell"])
      if not cell or row["status"] != "done" or store.outcome(workdir, cell)["status"] != "done":
        continue
      for name, value in store.row(workdir, cell, head["config"]["objective"]).items():
        if name in row and name != "seconds" and row[name] != str(value):
          fault = f"{row[name]!r}, but its run.json and sweep.json say {str(value)!r}"
          raise files.damaged(path, f"row {cell.id}, column {name}: {fault}")


def rows(fitted: runs.Runs) -> list[dict[str, Any]]:
  """Lists the runs that a prediction rests on, those that the fit left out among them."""
  fitted = fitted.whole or fitted
  columns = {name: getattr(fitted, name).tolist() for name in ("N", "D", "C", "loss")}
  return [
    {"cell": name} | {key: values[i] for key, values in columns.items()}
    for i, name in enumerate(fitted.ids)
  ]


def check_runs(workdir: Path, sealed: dict[str, Any], fitted: runs.Runs) -> None:
  """Raises UsageError where a prediction rests on other runs than these; names the first."""
  if sealed["input_hash"] == (input_hash := runs.input_hash(fitted)):
    return
  change = f"hash {sealed['input_hash'][:12]}, now {input_hash[:12]}"
  tables = rows(fitted), sealed["runs"]
  now, before = ({row["cell"]: row for row in table} for table in tables)
  for name in before | now:
    if name not in now:
      change = f"{name} is not among them any more"
    elif name not in before:
      change = f"{name} was not among them"
    elif columns := [key for key in now[name] if now[name][key] != before[name][key]]:
      was, is_now = (row[name][columns[0]] for row in (before, now))
      change = f"{columns[0]} of {name} was {was!r}, is {is_now!r}"
    else:
      continue
    break
  raise UsageError(
    f"{workdir / prediction_json.NAME}: sealed on other runs than there are now ({change}); a "
    "sealed prediction is not replaced: put them back, or use another workdir"
  )
