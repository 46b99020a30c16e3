"""The law of the training curve, on curves of known laws."""

import numpy as np
import pytest

from configs.errors import DataError
from scaling.laws.curves import curve_law
from scaling.laws.curves.curve_law import RunCurve

TRUTH = {"E": 1.9, "A": 120.0, "B": 60.0, "alpha": 0.45, "beta": 0.32,
         "G": 8e-4, "kappa": 0.15, "gamma": 0.4, "gap": 0.06}  # fmt: skip
STEP = 512  # tokens


def areas(steps, cooldown=0.2):
  rate = np.ones(steps)
  n = round(cooldown * steps)
  if n:
    rate[-n:] = 1 - np.sqrt(np.arange(n) / n)
  return np.cumsum(rate) * STEP, np.cumsum(1 - rate) * STEP


def run(N, steps, rng, noise=0.0, scatter=0.0, trunk=""):
  """A run of `TRUTH`: a row every ten steps, `noise` in each, `scatter` in its final loss."""
  S, Z = areas(steps)
  rows = np.arange(9, steps, 10)
  train = truth(N, S[rows], Z[rows]) * np.exp(noise * rng.standard_normal(len(rows)))
  final = truth(N, S[-1], Z[-1]) * np.exp(TRUTH["gap"] + scatter * rng.standard_normal())
  return RunCurve(N, S[rows], Z[rows], train, (S[-1], Z[-1]), float(final), trunk)


def truth(N, S, Z):
  t = TRUTH
  grown = t["E"] + t["A"] * N ** -t["alpha"] + t["B"] * S ** -t["beta"]
  return grown - t["G"] * N ** t["kappa"] * Z ** t["gamma"]


def sweep(rng, sizes=(3e4, 6e4, 1.2e5, 2.4e5), budgets=(8e7, 1.6e8, 3.2e8, 6.4e8), **kwargs):
  return [run(N, round(c / N), rng, trunk=f"of {N}", **kwargs) for N in sizes for c in budgets]


def test_curves_without_noise_give_their_law_back():
  params = curve_law.fit(sweep(np.random.default_rng(0)))
  for name, value in TRUTH.items():
    # A bin averages a bent curve over 15 % of its tokens, a fifth of a decay.
    assert params[name] == pytest.approx(value, rel=0.15, abs=0.02), name
  late = run(4e5, 4000, np.random.default_rng(1))
  assert curve_law.final_loss(params, late) == pytest.approx(late.final, rel=1e-3)


@pytest.mark.slow
def test_intervals_cover_the_runs_to_come_as_often_as_they_say():
  rng, covered, misses, widths = np.random.default_rng(2), [], [], []
  for _ in range(4):
    curves = sweep(rng, noise=0.02, scatter=0.004)
    ends = [run(N, round(1.3e9 / N), rng, 0.02, 0.004) for N in (1e5, 2e5, 4e5)]
    rows = curve_law.forecast(curves + [end.until(0.3) for end in ends], 0.9)
    assert set(rows) == {16, 17, 18}
    for (loss, (low, high)), end in zip(rows.values(), ends, strict=True):
      covered.append(low <= end.final <= high)
      misses.append(abs(loss / end.final - 1))
      widths.append(np.log(high / low))
  assert np.mean(covered) >= 0.75
  assert np.median(misses) < 0.01  # the scatter of a run is .004
  assert np.median(widths) < 0.04  # narrow enough to say something


def test_a_schedule_that_cools_down_longer_is_told_apart():
  params = curve_law.fit(sweep(np.random.default_rng(3)))
  S, Z = areas(3000, cooldown=0.6)
  other = RunCurve(1e5, S[:0], Z[:0], S[:0], (S[-1], Z[-1]))
  expected = truth(1e5, S[-1], Z[-1]) * np.exp(TRUTH["gap"])
  assert curve_law.final_loss(params, other) == pytest.approx(expected, rel=2e-3)


def test_a_shared_trunk_counts_once():
  curves = sweep(np.random.default_rng(4), sizes=(6e4,))
  alone = [curve._replace(trunk="") for curve in curves]
  constant = lambda table: int(np.sum(table["decay"] == curve_law.CONSTANT))  # noqa: E731
  shared, twice = (curve_law.points(group, 1e5) for group in (curves, alone))
  longest = curve_law.points(curves[-1:], 1e5)
  assert constant(shared) == constant(longest) < constant(twice)
  finals = shared["kind"] == curve_law.VALIDATION
  assert shared["weight"][finals].sum() == pytest.approx(
    curve_law.FINALS * shared["weight"][~finals].sum()
  )


def test_what_has_just_begun_and_too_few_runs_have_no_forecast():
  rng = np.random.default_rng(5)
  curves = sweep(rng)
  assert curve_law.forecast([*curves, curves[0].until(0.1)], 0.9) == {}
  with pytest.raises(DataError, match="a law of their curves needs 8"):
    curve_law.forecast([*curves[:7], curves[8].until(0.3)], 0.9)
