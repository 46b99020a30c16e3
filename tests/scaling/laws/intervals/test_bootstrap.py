"""How sure the fit claims to be, against how sure it is: coverage, influence, profiles."""

import numpy as np
import pytest
from surfaces import (
  EPOCH,
  TRUTH,
  grid,
  isoflop,
  law_of,
  noisy,
  numbers,
  options,
  problem_of,
  quantities,
  with_growth,
)  # fmt: skip

from scaling import laws
from scaling.laws import chinchilla, solve
from scaling.laws.intervals import bootstrap, predictions
from scaling.laws.tables import budgets


def test_a_law_that_holds_makes_no_forecast_error():
  n, d = isoflop()
  exact = laws.fit_runs(laws.make_runs(n, d, chinchilla.loss(TRUTH, n, d)), options())
  assert exact.errors.loss_growth.value < 1e-5


@pytest.mark.slow
def test_the_loss_of_a_run_beyond_the_budgets_is_inside_its_interval_as_often_as_said():
  """90 % intervals at three times the compute; a forecast error from few runs errs to the wide."""
  n, d = isoflop()
  inside = 0
  for seed in range(60):
    law = laws.fit_runs(laws.make_runs(n, d, noisy(n, d, 0.002, seed)), options())
    best = chinchilla.optimum(TRUTH, 3 * law.runs.C.max(), law.compute)
    new = best.loss * np.exp(0.002 * np.random.default_rng((seed, 5)).normal())
    low, high = laws.predict_loss(law, best.N, best.D)[1]
    inside += low <= new <= high
    assert high / low - 1 < 0.04
  assert 0.85 * 60 <= inside < 60


def test_a_wrong_form_widens_the_interval_beyond_the_runs():
  """Losses whose exponent grows with D: the interval covers the truth, parameters alone do not."""
  n, d = isoflop()

  def bent(n, d):
    return chinchilla.loss(TRUTH, n, d) * np.exp(-0.005 * np.log(d / d0) ** 2)

  d0 = d.min()
  law = laws.fit_runs(laws.make_runs(n, d, bent(n, d)), options())
  best = law.law.optimum(3 * law.runs.C.max())
  truth = bent(best.N, best.D)
  _, (low, high) = laws.predict_loss(law, best.N, best.D)
  _, (bare_low, bare_high) = laws.predict_loss(with_growth(law, 0.0), best.N, best.D)
  assert low < truth < high
  assert not bare_low < truth < bare_high
  inside = float(n[0]), float(d[0])
  assert laws.predict_loss(law, *inside) == laws.predict_loss(with_growth(law, 0.0), *inside)
  C = law.runs.C.max()  # where the form has erred for a fifth of the range of log C, all the same
  edge = predictions.form_noise(
    with_growth(law, 1.0), C, law.law.optimum(C).N, law.law.optimum(C).D
  )
  assert np.std(edge) == pytest.approx(0.2 * np.log(C / law.runs.C.min()), rel=0.2)
  assert "form_error" in laws.to_json(law)


def test_too_few_budgets_for_a_forecast_are_said():
  n, d = isoflop(budgets=(2e11, 2e12), sizes=7)
  law = laws.fit_runs(laws.make_runs(n, d, chinchilla.loss(TRUTH, n, d)), options())
  assert law.errors.loss_growth.told_by == 0
  assert "Too few budgets" in " ".join(laws.to_json(law)["warnings"])


def test_prediction_interval_is_wider_than_the_laws():
  n, d = grid()
  found = laws.fit_runs(laws.make_runs(n, d, noisy(n, d, 0.005, 0)), options(bootstraps=1000))
  middle = (float(np.exp(np.log(n).mean())), float(np.exp(np.log(d).mean())))
  loss, (low, high) = laws.predict_loss(found, *middle)
  law_low, law_high = laws.interval(found.draws.loss(*middle), 0.9)
  assert low < law_low < loss < law_high < high
  # 90 % of normal scatter of 0.5 % is 3.29 x 0.5 % wide.
  assert 0.5 < (high - low) / loss / (3.29 * 0.005) < 2
  unbiased = np.sqrt(np.sum(found.residuals**2) / (len(n) - 5))
  assert np.sqrt(np.mean(laws.new_run_noise(found) ** 2)) == pytest.approx(unbiased)


def test_seed_noise_is_pooled_over_repeats_and_widens_predictions():
  n, d = grid()
  repeats = np.array([0, 0, 0, 7, 7, 7])
  scatter = np.array([0.1, -0.1, 0.0, 0.3, -0.3, 0.0])  # SD .1 and .3: pooled sqrt(.05)
  loss = np.append(
    chinchilla.loss(TRUTH, n, d), chinchilla.loss(TRUTH, n, d)[repeats] * np.exp(scatter)
  )
  runs = laws.make_runs(np.append(n, n[repeats]), np.append(d, d[repeats]), loss)
  assert laws.seed_noise(laws.make_runs(n, d, loss[:20])) is None
  sums = 0.1**2 * 2 + 0.3**2 * 2  # with the unrepeated run of each cell at 0: 3 + 3 degrees
  assert laws.seed_noise(runs) == pytest.approx(np.sqrt(sums / 6))
  found = laws.fit_runs(runs, options())
  assert np.sqrt(np.mean(laws.new_run_noise(found) ** 2)) >= laws.seed_noise(runs) * 0.999


def normal(scale):
  return lambda rng, c: scale * rng.standard_normal(len(c))


def smaller_runs_noisier(rng, c):
  """Scatter of .4 % at the smallest budget, half of that at the largest."""
  return 0.004 * (c / c.min()) ** -0.15 * rng.standard_normal(len(c))


def heavy_tails(rng, c):
  return 0.002 * rng.standard_t(3, len(c))


def coverage(scatter, simulations, resamples):
  """Returns estimates [S, 5], and in which share and how wide 90 % intervals hold the truth [5]."""
  n, d = isoflop(EPOCH, np.geomspace(1e15, 1e17, 5), sizes=9, reach=4.0)
  truth = quantities(EPOCH)
  estimates, inside, width = [], [], []
  for seed in range(simulations):
    noise = scatter(np.random.default_rng(seed), n * d)
    runs = laws.make_runs(n, d, chinchilla.loss(EPOCH, n, d) * np.exp(noise))
    problem = problem_of(runs.N, runs.D, runs.loss)
    theta = solve.minimum(problem, 1e-3)[1].theta[0]
    value = quantities(law_of(problem, theta))
    found = bootstrap.resample(problem, runs, theta, 1e-3, resamples, seed)
    draws = quantities(law_of(problem, found.theta))
    ends = [bootstrap.interval(x, 0.9, v) for x, v in zip(draws, value, strict=True)]
    estimates.append(value)
    inside.append([low <= t <= high for (low, high), t in zip(ends, truth, strict=True)])
    width.append([high - low for low, high in ends])
  return np.array(estimates), np.mean(inside, axis=0), np.median(width, axis=0)


@pytest.mark.slow
def test_90_percent_intervals_cover_in_85_to_95_percent_of_200_sweeps():
  """Other scatters are in tests/release."""
  check_coverage(normal(0.005), 0.95)


def check_coverage(scatter, most):
  estimates, covered, _ = coverage(scatter, 200, 500)
  bias = np.median(estimates, axis=0) - quantities(EPOCH)
  print(f"covered {covered}, bias in SD {bias / estimates.std(axis=0)}")
  assert np.all(np.abs(bias) < estimates.std(axis=0))
  assert np.all((covered >= 0.85) & (covered <= most)), covered


def test_intervals_cover_and_grow_with_the_noise():
  """Of 40 sweeps, 90 % intervals hold the truth in 30 at least (3 sigma), and not in all."""
  _, covered, narrow = coverage(normal(0.002), 40, 200)
  _, _, wide = coverage(normal(0.006), 10, 200)
  assert np.all(covered >= 30 / 40), covered
  assert np.mean(covered) < 0.99
  assert np.all((wide / narrow > 1.7) & (wide / narrow < 5)), wide / narrow


def test_a_bias_corrected_interval_is_exact_for_a_shifted_normal():
  """Draws whose median lies z standard errors above the estimate: both ends move down by 2 z."""
  draws = np.random.default_rng(0).normal(size=200_000)
  for value in (0.0, 0.2, -0.3):
    expected = np.array([-1.6449, 1.6449]) + 2 * value
    np.testing.assert_allclose(laws.interval(draws, 0.9, value), expected, atol=0.03)
    turned = laws.interval(np.exp(draws), 0.9, np.exp(value))  # of any monotone map
    np.testing.assert_allclose(np.log(turned), expected, atol=0.03)
  np.testing.assert_allclose(laws.interval(draws, 0.9), [-1.6449, 1.6449], atol=0.03)
  held = np.maximum(draws, 0)  # half of the resamples at a bound, and the estimate too
  assert laws.interval(held, 0.9, 0.0)[0] == 0 < laws.interval(held, 0.9, 0.0)[1]


def test_an_unknown_resampling_is_refused():
  n, d = isoflop(sizes=6)
  with pytest.raises(ValueError, match="fit.resampling=boot: must be one of auto, pairs"):
    laws.fit_runs(laws.make_runs(n, d, noisy(n, d, 0.003, 0)), options(resampling="boot"))


def test_the_jackknife_refits_without_each_run_and_finds_the_outlier():
  n, d = isoflop(sizes=6)
  loss = noisy(n, d, 0.001, 0)
  loss[23] *= 1.05  # the largest model of the largest budget
  runs = laws.make_runs(n, d, loss, ids=[f"r{i}" for i in range(24)])
  found = laws.fit_runs(runs, options(delta=10.0))
  first = laws.jackknife(found)[0]
  assert first["id"] == "r23"
  assert first["influence"] > 1
  rest = runs.subset(np.array([i for i, name in enumerate(runs.ids) if name != "r23"]))
  without = laws.fit_runs(rest, options(delta=10.0))
  assert first["a"] == pytest.approx(chinchilla.exponents(numbers(without.law))[0], rel=1e-5)
  best = without.law.optimum(runs.C.max()).N
  assert first["N_opt"] == pytest.approx(best, rel=1e-4)


def test_student_quantiles():
  stats = pytest.importorskip("scipy.stats")
  for freedom in (1, 2, 3, 4, 7, 20, 200):
    for p in (0.05, 0.9, 0.95) if freedom < 4 else (0.05, 0.9, 0.95, 0.975):
      assert bootstrap.t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=0.01)


def test_designs_are_refused_for_the_parameters_they_cannot_tell():
  size = np.geomspace(1e5, 1e6, 8)
  one_size = laws.identifiability(laws.make_runs(np.full(8, 1e5), size * 20, np.ones(8)))
  assert one_size["beta"] is None
  assert one_size["B"] is None
  assert "1 distinct sizes N" in one_size["alpha"]
  assert one_size["E"] == one_size["N_opt"] == one_size["alpha"]
  one_ratio = laws.identifiability(laws.make_runs(size, 20 * size, np.ones(8)))
  assert "D follows N^1.00" in one_ratio["alpha"]
  assert one_ratio["E"] is None
  one_budget = laws.identifiability(laws.make_runs(size, 1e13 / size, np.ones(8)))
  assert "D follows N^-1.00" in one_budget["beta"]
  assert not any(laws.identifiability(laws.make_runs(*grid(), np.ones(20))).values())
  assert all(laws.identifiability(laws.make_runs([1e5, 2e5], [1e6, 2e6], [3, 2])).values())


@pytest.mark.parametrize("delta", [1e-2, 1e-3, 1e-8])
def test_many_runs_have_the_errors_that_resampling_gives(monkeypatch, delta):
  """Beyond `MANY` runs the sandwich covariance stands in for the bootstrap."""
  rng = np.random.default_rng(0)
  n, d = np.exp(rng.uniform(np.log(1e5), np.log(1e7), 3000)), rng.uniform(1e6, 1e8, 3000)
  runs = laws.make_runs(n, d, noisy(n, d, 0.01, 1))
  problem = problem_of(runs.N, runs.D, runs.loss)
  theta = solve.minimum(problem, delta)[1].theta[0]
  resampled = bootstrap.resample(problem, runs, theta, delta, 200, 0).theta
  monkeypatch.setattr(solve, "MANY", 1000)
  drawn = bootstrap.resample(problem, runs, theta, delta, 2000, 0).theta
  np.testing.assert_allclose(drawn.std(0) / resampled.std(0), 1, atol=0.2)
  np.testing.assert_allclose(drawn.mean(0), theta, atol=4 * drawn.std(0).max() / np.sqrt(2000))


def test_runs_at_any_compute_are_cut_into_budgets():
  """Without gaps in C there still is a forecast error, and strata that differ from all runs."""
  rng = np.random.default_rng(0)
  n, d = np.exp(rng.uniform(10, 13, 400)), np.exp(rng.uniform(12, 15, 400))
  runs = laws.make_runs(n, d, noisy(n, d, 0.002, 0))
  groups = budgets.budgets(runs.C)
  assert sorted(np.concatenate(groups)) == list(range(400))
  assert max(np.ptp(np.log(runs.C[group])) for group in groups) <= budgets.WIDEST * 1.001
  assert all(runs.C[a].max() < runs.C[b].min() for a, b in zip(groups, groups[1:], strict=False))
  assert len(groups) > 30
  assert laws.fit_runs(runs, options(bootstraps=100)).errors.loss_growth.told_by
  isoflops = np.repeat([1e15, 2e15, 2.05e15], 5) * np.tile(np.exp([0, 0.02, 0.01, -0.01, 0]), 3)
  assert [len(group) for group in budgets.budgets(isoflops)] == [5, 10]  # as they were
  with pytest.raises(ValueError, match="compare_forms: 20 runs at one budget"):
    laws.compare_forms(laws.make_runs(grid()[0], 1e13 / grid()[0], np.ones(20)))
