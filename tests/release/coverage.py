"""How often intervals of level 90 % hold the truth, on simulated runs of known laws.

  python tests/release/coverage.py OUTPUT.json [--designs=isoflop,grid] [--noise=iid,trunk]
      [--forms=chinchilla] [--repeats=100] [--bootstraps=200] [--processes=1] [--again]

A cell of the table is a design of runs, a kind of noise and the form that the losses follow; always
Chinchilla's is fitted. Each repeat draws losses, fits, and asks for what a user would: parameters,
and at 1, 3, 10, 30 and 100 times the largest fitted compute the optimum, and the loss of a new run
at the true optimum. What `laws.undetermined` refuses is counted as refused; the coverage is that of
the rest. Cells that OUTPUT has already, with as many repeats and bootstraps, are kept, so parts can
be run one after another; `--again` runs them anew. The table stands in docs/coverage.md.
"""

import argparse
import collections
import datetime
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import sys
import time
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "docs")]

import numpy as np  # noqa: E402
import results  # noqa: E402
import surfaces  # noqa: E402

from configs.errors import UserError  # noqa: E402
from scaling import laws  # noqa: E402
from scaling.formats import duration  # noqa: E402
from scaling.laws import chinchilla, fit_json  # noqa: E402
from scaling.laws.intervals import misfit  # noqa: E402

FACTORS = (1, 3, 10, 30, 100)  # times the largest fitted compute
BUDGETS = np.array([1e18, 1e20])  # least and most [FLOPs]
LADDER = 1.6  # from size to size, at most
LAW = surfaces.EPOCH
MIDDLE = chinchilla.optimum(LAW, math.sqrt(BUDGETS.prod()))
PARAMETERS = ("alpha", "beta", "E", "a")
AT = {"N_opt": "N\\*", "tokens_per_param": "D/N", "loss": "L_opt", "new": "new run"}  # each budget
NAMES = (*PARAMETERS, *(f"{name} {f}" for name in AT for f in FACTORS))
COUNTS = ("coverage", "its standard error", "right value below", "high / low", "refused")
GOAL = (0.85, 0.95)
FEWEST = 0.25  # of the repeats: of fewer that were answered no coverage is told


class Truth(NamedTuple):
  """E + S (s / S)^power with s = A / N^alpha + B / D^beta (N0 / N)^kappa; fitted are 0 and 1.

  N0 and S are N and s of the best run at the middle of the budgets: there all forms have one loss.
  """

  kappa: float = 0.0
  power: float = 1.0

  def loss(self, N, D):
    s = LAW.A * N**-LAW.alpha + LAW.B * D**-LAW.beta * (MIDDLE.N / N) ** self.kappa
    scale = MIDDLE.loss - LAW.E
    return LAW.E + scale * (s / scale) ** self.power

  def right(self, C):
    """Lists the right values at budgets C, by name; for C = 6 N D all are in closed form."""
    in_n = LAW.beta - self.kappa  # of the second term at C, which grows with N
    factor = LAW.alpha * LAW.A / (in_n * LAW.B * MIDDLE.N**self.kappa)
    n = (factor * (C / 6) ** LAW.beta) ** (1 / (LAW.alpha + in_n))
    at = {"N_opt": n, "tokens_per_param": C / 6 / n**2, "loss": self.loss(n, C / 6 / n)}
    numbers = (self.power * LAW.alpha, self.power * LAW.beta, LAW.E, LAW.beta / (LAW.alpha + in_n))
    right = {f"{name} {f}": x for name in at for f, x in zip(FACTORS, at[name], strict=True)}
    return right | dict(zip(PARAMETERS, numbers, strict=True))


FORMS = {"chinchilla": Truth(), "cross .05": Truth(kappa=0.05), "power .7": Truth(power=0.7)}


def isoflop(count=5, sizes=7, reach=4.0, centre=1.0):
  """Sizes about the optimum of each budget, on one ladder, so that budgets share sizes."""
  n, d = surfaces.isoflop(LAW, np.geomspace(*BUDGETS, count), sizes, reach=reach)
  step, c = min(2 * math.log(reach) / (sizes - 1), math.log(LADDER)), n * d
  n = np.exp(step * np.round(np.log(centre * n) / step))
  return n, c / n


def ladder():
  """Cooldowns from the trunk of each size, at 1/4 to 4 times the best tokens per parameter."""
  best = chinchilla.optimum(LAW, np.geomspace(*BUDGETS, 7))
  return np.repeat(best.N, 5), np.outer(best.D, np.geomspace(0.25, 4, 5)).ravel()


def grid():
  """Sizes by token counts, from those of the best run of the least budget to those of the most."""
  best = chinchilla.optimum(LAW, BUDGETS)
  n, d = np.meshgrid(np.geomspace(*best.N, 7), np.geomspace(*best.D, 5))
  return n.ravel(), d.ravel()


DESIGNS = {
  "isoflop": isoflop(),
  "ladder": ladder(),
  "grid": grid(),
  "wide x16": isoflop(reach=16.0),
  "narrow x1.5": isoflop(reach=1.5),
  "off-centre x3": isoflop(centre=3.0),
  "12 runs": isoflop(4, 3, reach=3.0),
  "8 runs": isoflop(4, 2, reach=2.0),
}


def outliers(rng, n):
  """Of 20 runs one ends 2 to 20 % too high."""
  return 0.003 * rng.normal(size=n) + (rng.random(n) < 0.05) * rng.uniform(0.02, 0.2, n)


NOISE = {  # of log loss: what groups runs, SD of what they share, and (rng, n) -> the rest [n]
  "iid": ("", 0.0, lambda rng, n: 0.003 * rng.normal(size=n)),
  "size": ("size", 0.002, lambda rng, n: 0.002 * rng.normal(size=n)),
  "trunk": ("size", 0.003, lambda rng, n: 0.001 * rng.normal(size=n)),  # runs say which it is
  "budget": ("budget", 0.002, lambda rng, n: 0.002 * rng.normal(size=n)),
  "outliers": ("", 0.0, outliers),
  "exponential": ("", 0.0, lambda rng, n: 0.003 * (rng.exponential(size=n) - 1)),
}


def simulate(job):
  """Runs a cell, and returns its name with its counts."""
  name, repeats, bootstraps = job
  design, noise, form = name.split("|")
  (n, d), (kind, sd, rest), truth = DESIGNS[design], NOISE[noise], FORMS[form]
  key = {"size": n, "budget": np.round(np.log(n * d), 1), "": np.arange(len(n))}[kind]
  group = np.unique(key, return_inverse=True)[1]
  group = np.append(group, len(n) + np.arange(len(FACTORS)))  # new runs: groups of their own
  trunks = design == "ladder" or noise == "trunk"
  labels = {"trunk": np.array([f"{value:.0f}" for value in n])} if trunks else {}
  C = 6 * float((n * d).max()) * np.array(FACTORS)
  right, reasons, answers = truth.right(C), collections.Counter(), {name: [] for name in NAMES}
  for repeat in range(repeats):
    rng = np.random.default_rng((repeat, zlib.crc32(f"{design} {noise}".encode())))
    error = sd * rng.normal(size=group.max() + 1)[group] + rest(rng, len(group))
    runs = laws.make_runs(n, d, truth.loss(n, d) * np.exp(error[: len(n)]), labels=labels)
    options = surfaces.options(bootstraps=bootstraps, seed=repeat)
    new = zip(FACTORS, np.exp(error[len(n) :]), strict=True)
    right |= {f"new {f}": right[f"loss {f}"] * factor for f, factor in new}
    for quantity, answer in ask(runs, options, C, right).items():
      refused = isinstance(answer, str)
      answers[quantity].append(None if refused else (*answer, right[quantity]))
      if refused:
        reasons[re.sub(r"\d[\d.]*(e[+-]?\d+)?%?", "#", answer)] += 1
  return name, {
    "repeats": repeats,
    "bootstraps": bootstraps,
    "reason": reasons.most_common(1)[0][0] if reasons else None,
    "counts": {quantity: tally(rows) for quantity, rows in answers.items()},
  }


def ask(runs, options, C, right):
  """Returns the interval of each quantity, or why there is none."""
  try:
    fit = laws.fit_runs(runs, options)
    reasons = laws.undetermined(fit)
  except UserError as error:
    reasons = [str(error)]
  if reasons:
    return dict.fromkeys(NAMES, reasons[0])
  answers = {name: fit_json.law_json(fit)["intervals"][name] for name in PARAMETERS}
  test = misfit.bend(fit.problem, fit.problem.theta(fit.params), fit.runs)
  if fit.runs.whole or test and test["p"] < misfit.BENT:  # fit.json warns of it
    answers |= dict.fromkeys(PARAMETERS[:3], "the runs bend away from the form")
  for f, c in zip(FACTORS, C, strict=True):
    if reasons := laws.undetermined(fit, c):
      answers |= {f"{name} {f}": reasons[0] for name in AT}
      continue
    best, n = laws.optimum(fit, c), right[f"N_opt {f}"]
    answers |= {f"{name} {f}": best.get(f"{name}_interval") for name in AT}
    answers[f"new {f}"] = laws.predict_loss(fit, n, c / 6 / n)[1]
  for name, ends in answers.items():
    if not isinstance(ends, str) and not (ends and np.isfinite(ends).all()):
      answers[name] = "an interval has no ends"
  return answers


def tally(rows):
  """Counts (low, high, right), or None where refused, over the repeats: see `COUNTS`."""
  told = [row for row in rows if row]
  refused = round(1 - len(told) / len(rows), 3)
  if len(told) < FEWEST * len(rows):
    return [None, None, None, None, refused]
  low, high, right = np.array(told).T
  share = np.mean((low <= right) & (right <= high))
  error, below = math.sqrt(share * (1 - share) / len(told)), np.mean(right < low)
  width = np.median(high / np.maximum(low, 1e-9))
  return [*(float(f"{x:.4g}") for x in (share, error, below, width)), refused]


def met(count, repeats):
  """Tells whether a coverage is within two standard errors of the goal."""
  slack = [2 * math.sqrt(goal * (1 - goal) / (repeats * (1 - count[-1]))) for goal in GOAL]
  return GOAL[0] - slack[0] <= count[0] <= GOAL[1] + slack[1]


def line(entry):
  """Lists what `entry` says of each quantity, of those at several budgets in one column."""
  several = (" ".join(entry(f"{name} {f}") for f in FACTORS) for name in AT)
  return [*(entry(name) for name in PARAMETERS), *several]


def row(name, cell):
  """Makes the line of a cell: coverage [%], bold where it misses the goal, and what is refused."""
  design, noise, form = name.split("|")

  def entry(quantity):
    count = cell["counts"][quantity]
    if count[0] is None:
      return "–"
    return ("{:.0f}" if met(count, cell["repeats"]) else "**{:.0f}**").format(100 * count[0])

  refused = " ".join(f"{100 * cell['counts'][f'new {f}'][-1]:.0f}" for f in FACTORS)
  return [form, design, noise, str(cell["repeats"]), *line(entry), refused]


def rows(cells):
  """Makes the table: of each form how many cells meet the goal, and the mean of each design."""
  lines = []
  for form in FORMS:
    named = {name: cell for name, cell in cells.items() if name.endswith(f"|{form}")}
    if named:
      lines.append([form, "goal met", "", *line(partial(share_met, named.values())), ""])
    for design in DESIGNS:
      some = [cell for name, cell in named.items() if name.startswith(f"{design}|")]
      if some:
        refused = " ".join(
          f"{100 * np.mean([cell['counts'][f'new {f}'][-1] for cell in some]):.0f}" for f in FACTORS
        )
        sweeps = str(sum(cell["repeats"] for cell in some))
        lines.append([form, design, sweeps, *line(partial(mean, some)), refused])
  return lines


def share_met(cells, quantity):
  """Counts the cells that meet the goal, of those that are not refused."""
  told = [cell for cell in cells if cell["counts"][quantity][0] is not None]
  return f"{sum(met(cell['counts'][quantity], cell['repeats']) for cell in told)}/{len(told)}"


def mean(cells, quantity):
  """Averages the coverage [%] over the cells that are not refused; bold where it is too low."""
  told = [cell for cell in cells if cell["counts"][quantity][0] is not None]
  if not told:
    return "–"
  share = np.mean([cell["counts"][quantity][0] for cell in told])
  sweeps = sum(cell["repeats"] * (1 - cell["counts"][quantity][-1]) for cell in told)
  low = share < GOAL[0] - 2 * math.sqrt(GOAL[0] * (1 - GOAL[0]) / sweeps)
  return f"**{100 * share:.0f}**" if low else f"{100 * share:.0f}"


def main():
  """Runs the cells asked for that OUTPUT lacks, writes it, and prints its table."""
  parser = argparse.ArgumentParser()
  parser.add_argument("output", type=Path)
  for name, choices in {"designs": DESIGNS, "noise": NOISE, "forms": FORMS}.items():
    parser.add_argument(f"--{name}", default=",".join(choices))
  for name, default in (("repeats", 100), ("bootstraps", 200), ("processes", 1)):
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--again", action="store_true")
  args = parser.parse_args()
  record = json.loads(args.output.read_text()) if args.output.exists() else {}
  cells, before, began = record.get("cells", {}), record.get("seconds", 0.0), time.perf_counter()
  size = {"repeats": args.repeats, "bootstraps": args.bootstraps}
  asked = itertools.product(*(x.split(",") for x in (args.designs, args.noise, args.forms)))
  jobs = [
    (name, *size.values())
    for name in map("|".join, asked)
    if args.again or not size.items() <= cells.get(name, {}).items()
  ]
  order = ["|".join(names) for names in itertools.product(DESIGNS, NOISE, FORMS)]
  with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
    for done, (name, cell) in enumerate(pool.imap_unordered(simulate, jobs), 1):
      took = time.perf_counter() - began
      cells[name] = cell
      record = {
        "command": "python tests/release/coverage.py docs/records/coverage.json "
        f"--repeats={args.repeats} --bootstraps={args.bootstraps}",
        "machine": f"{args.processes} process(es) on {platform.machine()}",
        "date": str(datetime.date.today()),
        "seconds": round(before + took, 1),
        "columns": ["form", "design", "sweeps", *PARAMETERS, *AT.values(), "refused"],
        "rows": rows({key: cells[key] for key in order if key in cells}),
        "counts": COUNTS,
        "cells": {key: cells[key] for key in order if key in cells},
      }
      text = json.dumps(record, indent=1) + "\n"
      args.output.write_text(re.sub(r"\n {3,}|\n  (?=[]}])", " ", text))
      left = duration(took / done * (len(jobs) - done))
      print(" | ".join(row(name, cell)), f"| {done} of {len(jobs)}, {left} left", flush=True)
  print(results.table(record))


if __name__ == "__main__":
  main()
