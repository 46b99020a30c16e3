"""What the runs do not determine is neither quoted nor sealed, and one bad run spoils nothing."""

from pathlib import Path

import numpy as np
import pytest
from surfaces import EPOCH, isoflop, noisy, options

from scaling import laws, main
from scaling.laws import chinchilla
from scaling.report import records, report

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
  record = records.read(tmp_path)
  assert record.fit["optimum"] == record.optima == []
  report.write(tmp_path)
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
  assert "far from the fitted sizes" in laws.undetermined(found)[0]


def test_one_run_that_diverged_moves_neither_interval_nor_form():
  found, clean = fitted("one_diverged"), fitted("clean")
  a, draws = (law.exponents(1e21)[0] for law in (found.law, found.draws))
  low, high = laws.interval(draws, 0.9, float(a))
  assert 0.49 < low < a < high < 0.521
  assert found.convergence["resamples_converged"] > 0.99
  assert found.form_error == pytest.approx(clean.form_error, rel=0.2)


def test_an_interval_holds_its_point():
  draws = np.random.default_rng(0).normal(2.0, 0.1, 500)
  assert laws.interval(draws, 0.9, 1.0)[0] == 1.0
  assert laws.interval(draws, 0.9, 3.0)[1] == 3.0
