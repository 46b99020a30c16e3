"""The estimators against known surfaces, published fits, and the traps that others fell into."""

import numpy as np
import pytest
from surfaces import (
  EPOCH,
  TEXTBOOK,
  TRUTH,
  isoflop,
  noisy,
  options,
)

from scaling import laws
from scaling.laws import chinchilla, estimators


def test_isoflop_minima():
  """On a symmetric law the parabola is unbiased; profiles off-centre are said to be outside."""
  law = TRUTH._replace(alpha=np.float64(0.3), A=np.float64(40.0))
  budgets = (2e11, 5e11, 1.3e12)
  n, d = isoflop(law, budgets)
  runs = laws.make_runs(n, d, chinchilla.loss(law, n, d))
  result = laws.isoflop_profiles(runs, chinchilla.estimate_compute(runs.N, runs.D, runs.C))
  assert [p["inside"] for p in result["profiles"]] == [True] * 3
  for profile, budget in zip(result["profiles"], budgets, strict=True):
    best = chinchilla.optimum(law, budget)
    assert profile["C"] == pytest.approx(budget)
    assert profile["minimum_N"] == pytest.approx(best.N, rel=1e-6)
    assert profile["minimum_loss"] == pytest.approx(best.loss, rel=1e-2)
    c0, c1, c2 = profile["coefficients"]
    assert profile["minimum_N"] == pytest.approx(np.exp(-c1 / (2 * c2)))
  assert result["a"] == pytest.approx(0.5)
  assert result["b"] == pytest.approx(0.5)
  assert result["N_coefficient"] == pytest.approx(chinchilla.optimum(law, 1e12).N / 1e6)
  skew = laws.make_runs(*(cells := isoflop()), chinchilla.loss(TRUTH, *cells))
  skew = laws.isoflop_profiles(skew, TEXTBOOK)
  np.testing.assert_allclose([skew["a"], skew["b"]], chinchilla.exponents(TRUTH), rtol=0.02)
  small = n * 0.1, 2e11 / (0.6 * n)  # at the first budget, all sizes lie below the best one
  n, d = (np.where(np.arange(15) < 5, new, old) for new, old in zip(small, (n, d), strict=True))
  runs = laws.make_runs(n, d, chinchilla.loss(law, n, d))
  result = laws.isoflop_profiles(runs, TEXTBOOK)
  assert [p["inside"] for p in result["profiles"]] == [False, True, True]
  assert result["a"] == pytest.approx(0.5)  # from the two that are inside


def test_an_off_centre_parabola_is_biased_and_we_say_by_how_much():
  """Sizes that drift from above the best one to below it: Approach 2 is wrong without any noise."""
  law = chinchilla.Chinchilla(*map(np.float64, (1.0, 30.0, 200.0, 0.25, 0.5)))
  c = np.repeat(budgets := np.geomspace(1e17, 1e20, 4), 9)
  factors = np.geomspace(0.5, 16, 9) * (budgets[:, None] / 3e18) ** 0.1
  n = chinchilla.optimum(law, c).N * factors.ravel()
  found = laws.fit_runs(
    laws.make_runs(n, c / (6 * n), chinchilla.loss(law, n, c / (6 * n))), options()
  )
  table = laws.side_by_side(found, C=1e23)
  rows = {row["estimator"]: row for row in table["rows"]}
  truth, a = chinchilla.optimum(law, 1e23).N, chinchilla.exponents(law)[0]
  for name in ("huber", "mse", "lad"):
    assert rows[name]["a"] == pytest.approx(a, rel=1e-6)
    assert rows[name]["N_opt"] == pytest.approx(truth, rel=1e-5)
  wrong = rows["approach2"]
  assert wrong["N_opt"] / truth > 1.5
  assert wrong["a"] - a > 0.03
  assert wrong["bias"]["N_opt"] == pytest.approx(wrong["N_opt"] / truth - 1, abs=1e-4)
  assert wrong["bias"]["a"] == pytest.approx(wrong["a"] - a, abs=1e-6)
  worst = {row["quantity"]: row for row in table["disagreement"]}["N_opt"]
  assert "approach2" in (worst["low"]["estimator"], worst["high"]["estimator"])
  assert worst["gap"] > 1.5


def test_narrow_intervals_apart_are_seen_behind_a_wide_one():
  ends = {"wide": (0.4, [0.3, 0.7]), "low": (0.45, [0.44, 0.46]), "high": (0.5, [0.49, 0.51])}
  rows = [
    {"estimator": name}
    | dict.fromkeys(estimators.QUANTITIES, value)
    | {f"{key}_interval": interval for key in estimators.QUANTITIES}
    for name, (value, interval) in ends.items()
  ]
  found = estimators._disagreement(rows)[0]
  assert found["intervals_overlap"] is False
  assert found["apart"] == ["low", "high"]
  assert estimators._disagreement(rows[:2])[0]["intervals_overlap"] is True
  assert estimators._disagreement(rows[:1])[0]["intervals_overlap"] is None


def test_estimators_side_by_side_agree_on_a_fair_design():
  n, d = isoflop(EPOCH, np.geomspace(1e19, 1e21, 5), sizes=9)
  found = laws.fit_runs(laws.make_runs(n, d, noisy(n, d, 0.002, 0, EPOCH)), options(bootstraps=500))
  table = laws.side_by_side(found, curves=training_curves(EPOCH))
  assert table["C"] == pytest.approx(1e22)
  assert [row["estimator"] for row in table["rows"]] == [
    "approach1", "approach2", "huber", "mse", "lad",
  ]  # fmt: skip
  a, best = chinchilla.exponents(EPOCH)[0], chinchilla.optimum(EPOCH, 1e22)
  for row in table["rows"]:
    assert row["reason"] is None
    assert row["a"] == pytest.approx(a, abs=0.03)
    assert row["a"] + row["b"] == pytest.approx(1, abs=1e-3)
    assert row["N_opt"] == pytest.approx(best.N, rel=0.3)
    for name in estimators.QUANTITIES:
      low, high = row[f"{name}_interval"]
      assert low <= row[name] <= high
  assert all(row["intervals_overlap"] for row in table["disagreement"])
  bare = laws.side_by_side(found)["rows"][0]
  assert bare["a"] is None
  assert "no training curves" in bare["reason"]


def training_curves(law, sizes=40):
  """A fine ladder of sizes, each trained far: the surface itself along every curve."""
  rows = []
  for i, n in enumerate(np.geomspace(1e8, 1e11, sizes)):
    d = np.geomspace(n, 1000 * n, 300)
    rows.append((f"r{i}", n, d, 6 * n * d, chinchilla.loss(law, n, d)))
  return laws.make_curves(rows)


def test_the_envelope_of_curves_is_the_optimum():
  """On exact curves of finely spaced sizes, the winner at each compute is the optimal size."""
  front = estimators.envelope(training_curves(EPOCH, sizes=80))
  best = chinchilla.optimum(EPOCH, front["C"])
  assert len(front["C"]) > 50
  assert np.abs(np.log(front["N"] / best.N)).max() < np.log(1e11 / 1e8) / 79
  np.testing.assert_allclose(front["loss"], best.loss, rtol=1e-3)
  np.testing.assert_allclose(6 * front["N"] * front["D"], front["C"], rtol=0.01)


@pytest.mark.parametrize(
  ("tokens", "loss", "reason"),
  [([], [], "not empty"), ([1.0, 2.0], [3.0], "as long as"), ([1.0], [np.nan], "not a positive")],
)
def test_bad_curves_are_refused(tokens, loss, reason):
  with pytest.raises(ValueError, match=f"curve run7: .*{reason}"):
    laws.make_curves([("run7", 1e6, tokens, tokens, loss)])
