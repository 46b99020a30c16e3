"""Shared by the tests of fits: known surfaces, designs of runs on them, and published runs."""

import csv
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs import base
from scaling import laws
from scaling.laws import chinchilla, solve
from scaling.laws.forms import FORMS
from scaling.laws.intervals import errors

TRUTH = chinchilla.Chinchilla(*map(np.float64, (0.8, 30.0, 60.0, 0.35, 0.3)))
# Besiroglu et al. 2024 (arXiv:2404.10102), least absolute deviations of Hoffmann et al.'s runs.
EPOCH = chinchilla.Chinchilla(*map(np.float64, (1.81686, 482.01, 2085.43, 0.34781, 0.36585)))
TEXTBOOK = chinchilla.Compute(6.0)
PUBLISHED = Path(__file__).resolve().parents[3] / "shared/published_runs"

# Of the size of published fits, one of each form.
BASE = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.36}
KAPLAN = {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.103}  # of the size of theirs
TRUE = {
  "chinchilla": BASE,
  "chinchilla_equal": {name: BASE[name] for name in ("E", "A", "B", "alpha")},
  "cross": BASE | {"kappa": 0.03},
  "kaplan_nd": KAPLAN,
  "farseer": {
    "A": 0.46,
    "slope_A": -0.15,
    "alpha": 0.12,
    "B": 2100.0,
    "slope_B": -1.4,
    "beta": -0.1,
    "G": 0.57,
    "slope_G": -0.08,
    "gamma": 0.17,
  },
  "data_constrained": BASE | {"R_D": 15.39, "R_N": 5.31},
  "precision": BASE | {"gamma": 2.7},
  "transfer": KAPLAN | {"k": 1.9e4, "given": 0.18, "size": 0.38},
}
BREAKS = {"n": 1e8, "d": 2e9, "c": 1e18}
for v, at in BREAKS.items():
  TRUE[f"kaplan_{v}"] = {"X_c": 1e14, "alpha": 0.08}
  TRUE[f"power_law_{v}"] = {"E": 1.5, "A": 30.0, "alpha": 0.2}
  TRUE[f"broken_{v}"] = {"E": 1.0, "A": 30.0, "X_1": at, "c0": 0.1, "c1": 0.2, "f": 0.4}


def options(**changed):
  config = base.get_config().fit
  config.update({"bootstraps": 200} | changed)
  return config


def with_growth(law, value):
  """A fit whose form is known to err by so much log loss per e-fold beyond the runs."""
  growth = errors.Scale(np.full(law.options.bootstraps, value), 1)
  return dataclasses.replace(law, errors=dataclasses.replace(law.errors, loss_growth=growth))


def grid(sizes=5, tokens=4):
  n, d = np.meshgrid(np.geomspace(3e4, 5e5, sizes), np.geomspace(2e5, 3e6, tokens))
  return n.ravel(), d.ravel()


def isoflop(law=TRUTH, budgets=(2e11, 5e11, 1.3e12, 3e12), sizes=5, compute=TEXTBOOK, reach=3.0):
  """Sizes from 1/reach to reach times the best of each budget."""
  c = np.repeat(budgets, sizes)
  factors = np.geomspace(1 / reach, reach, sizes)
  n = chinchilla.optimum(law, c, compute).N * np.tile(factors, len(budgets))
  return n, compute.tokens(n, c)


def noisy(n, d, noise, seed, law=TRUTH):
  return chinchilla.loss(law, n, d) * np.exp(
    noise * np.random.default_rng(seed).standard_normal(len(n))
  )


def problem_of(n, d, loss):
  """Chinchilla's form and runs as the solver sees them."""
  return solve.make_problem(FORMS["chinchilla"], {"N": n, "D": d}, loss)


def law_of(problem, theta):
  """The solver's parameters [..., 5] as Chinchilla's, in natural units."""
  return chinchilla.Chinchilla(**problem.natural(theta))


def numbers(law):
  """The parameters of a fitted law, or of its draws."""
  return chinchilla.Chinchilla(**law.params)


def quantities(law):
  """E, alpha, beta, a and N_opt at 1e18 FLOPs."""
  best = chinchilla.optimum(law, 1e18)
  return np.array([law.E, law.alpha, law.beta, chinchilla.exponents(law)[0], best.N])


def random_surface(rng):
  """A law and a design of sizes by token counts, over four orders of magnitude of either."""
  alpha, beta = rng.uniform(0.2, 0.8, 2)
  size, tokens = np.exp(rng.uniform(np.log(1e5), np.log(1e9))), rng.uniform(5, 100)
  count = rng.integers(3, 9, 2)
  n, d = np.meshgrid(
    size * np.geomspace(1, rng.uniform(8, 100), count[0]),
    size * tokens * np.geomspace(1, rng.uniform(8, 100), count[1]),
  )
  in_n, in_d = rng.uniform(0.2, 1.5, 2)
  law = (rng.uniform(0.3, 2.5), in_n * size**alpha, in_d * (size * tokens) ** beta, alpha, beta)
  return chinchilla.Chinchilla(*map(np.float64, law)), n.ravel(), d.ravel()


def published_chinchilla():
  """Hoffmann et al.'s runs as Epoch AI read them: N, D, loss of the file, and which rows they keep.

  They drop the five highest losses.
  """
  path = PUBLISHED / "epoch_chinchilla/svg_extracted_data.csv"
  if not path.exists():
    pytest.skip("the published runs are not beside this checkout")
  with path.open() as file:
    rows = list(csv.DictReader(file))
  n, c, loss = (
    np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss")
  )
  keep = np.flatnonzero(loss < np.sort(loss)[-5])
  return SimpleNamespace(N=n, D=c / (6 * n), loss=loss, keep=keep)


def huber_cost(law, runs, delta=1e-3):
  size = np.abs(np.log(chinchilla.loss(law, runs.N, runs.D) / runs.loss))
  return np.where(size < delta, size**2 / 2, delta * (size - delta / 2)).sum()


def runs_of(form, sizes=7):
  """Variables [n] of a grid, with whatever else the form needs crossed into it."""
  n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, sizes), np.geomspace(2e8, 2e10, 7)))
  variables = {"N": n, "D": d, "C": 6 * n * d}
  levels = {"U": [1e12, 1e9, 1e8], "P": [3.0, 4.0, 8.0, 16.0], "pretrained": [0.0, 1.0]}
  for name in form.variables[2:]:
    values = levels[name]
    variables = {key: np.tile(v, len(values)) for key, v in variables.items()}
    variables[name] = np.repeat(values, len(n))
  if "U" in variables:
    variables["U"] = np.minimum(variables["U"], variables["D"])
  return variables


def runs_with(form, truth, noise=0.0, seed=0):
  """Runs of a form, on `runs_of` it."""
  variables = runs_of(form)
  loss = laws.evaluate(form, truth, variables)
  loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
  extra = {name: variables[name] for name in form.variables if name not in "NDC"}
  return laws.make_runs(variables["N"], variables["D"], loss, extra=extra)
