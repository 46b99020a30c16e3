"""Reads runs from a sweep's folder, or from anyone's table with named columns."""

import dataclasses
import difflib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import ConfigError, DataError
from scaling.laws.tables import conditions
from scaling.laws.tables.rows import read_rows
from scaling.laws.tables.runs import DIVERGED, EXTRAS, LARGEST, Runs, make_runs

COLUMNS = ("id", "N", "D", "C", "loss")
PARAMS = {"body_head": "N", "body": "params_body", "total": "params_total"}  # N's in cells.csv
CELL_COLUMNS = [  # of our cells.csv
  "cell", "kind", "objective", "size", "width", "depth",
  "params_total", "params_embedding", "params_head", "params_body",
  "N", "D", "C", "C_6nd", "flops_spent", "lr", "seed",
  "loss", "loss_stderr", "bits_per_byte", "tokens_per_param", "status", "seconds",
  "D_predicted", "trunk",
]  # fmt: skip
OF_A_SWEEP = {"cell", "kind", "status"}  # columns by which a table is our cells.csv
MOST_GROUPS = 20  # of one table, each fitted by itself
LONGEST_LABEL = 200  # letters of a text that could name a group of runs


def check_counts(params: str, flops: str) -> None:
  """Refuses an unknown count of N or C; see `read_runs`."""
  if params not in PARAMS:
    raise ConfigError(f"fit.params={params!r}: unknown; choose one of {sorted(PARAMS)}")
  if flops not in ("exact", "6nd"):
    raise ConfigError(f"fit.flops={flops!r}: unknown; choose exact or 6nd")


def read_runs(
  path: str | os.PathLike,
  columns: str = "",
  params: str = "body_head",
  flops: str = "exact",
  where: Sequence[str] = (),
  exclude: Sequence[str] = (),
  loss: str = "",
  diverged: bool = False,
  kinds: Sequence[str] = ("fit",),
) -> Runs:
  """Reads the runs of a sweep, or of anyone's table with named columns.

  Args:
    path: a sweep's folder, or a file as `rows.read_rows` reads it. One with the columns `cell`,
      `kind` and `status` is read as our cells.csv: of it, the finished cells of some `kinds`.
    columns: names that differ, "N=params,D=tokens,loss=val_loss". Needed are loss and two of N, D
      and C; the third is C = 6 N D. What else `runs.EXTRAS` lists is read if named.
    params: what N counts, see `config.fit.params`; other than body_head for our cells.csv only.
    flops: what C counts: exact (the column C), or 6nd.
    where: conditions that every run meets, as "D/N > 5" (`tables.conditions`), in N, D, C
      and loss, and in the file's other columns. A run that fails one is excluded.
    exclude: conditions that no run meets, likewise.
    loss: the validation set whose loss is read, from the column loss_NAME; "": from `loss`.
    diverged: a run without a finite loss is read too, as of loss `DIVERGED`.
    kinds: of the cells that are read of our cells.csv.

  Returns:
    The runs, with those that were left out in `excluded` and the conditions in `filters`.

  Raises:
    UserError: no such file or column, or a value that is not a positive finite number in a run
      that no condition left out (the message names its line and column), or an unknown choice.
  """
  check_counts(params, flops)
  path, given = _table_of(path), _parse_columns(columns)
  names = {name: name for name in COLUMNS} | {"id": "cell", "N": PARAMS[params]} | given
  if loss:
    if "loss" in given:
      raise DataError(f"fit.loss={loss!r}: columns={columns!r} names a loss, too; leave one out")
    names["loss"] = f"loss_{loss}"
  filters = [("where", text) for text in where] + [("exclude", text) for text in exclude]
  read = {name for kind, text in filters for name in conditions.names(text, f"--{kind}=")}
  read -= set(COLUMNS)
  header, table = read_rows(path)
  if loss and names["loss"] not in header:
    raise DataError(
      f"fit.loss={loss!r}: {path} has no column {names['loss']!r}; there is the loss on "
      f"{', '.join(map(repr, _sets(header)))}"
    )
  ours = set(header) >= OF_A_SWEEP
  sources = _sources(path, header, names, given)
  measured = list(sources)
  table = [(place, row) for place, row in table if not ours or row["kind"] in kinds]
  if not table:
    kind = (
      f"row of kind {' or '.join(map(repr, kinds))} (cell, kind and status make it a sweep's table)"
      if ours
      else "row"
    )
    raise DataError(f"runs={path}: no {kind} in it; name a table of trained runs")
  named = [(str(row.get(names["id"]) or place), place, row) for place, row in table]
  excluded = []
  if ours:
    excluded = [(i, f"status {row['status']}") for i, _, row in named if row["status"] != "done"]
    named = [(i, place, row) for i, place, row in named if row["status"] == "done"]
  ids = [name for name, _, _ in named]
  values = {
    name: np.array([_number(row.get(column)) for _, _, row in named])
    for name, column in sources.items()
  }
  if diverged:
    values["loss"] = np.where(values["loss"] < DIVERGED, values["loss"], DIVERGED)
  others = (set(header) - {"", *sources.values()}) | (read & set(header))
  further = {}
  for name in sorted(others):
    column = [row.get(name) for _, _, row in named]
    if name in read or all(len(str(value)) <= LONGEST_LABEL for value in column):
      further[name] = _column(column)
  values = further | values
  with np.errstate(all="ignore"):  # what is not a number then is named below
    if "N" not in values:
      values["N"] = values["C"] / (6 * values["D"])
    if "D" not in values:
      values["D"] = values["C"] / (6 * values["N"])
    if flops == "6nd" or "C" not in values:
      values["C"] = 6 * values["N"] * values["D"]
  for name in read & values.keys():  # what is no column is named by the condition
    if ids and values[name].dtype.kind == "f" and np.isnan(values[name]).all():
      raise DataError(f"runs={path}, column {name}: a condition reads it, and it is empty")
  kept = np.ones(len(ids), bool)
  by_loss = []
  for kind, text in filters:
    holds = conditions.evaluate(text, values, f"--{kind}=")
    dropped = kept & (holds != (kind == "where"))
    measured_loss = (values["loss"] > 0) & (values["loss"] < LARGEST)
    if (dropped & measured_loss).any() and {"loss", names["loss"]} & {*conditions.names(text)}:
      by_loss.append(f"{kind} {text}")
    excluded += [(ids[i], f"{kind} {text}") for i in np.flatnonzero(dropped)]
    kept &= ~dropped
  for name in measured:
    bad = kept & ~(np.isfinite(values[name]) & (values[name] < LARGEST)
                  & ((values[name] > 0) | (name == "pretrained")))  # fmt: skip
    if bad.any():
      _, place, row = named[np.argmax(bad)]
      value = row.get(sources[name])
      remedy = f"correct the row, or leave it out with --where='{name} > 0 and {name} < 1e99'"
      if isinstance(value, str) and "," in value:
        remedy = "write it without separators of thousands, and with a point before decimals"
      raise DataError(
        f"runs={path}, {place}, column {sources[name]}: {value!r} is not a positive finite number; "
        f"{remedy}"
      )
  runs = make_runs(
    **{name: values[name][kept] for name in ("N", "D", "C", "loss")},
    ids=[ids[i] for i in np.flatnonzero(kept)],
    extra={name: values[name][kept] for name in EXTRAS if name in values},
    labels={name: column[kept] for name, column in further.items() if column.dtype.kind in "Ub"},
  )
  return dataclasses.replace(
    runs,
    excluded=tuple(excluded),
    params=params if ours and "N" not in given else "given",
    flops="exact" if "C" in measured and flops == "exact" else "6nd",
    loss_on=loss,
    filters=tuple(f"{kind} {text}" for kind, text in filters),
    by_loss=tuple(by_loss),
  )


def groups(path: str | os.PathLike, column: str) -> dict[str, str]:
  """Lists the values of a column in a table of runs, each with the condition that selects it.

  Raises:
    DataError: there is no such column, or it names no groups.
  """
  header, table = read_rows(_table_of(path))
  if column not in header:
    raise DataError(f"by={column!r}: no such column; {path} has {', '.join(header)}")
  ours = set(header) >= OF_A_SWEEP
  rows = [row for _, row in table if not ours or row["kind"] == "fit"]
  values = np.unique(_column([row.get(column) for row in rows]))
  values = values[values == values]  # a number that is missing is in no group
  if not 0 < len(values) <= MOST_GROUPS:
    raise DataError(
      f"by={column!r}: it has {len(values)} values; name a column of 1 to {MOST_GROUPS}"
    )
  return {str(value): f"`{column}` == {value!r}" for value in values.tolist()}


def validation_sets(path: str | os.PathLike) -> list[str]:
  """Lists the validation sets whose loss a sweep's table has; "" is the main one."""
  header, _ = read_rows(_table_of(path))
  return _sets(header) if set(header) >= OF_A_SWEEP else [""]


def _sets(header: Sequence[str]) -> list[str]:
  names = [name for name in header if name.startswith("loss_")]
  names = [name for name in names if not f"{name}_".startswith("loss_stderr_")]
  return ["", *(name.removeprefix("loss_") for name in names)]


def _table_of(path: str | os.PathLike) -> Path:
  """Finds the table of a sweep's folder; any other path stays."""
  path = Path(path).expanduser()
  if not path.is_dir():
    return path
  if (path / "cells.csv").exists():
    return path / "cells.csv"
  several = sorted(str(table.parent) for table in path.glob("*/cells.csv"))
  hint = f"name one of {', '.join(several)}" if several else "name a sweep's folder or a file"
  raise DataError(f"runs={path}: a folder without cells.csv; {hint}")


def _sources(
  path: Path, header: Sequence[str], names: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str]:
  """Maps loss, two of N, D and C or all, and the extras that were named to columns of the file."""
  there = [name for name in ("N", "D", "C", "loss") if name in given or names[name] in header]
  lost = sorted({"loss"} - set(there)) + [name for name in given if given[name] not in header]
  if len({"N", "D", "C"} & set(there)) < 2:
    lost += [name for name in ("N", "D") if name not in there]
  if lost:
    column = names[lost[0]]
    close = difflib.get_close_matches(column, header, n=1) or ["COLUMN"]
    raise DataError(
      f"runs={path}: no column {column!r} for {lost[0]}; the file has "
      f"{', '.join(header) or 'none'}; name it with --columns={lost[0]}={close[0]}"
    )
  return {name: names[name] for name in [*there, *(name for name in EXTRAS if name in given)]}


def _number(value: Any) -> float:
  """Reads a number; nan where there is none."""
  try:
    return math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    return math.nan


def _column(values: Sequence[Any]) -> np.ndarray:
  """Makes a column [n]: of numbers if most of its values are, else of True and False, or text."""
  numbers = np.array([_number(value) for value in values])
  texts = np.array(["" if value is None else str(value).strip() for value in values], str)
  given = sum(text.lower() not in ("", "nan", "none") for text in texts)
  if 2 * np.sum(~np.isnan(numbers)) >= given:
    return numbers
  truth = {"true": True, "false": False}
  if all(text.lower() in truth for text in texts):
    return np.array([truth[text.lower()] for text in texts])
  return texts


def _parse_columns(columns: str) -> dict[str, str]:
  pairs = [pair.partition("=") for pair in columns.split(",") if pair.strip()]
  for name, equals, column in pairs:
    if [other.strip() for other, _, _ in pairs].count(name.strip()) > 1:
      raise DataError(f"columns={columns!r}: {name.strip()} is given twice; leave one out")
    if name.strip() not in (*COLUMNS, *EXTRAS) or not equals or not column.strip():
      raise DataError(
        f"columns={columns!r}: {name.strip()!r} is not of the form NAME=COLUMN "
        f"with a NAME from {', '.join((*COLUMNS, *EXTRAS))}"
      )
  return {name.strip(): column.strip() for name, _, column in pairs}
