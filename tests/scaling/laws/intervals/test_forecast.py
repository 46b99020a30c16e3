"""What a law misses beyond its parameters is learnt from its own minima and forecasts."""

import dataclasses

import numpy as np
import pytest
from surfaces import EPOCH, isoflop, noisy, options

from scaling import laws
from scaling.laws import chinchilla
from scaling.laws.intervals import errors, forecast


def profile(budget, loss_of, sizes=7, wide=3.0):
  n = np.geomspace(1e8 / wide, 1e8 * wide, sizes)
  return laws.make_runs(n, budget / (6 * n), loss_of(np.log(n / 1e8)), C=np.full(sizes, budget))


def test_a_minimum_is_where_its_profile_is_lowest_with_the_error_of_its_runs():
  def bowl(x):
    return np.exp(1 + 0.05 * (x - 0.3) ** 2 + 0.01 * (x - 0.3) ** 3)

  (found,) = forecast.minima(profile(1e19, bowl), 1e-6)
  assert found.log_n == pytest.approx(np.log(1e8) + 0.3, abs=3e-3)
  assert found.log_loss == pytest.approx(1.0, abs=1e-6)
  rng = np.random.default_rng(0)
  seen = [
    forecast.minima(profile(1e19, lambda x: bowl(x) * np.exp(1e-3 * rng.normal(size=len(x)))), 1e-6)
    for _ in range(300)
  ]
  places, heights = np.array([(m[0].log_n, m[0].log_loss) for m in seen]).T
  assert np.std(places) == pytest.approx(np.sqrt(found.variance), rel=0.15)
  assert np.std(heights) == pytest.approx(np.sqrt(found.loss_variance), rel=0.15)


def test_a_minimum_at_the_edge_does_not_count():
  assert not forecast.minima(profile(1e19, lambda x: np.exp(1 + 0.1 * x)), 1e-6)
  assert not forecast.minima(profile(1e19, lambda x: np.exp(1 + x**2), sizes=2), 1e-6)


def test_a_scale_is_learnt_from_errors_and_typical_without_any():
  typical = errors.posterior([], [], [], 0.2, 4000, 0)
  assert (typical.told_by, typical.value) == (0, pytest.approx(0.2, rel=0.02))
  rng = np.random.default_rng(1)
  d = rng.uniform(0.5, 3, 400)
  seen = rng.normal(size=400) * np.sqrt(0.1**2 + (0.05 * d) ** 2)
  told = errors.posterior(seen, np.full(400, 0.1**2), d, 0.2, 4000, 0)
  assert told.value == pytest.approx(0.05, rel=0.2)


def test_errors_of_a_scale_known_from_three_cover_as_often_as_they_say():
  rng = np.random.default_rng(2)
  inside = 0
  for i in range(600):
    s = abs(rng.normal()) * 0.2
    *seen, new = s * rng.normal(size=4)
    draws = errors.posterior(seen, np.zeros(3), np.ones(3), 0.2, 1000, i).sample(i + 7)
    low, high = np.quantile(draws, (0.05, 0.95))
    inside += low <= new <= high
  assert 0.87 * 600 <= inside <= 0.93 * 600


def bent(n, d):
  """A surface that Chinchilla's form does not hold: its exponent of D grows with D."""
  return chinchilla.loss(EPOCH, n, d) * np.exp(-0.002 * np.log(d / 1e9) ** 2)


@pytest.mark.slow
def test_n_opt_of_a_wrong_form_is_inside_its_interval_beyond_the_runs():
  """In nine sweeps of ten or more, where resamples alone hold it in few; seeds are of the noise."""
  n, d = isoflop(EPOCH, np.geomspace(1e18, 1e20, 5), sizes=9)
  C, sizes = 1e21, np.geomspace(1e8, 1e11, 4001)
  best = np.log(sizes[np.argmin(bent(sizes, C / (6 * sizes)))])
  held, by_resamples = 0, 0
  for seed in range(10):
    noise = np.exp(0.002 * np.random.default_rng(seed).normal(size=len(n)))
    law = laws.fit_runs(laws.make_runs(n, d, bent(n, d) * noise), options(bootstraps=100))
    row = laws.optimum(law, C)
    low, high = np.log(row["N_opt_interval"])
    held += low < best < high
    by_resamples += abs(best - np.log(row["N_opt"])) < 1.645 * row["N_opt_error"]["runs"]
  assert held >= 9
  assert by_resamples <= 4
  error = row["N_opt_error"]
  assert error["beyond"] == pytest.approx(law.errors.place_growth.value * np.log(10))
  assert laws.optimum(law, 1e20)["N_opt_error"]["beyond"] == 0


def test_n_opt_is_the_lines_where_a_line_through_minima_forecast_better():
  """Minima on a straight line that no law of this form has: the data exponent changes with N."""
  n, d = isoflop(EPOCH, np.geomspace(1e18, 1e21, 7), sizes=9)

  def straight(n, d):
    log_c = np.log(6 * n * d)
    best = np.log(3e8) + 0.8 * (log_c - np.log(1e19))
    return np.exp(1.2 - 0.05 * (log_c - 41) + 0.03 * (np.log(n) - best) ** 2)

  law = laws.fit_runs(laws.make_runs(n, d, straight(n, d)), options())
  heldout = law.errors.heldout
  assert law.errors.line
  assert heldout["minima"] < heldout["law"] / 2
  C = 1e22
  row = laws.optimum(law, C)
  assert row["N_opt"] == pytest.approx(3e8 * 1e3**0.8, rel=0.05)
  assert row["N_opt"] * row["D_opt"] == pytest.approx(C / 6, rel=0.01)
  assert laws.to_json(law)["heldout_N_opt"]["chosen"] == "minima"


def test_the_law_answers_where_it_forecasts_as_well():
  n, d = isoflop(EPOCH, np.geomspace(1e18, 1e20, 5), sizes=7)
  law = laws.fit_runs(laws.make_runs(n, d, noisy(n, d, 0.003, 0, EPOCH)), options())
  assert law.errors.line is None
  assert law.errors.heldout["forecasts"] > 2


def test_an_interval_of_n_opt_holds_how_n_opt_errs_beyond_the_budgets():
  n, d = isoflop(EPOCH, np.geomspace(1e18, 1e20, 5), sizes=7)
  law = laws.fit_runs(laws.make_runs(n, d, chinchilla.loss(EPOCH, n, d)), options())

  def width(growth, C):
    scale = errors.Scale(np.full(law.options.bootstraps, growth), 1)
    parts = dataclasses.replace(law.errors, line=None, place_growth=scale)
    low, high = laws.optimum(dataclasses.replace(law, errors=parts), C)["N_opt_interval"]
    return np.log(high / low)

  assert width(0.5, 1e20) == width(0.0, 1e20)
  expected = 2 * 1.645 * 0.5 * np.log(10)
  assert width(0.5, 1e21) == pytest.approx(expected, rel=0.25)
  assert width(0.0, 1e21) < expected / 4
