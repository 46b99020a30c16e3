"""Runs that leave the form of their law: they are told, and those far off do not bend it."""

import json

import numpy as np
import pytest
from surfaces import EPOCH, isoflop, options, problem_of

from scaling import laws, main
from scaling.laws import chinchilla, fit_json, solve
from scaling.laws.intervals import misfit
from scaling.report import sweep_results

MIDDLE = 5e8  # parameters, at which the losses of both forms are one


def surface(n, d, kappa):
  """Chinchilla's loss, or one whose term in D falls with N besides."""
  return EPOCH.E + EPOCH.A * n**-EPOCH.alpha + EPOCH.B * d**-EPOCH.beta * (n / MIDDLE) ** -kappa


def design(reach):
  n, d = isoflop(EPOCH, np.geomspace(1e18, 1e20, 5), 7, reach=reach)
  return np.exp(0.46 * np.round(np.log(n) / 0.46)), d  # on one ladder


def bend(n, d, loss):
  problem, runs = problem_of(n, d, loss), laws.make_runs(n, d, loss)
  problem = problem_of(runs.N, runs.D, runs.loss)
  return misfit.bend(problem, solve.minimum(problem, 1e-3)[1].theta[0], runs)


def test_a_bend_that_the_form_has_no_parameter_for_is_told():
  """Sizes that share noise make none; a term in D that falls with N besides does."""
  n, d = design(4.0)
  size, chances = np.unique(n, return_inverse=True)[1], {0.0: [], 0.05: []}
  for seed in range(5):
    rng = np.random.default_rng(seed)
    noise = np.exp(0.002 * rng.normal(size=len(n)) + 0.002 * rng.normal(size=len(n))[size])
    for kappa, found in chances.items():
      found.append(bend(n, d, surface(n, d, kappa) * noise)["p"])
  assert sum(p < misfit.BENT for p in chances[0.0]) <= 1
  assert max(chances[0.05]) < 0.01
  assert bend(n[::5], d[::5], surface(n, d, 0.0)[::5]) is None


def test_runs_far_from_the_optimum_are_left_out_where_they_bend_the_law(tmp_path, capsys):
  """Sizes within 16x: the loss at the optimum is right without the far ones, and off with them."""
  n, d = design(16.0)
  noise = np.exp(0.003 * np.random.default_rng(0).normal(size=len(n)))
  runs = {kappa: laws.make_runs(n, d, surface(n, d, kappa) * noise) for kappa in (0.0, 0.05)}
  right, bent = (laws.fit_runs(r, options(bootstraps=100)) for r in runs.values())
  assert len(right.runs) == len(n)  # nothing is left out of a law whose form holds
  best = chinchilla.optimum(EPOCH, 1e20)
  far = np.abs(np.log(n * np.sqrt(1e20 / (6 * n * d)) / best.N)) > np.log(2 * options().reach)
  assert far.sum() <= len(n) - len(bent.runs) <= 0.7 * len(n)
  assert {why for _, why in bent.runs.excluded} == {misfit.FAR}
  assert laws.input_hash(bent.runs) == laws.input_hash(runs[0.05])  # a seal rests on all of them
  C = 6 * float((n * d).max())
  n_C = np.geomspace(best.N / 3, best.N * 3, 2001)
  least = surface(n_C, C / 6 / n_C, 0.05).min()
  every = runs[0.05]
  problem = problem_of(every.N, every.D, every.loss)
  whole = misfit.solve_near(every, problem, 1e-3, 0)
  params = whole[1].natural(whole[3].theta[0])
  off = laws.Law(laws.FORMS["chinchilla"], params).optimum(C).loss / least - 1
  low, high = (row := laws.optimum(bent, C))["loss_interval"]
  assert low < least < high
  assert abs(row["loss"] / least - 1) < 0.6 * abs(off)

  table = "N,D,loss\n" + "\n".join(f"{x},{y},{z}" for x, y, z in zip(
    runs[0.05].N, runs[0.05].D, runs[0.05].loss, strict=True))  # fmt: skip
  (tmp_path / "runs.csv").write_text(table)
  folder = tmp_path / "fit"
  arguments = [f"--runs={tmp_path / 'runs.csv'}", f"--workdir={folder}", "--config.fit.delta=1e-3"]
  assert main.main(["fit", *arguments, "--config.fit.bootstraps=100"]) == 0
  left_out = len(n) - len(bent.runs)
  assert f"Warning: {left_out} runs were left out: their {misfit.FAR}" in capsys.readouterr().out
  assert f"{left_out} runs were left out" in sweep_results.read(folder).headline
  choices = {row["choice"]: row for row in json.loads((folder / "fit.json").read_text())["choices"]}
  assert choices["as chosen"]["n_runs"] == len(bent.runs)
  assert choices["runs far from the optimum"]["n_runs"] == len(n)


def test_skewed_residuals_are_told_and_how_far_their_mean_is_off():
  """Exponential noise is skewed by 2, and its mean lies 1 - ln 2 above its median."""
  n, d = isoflop(EPOCH, np.geomspace(1e18, 1e20, 10), 8)
  rng, right = np.random.default_rng(0), chinchilla.loss(EPOCH, n, d)

  def fitted_to(loss):
    return laws.fit_runs(laws.make_runs(n, d, loss), options(bootstraps=100))

  found = laws.to_json(fitted_to(right * np.exp(0.01 * rng.exponential(size=len(n)))))
  assert found["skewness"]["value"] == pytest.approx(2, abs=0.7)
  assert found["skewness"]["mean"] == pytest.approx(0.01 * (1 - np.log(2)), rel=0.4)
  assert any(text.startswith("Residuals are skewed") for text in found["warnings"])
  even = fit_json.skewness(fitted_to(right * np.exp(0.01 * rng.normal(size=len(n)))))
  assert abs(even["z"]) < fit_json.SKEWED
