"""Asks laws that were fitted to the smaller budgets of real sweeps for the larger ones.

  python tests/release/leave_future_out.py TABLE --columns=N=params,D=tokens,C=budget,loss=loss \
    --by=experiment

Each sweep (a value of the column `--by`) is fitted up to each of its budgets, from the third on, as
`isoflop fit` would. Where that law is determined there, its N* is compared with the minimum of each
larger budget (`laws.intervals.forecast.minima`), and its predictions with each larger run. The
table that is printed has, by distance in compute, how often the truth lay inside the interval, how
wide that was, and how far the law was off; docs/coverage.md says on which sweeps it was made.
"""

import argparse
import collections
import csv
import json
import sys

import numpy as np

from configs import base
from scaling import laws
from scaling.laws.intervals import forecast
from scaling.laws.tables.budgets import budgets

FEWEST = 3  # budgets
DISTANCES = ((1, 3.4), (3.4, 10.5), (10.5, np.inf))  # 1-3, 3-10 and more, with room for rounding


def sweeps(path, columns, by):
  """Reads the sweeps of a table: name, N, D, C, loss."""
  found = collections.defaultdict(list)
  with open(path, newline="") as lines:
    for row in csv.DictReader(lines):
      if row.get("status", "done") == "done":
        name = row[by] if by else path
        found[name].append([float(row[columns[key]]) for key in ("N", "D", "C", "loss")])
  return {name: np.array(rows).T for name, rows in found.items()}


def future(name, N, D, C, loss, options):
  """Yields what each law of the smaller budgets said of the larger ones, and what they showed."""
  groups = budgets(C)
  scatter = 1e-6  # of a run: only the minima themselves are used here
  for k in range(FEWEST, len(groups)):
    below, above = np.concatenate(groups[:k]), np.concatenate(groups[k:])
    try:
      law = laws.fit_runs(laws.make_runs(N[below], D[below], loss[below], C=C[below]), options)
    except ValueError as error:
      yield name, "refused", 1.0, str(error)
      continue
    most = C[below].max()
    later = laws.make_runs(N[above], D[above], loss[above], C=C[above])
    for minimum in forecast.minima(later, scatter):
      if reasons := laws.undetermined(law, minimum.C):
        yield name, "undetermined", minimum.C / most, reasons[0]
        continue
      row = laws.optimum(law, minimum.C)
      low, high = np.log(row["N_opt_interval"])
      error = minimum.log_n - np.log(row["N_opt"])
      yield name, "N*", minimum.C / most, (low <= minimum.log_n <= high, (high - low) / 2, error)
    if laws.undetermined(law):
      continue
    for n, d, c, seen in zip(N[above], D[above], C[above], loss[above], strict=True):
      value, (low, high) = laws.predict_loss(law, n, d)
      width = np.log(high / low) / 2
      yield name, "loss", c / most, (low <= seen <= high, width, np.log(seen / value))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("table")
  parser.add_argument("--columns", default="N=N,D=D,C=C,loss=loss")
  parser.add_argument("--by", default="")
  parser.add_argument("--only", default="", help="sweeps whose names contain it")
  parser.add_argument("--bootstraps", type=int, default=400)
  parser.add_argument("--reach", type=float, default=4.0, help="as fit.reach; 0 keeps all runs")
  parser.add_argument("--out", default="")
  args = parser.parse_args()
  options = base.get_config().fit
  options.bootstraps, options.reach = args.bootstraps, args.reach
  columns = dict(pair.split("=") for pair in args.columns.split(","))
  chosen = {k: v for k, v in sweeps(args.table, columns, args.by).items() if args.only in k}
  rows = []
  for name, table in chosen.items():
    print(f"{name}: {table.shape[1]} runs", file=sys.stderr, flush=True)
    rows += future(name, *table, options)
  report(rows, list(chosen))
  if args.out:
    with open(args.out, "w") as out:
      json.dump([[*row[:3], np.asarray(row[3]).tolist()] for row in rows], out)


def report(rows, names):
  """Prints the coverage of N* and of the loss by distance, of each sweep and in their mean."""
  print("| what | distance | mean over sweeps | median half-width | rms error |", end="")
  print("".join(f" {name} |" for name in names))
  print("|---" * (5 + len(names)) + "|")
  for what in ("N*", "loss"):
    for low, high in DISTANCES:
      at = [row for row in rows if row[1] == what and low < row[2] <= high]
      if not at:
        continue
      inside, width, error = np.array([row[3] for row in at], float).T
      by = {n: [row[3][0] for row in at if row[0] == n] for n in names}
      mean = np.mean([np.mean(v) for v in by.values() if v])
      cells = "".join(f" {np.mean(v):.0%} of {len(v)} |" if v else " |" for v in by.values())
      span = f"{low:.0f}-{high:.0f}x" if np.isfinite(high) else f"> {low:.0f}x"
      print(
        f"| {what} | {span} | {mean:.0%} | {np.median(width):.3f} | "
        f"{np.sqrt(np.mean(error**2)):.3f} |{cells}"
      )
  refused = collections.Counter((row[0], row[1]) for row in rows if row[1] not in ("N*", "loss"))
  for (name, kind), count in refused.items():
    print(f"{name}: {kind} {count} times")


if __name__ == "__main__":
  main()
