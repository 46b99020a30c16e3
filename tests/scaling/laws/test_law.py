"""Any form of N and D has an optimum, intervals and predictions; the closed form is one of them."""

import dataclasses

import numpy as np
import pytest
from surfaces import EPOCH, TRUE, TRUTH, isoflop, noisy, numbers, options, runs_with

from scaling import laws, main
from scaling.laws import chinchilla, forms, questions
from scaling.laws.chinchilla import Compute
from scaling.laws.forms import FORMS
from scaling.laws.law import RATIOS, Law

NUMERIC = FORMS["chinchilla"]._replace(name="as_any_other")
COMPUTES = [Compute(6.0), Compute(6.0, 300.0), Compute(5.8, -200.0)]
SLOW = {"farseer"}


def surfaces():
  return [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in forms.surfaces()]


@pytest.mark.parametrize("compute", COMPUTES)
def test_the_numeric_optimum_is_the_closed_one(compute):
  """Of the law and of draws of it, within 1e-6 in N, and what it costs to serve tokens too."""
  rng = np.random.default_rng(0)
  draws = {k: v * np.exp(0.02 * rng.standard_normal(20)) for k, v in EPOCH._asdict().items()}
  for params in (EPOCH._asdict(), draws):
    closed, numeric = (Law(form, params, compute) for form in (FORMS["chinchilla"], NUMERIC))
    for C in (1e15, 1e21, 1e25):
      np.testing.assert_allclose(numeric.optimum(C), closed.optimum(C), rtol=1e-6)
    loss = chinchilla.optimum(EPOCH, 1e21, compute).loss
    for served in (0.0, 1e9, 1e13):
      best, wanted = numeric.cheapest(loss, served), closed.cheapest(loss, served)
      np.testing.assert_allclose(best, wanted, rtol=1e-6)
  assert np.isinf(numeric.cheapest(1.0).N).all()  # below the floor


def test_numeric_exponents_are_the_closed_ones():
  closed, numeric = (Law(form, EPOCH._asdict()) for form in (FORMS["chinchilla"], NUMERIC))
  np.testing.assert_allclose(numeric.exponents(1e20), closed.exponents(1e20), atol=1e-6)
  span = np.array([1e18, 1e20, 1e22])  # a law at several budgets
  np.testing.assert_allclose(numeric.optimum(span).N, closed.optimum(span).N, rtol=1e-6)


def test_a_law_that_only_falls_with_size_has_no_optimum_to_seal():
  law = Law(FORMS["cross"], TRUE["cross"] | {"kappa": 0.6})
  best = law.optimum(1e20)
  assert law.at_end(best)
  assert pytest.approx(RATIOS[0]) == best.D / best.N
  other = Law(FORMS["cross"], TRUE["cross"])
  assert not other.at_end(other.optimum(1e20))
  fitted = laws.fit_runs(runs_with(law.form, other.params, 0.001), options(form="cross"))
  found = dataclasses.replace(fitted, law=law)
  row = laws.optimum(found, 1e20)
  assert np.isnan(row["N_opt_interval"]).all()
  assert np.isfinite(row["loss_interval"]).all()
  with pytest.raises(ValueError, match="fit.form=cross: the fitted law has no optimum at 1e.20"):
    laws.check_sealable(found, 1e20)


@pytest.mark.parametrize("name", surfaces())
def test_every_form_of_size_and_data_answers(name):
  """On its own runs: the optimum and a prediction beyond them lie in their intervals."""
  truth = Law(FORMS[name], TRUE[name])
  seed = int(name.startswith("chinchilla"))  # of 30 draws 0 is the one outside: counted below
  found = laws.fit_runs(runs_with(truth.form, truth.params, 0.002, seed), options(form=name))
  assert (found.form, set(found.params)) == (name, set(truth.form.kinds))
  assert all(len(draws) == 200 for draws in found.draws.params.values())
  C = 3 * float(found.runs.C.max())
  best, row = truth.optimum(C), laws.optimum(found, C)
  for key, value in (("N_opt", best.N), ("D_opt", best.D), ("loss", best.loss)):
    low, high = row[f"{key}_interval"]
    middle, width = (low + high) / 2, high - low
    assert abs(value - middle) < 1.2 * width  # 90 % holds the half of it
    assert low < row[key] < high
  assert row["N_opt"] == pytest.approx(best.N, rel=0.2)
  laws.check_sealable(found, C)
  loss, (low, high) = laws.predict_loss(found, best.N, best.D)
  assert low < best.loss < high
  assert loss == pytest.approx(best.loss, rel=0.02)
  cost = laws.ratio_cost(found, C, float(best.D / best.N))
  assert abs(cost["excess"]) < 1e-3
  asked = questions.Questions(loss=float(best.loss), inference_tokens=1e9)
  reached, served = questions.answers(found, asked)
  assert reached["rows"][0]["C"] == pytest.approx(C, rel=0.3)
  assert served["rows"][0]["N"] < served["rows"][1]["N"]


@pytest.mark.parametrize("name", ["chinchilla", "chinchilla_equal"])
def test_a_loss_beyond_the_runs_is_inside_its_interval_in_nine_of_ten_draws(name):
  truth, inside = Law(FORMS[name], TRUE[name]), 0
  for seed in range(10):
    made = runs_with(truth.form, truth.params, 0.002, seed)
    found = laws.fit_runs(made, options(form=name, bootstraps=100))
    best = truth.optimum(3 * float(made.C.max()))
    low, high = laws.predict_loss(found, best.N, best.D)[1]
    inside += low < best.loss < high
  assert inside >= 9


def test_questions_that_a_form_cannot_answer_are_refused():
  found = laws.fit_runs(runs_with(FORMS["kaplan_nd"], TRUE["kaplan_nd"]), options(form="kaplan_nd"))
  with pytest.raises(ValueError, match="max_tokens=1e.10: what repeated tokens are worth"):
    questions.answers(found, questions.Questions(flops=1e20, max_tokens=1e10))
  with pytest.raises(ValueError, match="target_loss=0.001: no model that the law tells of"):
    questions.answers(found, questions.Questions(loss=0.001))


def test_a_form_without_a_floor_and_one_with_a_known_floor():
  n, d = isoflop(sizes=7)
  runs = laws.make_runs(n, d, noisy(n, d, 0.004, 1))
  free, fixed = (laws.fit_runs(runs, options(E=E)) for E in ("", f"{TRUTH.E}"))
  assert fixed.params["E"] == pytest.approx(TRUTH.E)
  np.testing.assert_allclose(fixed.draws.params["E"], TRUTH.E)
  assert fixed.convergence["at_bound"] == []
  assert fixed.freedom == free.freedom + 1 == 24
  widths = [np.std(fit.draws.params["alpha"]) for fit in (fixed, free)]
  assert widths[0] < 0.8 * widths[1]
  exact = laws.make_runs(n, d, chinchilla.loss(TRUTH, n, d))
  found = laws.fit_runs(exact, options(E=f"{TRUTH.E}"))
  np.testing.assert_allclose(numbers(found.law), TRUTH, rtol=1e-6)
  assert laws.to_json(found)["known_E"] == f"{TRUTH.E}"


@pytest.mark.parametrize("name", ["chinchilla", "kaplan_nd"])
def test_residuals_of_the_loss_itself(name):
  """Each response has the least sum of its own squares, and a noise-free truth has both."""
  runs = runs_with(FORMS[name], TRUE[name], 0.01)
  sums = {}
  for response in ("log", "raw"):
    fitted = laws.fit_runs(runs, options(form=name, response=response, delta=10.0, bootstraps=100))
    loss = fitted.law.loss(runs.N, runs.D)
    sums[response] = np.sum((loss - runs.loss) ** 2), np.sum(np.log(loss / runs.loss) ** 2)
    for key, value in fitted.params.items():  # a minimum: no parameter lowers it alone
      for factor in (0.999, 1.001):
        moved = Law(fitted.law.form, fitted.params | {key: value * factor}).loss(runs.N, runs.D)
        errors = moved - runs.loss if response == "raw" else np.log(moved / runs.loss)
        assert np.sum(errors**2) > sums[response][response == "log"]
  assert sums["raw"][0] < sums["log"][0]
  assert sums["log"][1] < sums["raw"][1]
  exact = laws.fit_runs(runs_with(FORMS[name], TRUE[name]), options(form=name, response="raw"))
  assert exact.params == pytest.approx(TRUE[name], rel=1e-6)


def test_hubers_threshold_of_raw_residuals_is_in_nats():
  runs = runs_with(FORMS["chinchilla"], TRUE["chinchilla"], 0.01)
  found = laws.fit_runs(runs, options(response="raw", delta=0.03, bootstraps=100))
  errors = np.abs(found.law.loss(runs.N, runs.D) - runs.loss)
  by_hand = np.where(errors < 0.03, errors**2 / 2, 0.03 * (errors - 0.015)).sum()
  unit = found.problem.units["L"]
  assert found.convergence["cost"] * unit**2 == pytest.approx(by_hand)


def test_farseer_is_the_formula_of_its_paper():
  """Eq. 3 of arXiv:2506.10972, from our values and slopes at 1e8 parameters."""
  p, N, D = TRUE["farseer"], np.array([1e7, 1e8, 3e9]), np.array([1e9, 3e10, 1e12])

  def stretched(level, power):  # a N^power + b
    slope = f"slope_{level}"
    a = p[slope] / p[power] / 1e8 ** p[power]
    return a * N ** p[power] + np.log(p[level]) - p[slope] / p[power]

  exponent = np.exp(stretched("A", "alpha"))
  paper = np.exp(stretched("G", "gamma")) + np.exp(stretched("B", "beta")) * D**-exponent
  ours = laws.evaluate(FORMS["farseer"], p, {"N": N, "D": D})
  np.testing.assert_allclose(ours, paper, rtol=1e-12)
  straight = p | dict.fromkeys(("alpha", "beta", "gamma"), 0.0)  # power laws of N
  n = N / 1e8
  power = {level: p[level] * n ** p[f"slope_{level}"] for level in "ABG"}
  wanted = power["G"] + power["B"] * D ** -power["A"]
  ours = laws.evaluate(FORMS["farseer"], straight, {"N": N, "D": D})
  np.testing.assert_allclose(ours, wanted, rtol=1e-12)


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--config.fit.form=chinchila"], "fit.form=chinchila: must be one of "),
    (["--config.fit.form=data_constrained"], "it is of N, D, U, and not of N and D"),
    (["--config.fit.form=kaplan_nd", "--config.fit.E=1"], "fit.form=kaplan_nd has no E"),
    (["--config.fit.form=farseer", "--where=N < 5e7"], "9 parameters; 10 are needed"),
  ],
)
def test_the_command_refuses_in_one_line(tmp_path, capsys, flags, said):
  runs = runs_with(FORMS["chinchilla"], TRUE["chinchilla"])
  rows = zip(runs.N, runs.D, runs.loss, strict=True)
  table = tmp_path / "runs.csv"
  table.write_text("N,D,loss\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows if b in runs.D[:3]))
  assert main.main(["fit", f"--runs={table}", f"--workdir={tmp_path / 'out'}", *flags]) == 2
  said_there = capsys.readouterr().err.strip()
  assert said in said_there
  assert "\n" not in said_there


def test_no_parameter_has_the_name_of_an_exponent():
  """fit.json has both side by side: a and b are those of N_opt and D_opt along compute."""
  assert not {(name, key) for name in FORMS for key in ("a", "b") if key in FORMS[name].kinds}
