"""What the runs do not determine is neither quoted nor sealed, and one bad run spoils nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from surfaces import EPOCH, isoflop, noisy, options, random_surface

from scaling import laws, main
from scaling.laws import chinchilla, questions
from scaling.report import document, sweep_results

CASES = Path(__file__).parent / "cases"


def fitted(name):
  return laws.fit_runs(laws.read_runs(CASES / f"{name}.csv"), options(bootstraps=1000))


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("equal_losses", "the best loss does not fall with compute; train at larger"),
    ("rising_losses", "the best loss does not fall with compute; train at larger"),
    ("accuracies", "these look like accuracies, of which larger is better"),
  ],
)
def test_losses_that_do_not_fall_are_no_law(name, said, tmp_path, capsys):
  runs = f"--runs={CASES / name}.csv"
  assert main.main(["fit", runs, f"--workdir={tmp_path}"]) == 2
  out, error = capsys.readouterr()
  assert said in error.strip().splitlines()[-1]
  assert out.startswith("No law yet: undetermined by ")
  assert "tokens/param" not in out
  record = sweep_results.read(tmp_path)
  assert record.fit["optimum"] == record.optima == []
  document.write(tmp_path)
  assert "No law yet" in (tmp_path / "report.md").read_text()
  assert "**No law yet" not in (tmp_path / "report.md").read_text()


def surface(budgets):
  n, d = isoflop(EPOCH, budgets, sizes=6)
  return laws.fit_runs(laws.make_runs(n, d, noisy(n, d, 0.003, 0, EPOCH)), options())


def test_designs_that_determine_no_law():
  budgets = np.geomspace(1e19, 1e20, 4)
  assert laws.undetermined(surface(budgets), 3e20) == []
  (reason, *_) = laws.undetermined(surface(np.geomspace(1e19, 2e19, 4)))
  assert "all runs are within 2" in reason
  n, d = isoflop(EPOCH, budgets, sizes=6)
  flat = np.repeat([3.0, 2.9, 2.8, 2.7], 6)  # by budget alone
  found = laws.fit_runs(laws.make_runs(n, d, flat), options())
  with pytest.raises(ValueError, match="there is nothing to seal"):
    laws.check_sealable(found, 3e20)
  n = np.tile(np.geomspace(2e10, 2e11, 6), 4)  # each far larger than is worth its compute
  d = np.repeat(budgets, 6) / (6 * n)
  found = laws.fit_runs(laws.make_runs(n, d, chinchilla.loss(EPOCH, n, d)), options())
  assert "below the fitted sizes" in laws.undetermined(found)[0]
  n = np.tile(np.geomspace(2e6, 2e7, 6), 4)  # each far smaller
  d = np.repeat(budgets, 6) / (6 * n)
  found = laws.fit_runs(laws.make_runs(n, d, chinchilla.loss(EPOCH, n, d)), options())
  assert "far above the fitted sizes" in laws.undetermined(found)[0]


def test_narrow_designs_determine_no_exponent():
  """Within 2x of C, with noise of .3 %, a is anywhere: no interval says so."""
  reasons = [laws.undetermined(surface(1e19 * np.geomspace(1, x, 4))) for x in (1.5, 2, 4, 5, 20)]
  assert ["within" in "".join(said) for said in reasons] == [True, True, True, False, False]


def test_equal_losses_within_each_budget_are_no_profile():
  """No profile has a minimum, and every resample sits at an edge: also with a trace of noise."""
  n, d = isoflop(EPOCH, np.geomspace(1e19, 1e20, 4), sizes=6)
  flat = np.repeat([3.0, 2.9, 2.8, 2.7], 6)
  for noise in (0.0, 1e-4, 1e-3):
    loss = flat * np.exp(noise * np.random.default_rng(0).standard_normal(len(n)))
    assert laws.undetermined(laws.fit_runs(laws.make_runs(n, d, loss), options()), 3e20)


def test_losses_without_end_seal_nothing():
  n, d = isoflop(EPOCH, np.geomspace(1e19, 1e20, 4), sizes=6)
  for far in (slice(0, 1), slice(0, 12), slice(None)):
    loss = noisy(n, d, 0.003, 0, EPOCH)
    loss[far] *= 1e300
    try:
      found = laws.fit_runs(laws.make_runs(n, d, loss), options())
    except ValueError:  # refused before it is fitted
      continue
    stored = laws.to_json(found)
    json.dumps(stored, allow_nan=False)
    if not (stored["undetermined"] or laws.undetermined(found, 3e20)):
      assert 20 < laws.optimum(found, 3e20)["tokens_per_param"] < 80  # one outlier is cut


def at_the_edge(E=""):
  """Losses that fall with compute alone, on a plateau: E and most resamples end at an edge."""
  n, d = isoflop(EPOCH, np.geomspace(1e19, 1e20, 4), sizes=6)
  loss = 3e4 * (n * d) ** -0.24 * np.exp(0.03 * np.random.default_rng(3).standard_normal(len(n)))
  return laws.fit_runs(laws.make_runs(n, d, loss), options(E=E))


def test_most_resamples_at_an_edge_are_no_interval():
  found = at_the_edge()
  assert found.convergence["at_bound"] == ["E"]
  assert found.convergence["resamples_at_bound"] > 0.5
  (reason, *_) = laws.undetermined(found, 3e20)
  assert "E ended at the edge of its range" in reason
  assert "fit.E" in reason


def points_and_intervals(value):
  """Yields each number of a JSON value that has an interval beside it, with the interval."""
  if isinstance(value, list):
    for item in value:
      yield from points_and_intervals(item)
  elif isinstance(value, dict):
    for name, ends in value.items():
      yield from points_and_intervals(ends)
      point = value.get(name.removesuffix("_interval"))
      if name.endswith("_interval") and ends and None not in [point, *ends]:
        yield name, point, ends


@pytest.mark.parametrize(
  "seed", [pytest.param(i, marks=[pytest.mark.slow] * (i > 1)) for i in range(20)]
)
def test_every_interval_holds_its_point(seed):
  """Over random laws, designs and noise, determined or not, of all that a fit may be asked."""
  rng = np.random.default_rng(seed)
  law, n, d = random_surface(rng)
  loss = chinchilla.loss(law, n, d) * np.exp(
    rng.choice([0.002, 0.02, 0.2]) * rng.normal(size=len(n))
  )
  found = laws.fit_runs(laws.make_runs(n, d, loss), options(bootstraps=100))
  said = laws.to_json(found)
  pairs = [(name, said[name], ends) for name in "ab" if (ends := said["intervals"][name])]
  pairs += [(name, said["params"][name], said["intervals"][name]) for name in said["params"]]
  for factor in (1, 3, 100):
    C = factor * float(found.runs.C.max())
    best = laws.optimum(found, C)
    answers = (
      best,
      laws.ratio_cost(found, C, 20),
      laws.ratio_cost(found, C, best["D_opt"] / best["N_opt"]),
    )
    pairs += points_and_intervals(list(answers))
    pairs.append(("run", *laws.predict_loss(found, best["N_opt"], best["D_opt"])))
  pairs += points_and_intervals(said["estimators"])
  if not said["undetermined"]:
    asked = questions.Questions(flops=C, loss=best["loss"], inference_tokens=1e9, max_tokens=1e9)
    pairs += points_and_intervals(questions.answers(found, asked))
  assert len(pairs) > 20
  for name, point, (low, high) in pairs:
    assert low <= point <= high or np.isnan([low, high]).all(), (name, point, low, high)


def test_one_run_that_diverged_moves_neither_interval_nor_form():
  found, clean = fitted("one_diverged"), fitted("clean")
  a, draws = (law.exponents(1e21)[0] for law in (found.law, found.draws))
  low, high = laws.interval(draws, 0.9, float(a))
  assert 0.49 < low < a < high < 0.521
  assert found.convergence["resamples_converged"] > 0.99
  assert found.errors.loss_growth.value == pytest.approx(clean.errors.loss_growth.value, rel=0.2)


def test_an_interval_holds_its_point():
  draws = np.random.default_rng(0).normal(2.0, 0.1, 500)
  assert laws.interval(draws, 0.9, 1.0)[0] == 1.0
  assert laws.interval(draws, 0.9, 3.0)[1] == 3.0
