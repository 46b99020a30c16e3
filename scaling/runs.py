"""Trained runs as arrays: read from a table, checked, named by their content."""

import csv
import dataclasses
import difflib
import hashlib
import math
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

COLUMNS = ("id", "N", "D", "C", "loss", "loss_stderr", "seed")
PARAMS = {  # which parameters N counts: the columns of cells.csv that add up to it
  "body_head": ("N",),
  "body": ("params_body",),
  "total": ("params_total",),
}
MIN_RUNS = 6  # one more than the law has parameters
MIN_SPREAD = 0.1  # least SD of log D that log N leaves unexplained


@dataclasses.dataclass(frozen=True)
class Runs:
  """Trained runs, in one fixed order; arrays are float64 [n].

  Attributes:
    ids: names, as the file has them, else its line numbers.
    N: parameters.
    D: tokens processed.
    C: training FLOPs.
    loss: validation loss [nats per token].
    loss_stderr: its standard error over the validation tokens, nan where unknown; None: no column.
    excluded: runs of the file that are not among these, as (id, reason).
    params: what N counts, one of `PARAMS`, or "given": as whoever gave the numbers counts.
    flops: what C counts: exact (as given), or 6nd.
  """

  ids: tuple[str, ...]
  N: np.ndarray
  D: np.ndarray
  C: np.ndarray
  loss: np.ndarray
  loss_stderr: np.ndarray | None = None
  excluded: tuple[tuple[str, str], ...] = ()
  params: str = "given"
  flops: str = "exact"

  def __len__(self) -> int:
    return len(self.ids)

  def subset(self, index: np.ndarray) -> "Runs":
    """Returns the runs at some positions [m], in that order."""
    stderr = None if self.loss_stderr is None else self.loss_stderr[index]
    columns = {name: getattr(self, name)[index] for name in ("N", "D", "C", "loss")}
    ids = tuple(self.ids[i] for i in index)
    return dataclasses.replace(self, ids=ids, loss_stderr=stderr, **columns)


def make_runs(
  N: ArrayLike,
  D: ArrayLike,
  loss: ArrayLike,
  C: ArrayLike | None = None,
  ids: Sequence[str] = (),
  loss_stderr: ArrayLike | None = None,
  excluded: Sequence[tuple[str, str]] = (),
  params: str = "given",
) -> Runs:
  """Returns runs from arrays [n]; C defaults to 6 N D. They are put into a canonical order.

  Raises:
    ValueError: a value is not a positive finite number; the message names its run and column.
  """
  flops = "6nd" if C is None else "exact"
  C = 6.0 * np.asarray(N, float) * np.asarray(D, float) if C is None else C
  columns = {k: np.asarray(v, float) for k, v in (("N", N), ("D", D), ("C", C), ("loss", loss))}
  ids = ids or [str(i) for i in range(columns["N"].size)]
  for name, values in columns.items():
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
      raise ValueError(
        f"run {ids[bad[0]]}, column {name}: {values[bad[0]]} is not a positive finite number; "
        "correct the run or remove it"
      )
  order = np.lexsort([columns[name] for name in ("loss", "C", "D", "N")])
  return Runs(
    ids=tuple(ids[i] for i in order),
    **{name: values[order] for name, values in columns.items()},
    loss_stderr=None if loss_stderr is None else np.asarray(loss_stderr, float)[order],
    excluded=tuple(excluded),
    params=params,
    flops=flops,
  )


def read_runs(
  path: str | os.PathLike, columns: str = "", params: str = "body_head", flops: str = "exact"
) -> Runs:
  """Reads runs from our cells.csv (its finished fit cells) or from anyone's CSV with a header.

  Args:
    path: the file. A file with columns `kind` and `status` is read as our cells.csv.
    columns: names that differ, "N=params,D=tokens,loss=val_loss". Needed are loss and two of N, D
      and C; the third is C = 6 N D.
    params: what N counts, see `config.fit.params`; other than body_head for our cells.csv only.
    flops: what C counts: exact (the column C), or 6nd.

  Returns:
    The runs.

  Raises:
    ValueError: no such file or column, or a value that is not a positive finite number (the message
      names its line and column), or an unknown choice.
  """
  if params not in PARAMS:
    raise ValueError(f"fit.params={params!r}: unknown; choose one of {sorted(PARAMS)}")
  if flops not in ("exact", "6nd"):
    raise ValueError(f"fit.flops={flops!r}: unknown; choose exact or 6nd")
  names = {name: name for name in COLUMNS} | {"id": "cell", "N": PARAMS[params][0]}
  names |= (given := _parse_columns(columns))
  try:
    with open(path, newline="", encoding="utf-8-sig") as file:
      reader = csv.DictReader(file)
      header = reader.fieldnames or []
      wanted = [name for name in ("N", "D", "C", "loss") if name in given or names[name] in header]
      for name in {"loss"} - set(wanted) | {n for n in given if names[n] not in header}:
        raise _missing(path, names[name], name, header)
      if len(set(wanted) & {"N", "D", "C"}) < 2:
        lost = next(name for name in ("N", "D") if name not in wanted)
        raise _missing(path, names[lost], lost, header)
      return _read_rows(path, reader, names, wanted, "given" if "N" in given else params, flops)
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f"runs={path}: cannot be read as CSV ({error})") from error


def _parse_columns(columns: str) -> dict[str, str]:
  pairs = [pair.partition("=") for pair in columns.split(",") if pair.strip()]
  for name, equals, column in pairs:
    if name.strip() not in COLUMNS or not equals or not column.strip():
      raise ValueError(
        f"columns={columns!r}: {name.strip()!r} is not of the form NAME=COLUMN "
        f"with a NAME from {', '.join(COLUMNS)}"
      )
  return {name.strip(): column.strip() for name, _, column in pairs}


def _missing(path: str | os.PathLike, column: str, name: str, header: Sequence[str]) -> ValueError:
  close = difflib.get_close_matches(column, header, n=1) or ["COLUMN"]
  return ValueError(
    f"runs={path}: no column {column!r} for {name}; the file has {', '.join(header) or 'none'}; "
    f"name it with --columns={name}={close[0]}"
  )


def _read_rows(path, reader, names, wanted, params, flops) -> Runs:
  ours = {"kind", "status"} <= set(reader.fieldnames)
  stderr = names["loss_stderr"] if names["loss_stderr"] in reader.fieldnames else None

  def number(row, column):
    try:
      value = float(row[column])
    except (TypeError, ValueError):
      value = math.nan
    if not (math.isfinite(value) and value > 0):
      raise ValueError(
        f"runs={path}, line {reader.line_num}, column {column}: {row[column]!r} is not a positive "
        "finite number; correct the row or remove it"
      )
    return value

  ids, excluded, table, stderrs = [], [], [], []
  for row in reader:
    name = row.get(names["id"]) or f"line {reader.line_num}"
    if ours and row["kind"] != "fit":
      continue
    if ours and row["status"] != "done":
      excluded.append((name, f"status {row['status']}"))
      continue
    ids.append(name)
    table.append([number(row, names[column]) for column in wanted])
    if stderr:
      stderrs.append(number(row, stderr) if row[stderr] else math.nan)
  values = dict(zip(wanted, np.array(table, float).reshape(-1, len(wanted)).T, strict=True))
  if "N" not in values:
    values["N"] = values["C"] / (6 * values["D"])
  if "D" not in values:
    values["D"] = values["C"] / (6 * values["N"])
  if flops == "6nd":
    values.pop("C", None)  # 6 N D by default
  stderr_n = np.array(stderrs) if stderr else None
  counts = params if ours else "given"
  return make_runs(**values, ids=ids, loss_stderr=stderr_n, excluded=excluded, params=counts)


def input_hash(runs: Runs) -> str:
  """Returns the SHA-256 of the (N, D, C, loss) of the runs, whatever their order in the file."""
  table = np.stack([runs.N, runs.D, runs.C, runs.loss], axis=1).astype("<f8")
  return hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest()


def check_identifiable(runs: Runs) -> None:
  """Refuses runs from which the law's parameters cannot be told.

  Raises:
    ValueError: too few runs, sizes or token counts, or sizes and token counts that move together.
  """
  points = len(set(zip(runs.N, runs.D, strict=True)))
  if points < MIN_RUNS:
    raise ValueError(
      f"fit: {len(runs)} runs at {points} distinct (N, D); the law has 5 parameters and needs "
      f"{MIN_RUNS} or more: train more cells"
    )
  for values, name, exponent in ((runs.N, "sizes N", "alpha"), (runs.D, "token counts D", "beta")):
    if len(np.unique(values)) < 3:
      raise ValueError(
        f"fit: {len(np.unique(values))} distinct {name}; {exponent} cannot be told from E with "
        "fewer than 3: train more of them"
      )
  log_n, log_d = np.log(runs.N), np.log(runs.D)
  slope, intercept = np.polyfit(log_n - log_n.mean(), log_d, 1)
  spread = np.std(log_d - intercept - slope * (log_n - log_n.mean()))
  if spread < MIN_SPREAD:
    raise ValueError(
      f"fit: D follows N^{slope:.2f} to within {100 * spread:.1f} % in all {len(runs)} runs (as it "
      "does at one tokens-per-parameter ratio or one budget); alpha and beta cannot be told apart: "
      "vary D at each N"
    )
