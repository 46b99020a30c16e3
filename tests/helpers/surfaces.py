"""Shared by the tests of fits: known surfaces, designs of runs on them, and published runs."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs import base
from scaling.laws import chinchilla, solve
from scaling.laws.forms import FORMS

TRUTH = chinchilla.Chinchilla(*map(np.float64, (0.8, 30.0, 60.0, 0.35, 0.3)))
# Besiroglu et al. 2024 (arXiv:2404.10102), least absolute deviations of Hoffmann et al.'s runs.
EPOCH = chinchilla.Chinchilla(*map(np.float64, (1.81686, 482.01, 2085.43, 0.34781, 0.36585)))
TEXTBOOK = chinchilla.Compute(6.0)
PUBLISHED = Path(__file__).resolve().parents[3] / "shared/published_runs"


def options(**changed):
  config = base.get_config().fit
  config.update({"bootstraps": 200} | changed)
  return config


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
