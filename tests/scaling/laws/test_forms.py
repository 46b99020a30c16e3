"""Forms: each is recovered from its own runs, in any units, by one solver."""

import re
import textwrap

import numpy as np
import pytest
from surfaces import EPOCH, grid, noisy, options

from scaling import laws
from scaling.laws import chinchilla, forms, other_forms, solve
from scaling.laws.forms import FLOOR, FORMS, POWER, SCALE, Form

BASE = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.36}
KAPLAN = {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.103}  # their table 2
TRUE = {
  "chinchilla": BASE,
  "cross": BASE | {"kappa": 0.03},
  "kaplan_nd": KAPLAN,
  "data_constrained": BASE | {"R_D": 15.39, "R_N": 5.31},
  "precision": BASE | {"gamma": 2.7},
  "transfer": KAPLAN | {"k": 1.9e4, "given": 0.18, "size": 0.38},
}
BREAKS = {"n": 1e8, "d": 2e9, "c": 1e18}
for v, at in BREAKS.items():
  TRUE[f"kaplan_{v}"] = {"X_c": 1e14, "alpha": 0.08}
  TRUE[f"power_law_{v}"] = {"E": 1.5, "A": 30.0, "alpha": 0.2}
  TRUE[f"broken_{v}"] = {"E": 1.0, "A": 30.0, "X_1": at, "c0": 0.1, "c1": 0.2, "f": 0.4}
QUICK = ("cross", "kaplan_nd", "power_law_c")


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


def test_every_form_is_here_and_names_its_source():
  assert set(FORMS) == set(TRUE)
  for form in FORMS.values():
    assert "et al. 20" in form.doc
    assert "arXiv:" in form.doc


@pytest.mark.parametrize("name", sorted(TRUE))
def test_a_form_means_the_same_in_the_solvers_units(name):
  """Its declared units are right: the truth, turned into the solver's units, fits exactly."""
  form = FORMS[name]
  variables = runs_of(form)
  loss = laws.evaluate(form, TRUE[name], variables)
  problem = solve.make_problem(form, variables, loss)
  np.testing.assert_allclose(
    solve.residuals(problem, problem.theta(TRUE[name])[None]), 0, atol=1e-12
  )
  turned = problem.natural(problem.theta(TRUE[name]))
  assert turned == pytest.approx(TRUE[name], rel=1e-12)


@pytest.mark.parametrize(
  "name",
  [v if v in QUICK else pytest.param(v, marks=pytest.mark.slow) for v in sorted(TRUE)],
)
def test_a_form_is_recovered_from_its_own_runs(name):
  form = FORMS[name]
  variables = runs_of(form)
  found = laws.fit_form(form, variables, laws.evaluate(form, TRUE[name], variables), seed=1)
  for key, value in TRUE[name].items():
    assert found.params[key] == pytest.approx(value, rel=1e-6), key
  assert (
    found.converged.shape == found.costs.shape == (49 if name == "chinchilla" else solve.STARTS,)
  )
  assert np.all(np.abs(found.residuals) < 1e-9)
  assert found.at_bound == ()


def test_formulas_by_hand():
  def loss(name, **variables):
    arrays = {key: np.array([value]) for key, value in variables.items()}
    return float(laws.evaluate(FORMS[name], TRUE[name], arrays)[0])

  n, d = 2e8, 3e9
  assert loss("kaplan_n", N=n) == pytest.approx((1e14 / n) ** 0.08)
  joint = ((8.8e13 / n) ** (0.076 / 0.103) + 5.4e13 / d) ** 0.103
  assert loss("kaplan_nd", N=n, D=d) == pytest.approx(joint)
  effective = n * (1 - np.exp(-4 / 2.7))
  assert loss("precision", N=n, D=d, P=4.0) == pytest.approx(
    1.7 + 400 * effective**-0.34 + 2000 * d**-0.36
  )
  whole = 1.7 + 400 * n**-0.34 + 2000 * d**-0.36
  assert loss("chinchilla", N=n, D=d) == pytest.approx(whole)
  assert loss("precision", N=n, D=d, P=300.0) == pytest.approx(whole)
  # Four repeats of enough unique tokens: D' = U (1 + 15.39 (1 - exp(-4 / 15.39))).
  u, small = 6e8, 1e6
  worth = u * (1 + 15.39 * (1 - np.exp(-4 / 15.39)))
  assert loss("data_constrained", N=small, D=5 * u, U=u) == pytest.approx(
    1.7 + 400 * small**-0.34 + 2000 * worth**-0.36
  )
  # A model eight times too large for its unique tokens counts as fewer parameters.
  best = (0.34 * 400 / (0.36 * 2000) * u**0.36) ** (1 / 0.34)
  counted = best * (1 + 5.31 * (1 - np.exp(-7 / 5.31)))
  assert loss("data_constrained", N=8 * best, D=u, U=u) == pytest.approx(
    1.7 + 400 * counted**-0.34 + 2000 * u**-0.36
  )
  more = d + 1.9e4 * d**0.18 * n**0.38
  assert loss("transfer", N=n, D=d, pretrained=1.0) == pytest.approx(loss("kaplan_nd", N=n, D=more))
  assert loss("transfer", N=n, D=d, pretrained=0.0) == pytest.approx(joint)
  bent = 1.0 + 30 * d**-0.1 * (1 + (d / 2e9) ** (1 / 0.4)) ** (-0.2 * 0.4)
  assert loss("broken_d", D=d) == pytest.approx(bent)


def test_the_example_of_a_form_is_one(monkeypatch):
  """The lines in the docstring of `forms`, run as they stand, make a form."""
  monkeypatch.setattr(forms, "FORMS", {})
  example = re.search(r"\n\n(  @form.*?)\n\n", forms.__doc__, re.DOTALL)[1]
  exec(textwrap.dedent(example), dict(vars(forms)))
  made = forms.FORMS["chinchilla"]
  variables = runs_of(made)
  loss = laws.evaluate(FORMS["chinchilla"], BASE, variables)
  np.testing.assert_allclose(laws.evaluate(made, BASE, variables), loss)
  assert made.kinds == FORMS["chinchilla"].kinds


def test_a_new_form_is_a_few_lines():
  """One that is not in the table: L = E + A / (N D)^alpha, fitted as it stands."""
  product = Form(
    "product", ("N", "D"), {"E": FLOOR, "A": SCALE, "alpha": POWER},
    lambda p, x: p.E + p.A * (x.N * x.D) ** -p.alpha,
    lambda p, u: {"E": u.L, "A": u.L * (u.N * u.D) ** p.alpha},
    "for this test",
  )  # fmt: skip
  n, d = grid()
  found = laws.fit_form(product, {"N": n, "D": d}, 2 + 50 * (n * d) ** -0.2)
  assert found.params == pytest.approx({"E": 2, "A": 50, "alpha": 0.2}, rel=1e-6)


def test_of_many_runs_a_part_decides_between_starts_and_all_of_them_decide_the_rest(monkeypatch):
  n, d = grid(20, 20)
  variables, loss = {"C": 6 * n * d}, 2 + 50 * (n * d) ** -0.2
  loss = loss * np.exp(0.01 * np.random.default_rng(0).standard_normal(400))
  whole = laws.fit_form(FORMS["power_law_c"], variables, loss)
  monkeypatch.setattr(solve, "MANY", 100)
  monkeypatch.setattr(other_forms, "MOST_RESAMPLED", 100)
  other = laws.fit_form(FORMS["power_law_c"], variables, loss)
  assert other.params == pytest.approx(whole.params, rel=1e-6)
  with pytest.raises(ValueError, match="resamples=9: for 100 runs at most, not 400"):
    laws.fit_form(FORMS["power_law_c"], variables, loss, resamples=9)


@pytest.mark.parametrize(
  ("changed", "said"),
  [
    ({"D": None}, "needs N, D, and there is no D; give it"),
    ({"D": np.ones(3)}, "3 values of D for 20 losses"),
    ({"D": np.full(20, np.nan)}, "run 0, D: nan is not a positive finite number"),
    ({"N": -np.ones(20)}, "run 0, N: -1.0 is not"),
  ],
)
def test_what_a_form_cannot_use_is_named(changed, said):
  n, d = grid()
  variables = {k: v for k, v in ({"N": n, "D": d} | changed).items() if v is not None}
  with pytest.raises(ValueError, match=f"form=kaplan_nd.*{said}"):
    laws.fit_form(FORMS["kaplan_nd"], variables, np.ones(20))
  with pytest.raises(ValueError, match="4 runs for 4 parameters"):
    laws.fit_form(FORMS["kaplan_nd"], {"N": n[:4], "D": d[:4]}, np.ones(4))
  with pytest.raises(ValueError, match="fit.delta=0"):
    laws.fit_form(FORMS["kaplan_nd"], {"N": n, "D": d}, np.ones(20), delta=0.0)


@pytest.mark.slow
def test_the_form_that_made_the_runs_forecasts_best():
  n, d = np.meshgrid(np.geomspace(1e7, 3e9, 7), np.geomspace(1e9, 1e11, 7))
  n, d = n.ravel(), d.ravel()
  runs = laws.make_runs(n, d, noisy(n, d, 0.001, 0, EPOCH))
  table = laws.compare_forms(runs, ("chinchilla", "kaplan_nd"))
  cuts = sorted({row["C"] for row in table})
  assert len(table) == 2 * len(cuts) == 16
  errors = {
    name: [row["rms_error"] for row in table if row["form"] == name and row["rms_error"]]
    for name in ("chinchilla", "kaplan_nd")
  }
  assert np.median(errors["chinchilla"]) < 0.004 < 0.5 * np.median(errors["kaplan_nd"])
  few = [row for row in table if row["fitted"] <= 5 and row["form"] == "chinchilla"]
  assert all(row["rms_error"] is None and "for 5 parameters" in row["reason"] for row in few)
  # By hand, at the middle cut: our law fitted to the runs below it, asked for those above.
  row = next(r for r in table if r["C"] == cuts[4] and r["form"] == "chinchilla")
  below = np.flatnonzero(row["C"] * (1 + 1e-9) >= runs.C)
  above = np.setdiff1d(np.arange(len(runs)), below)
  law = laws.fit_runs(runs.subset(below), options(bootstraps=100)).law
  error = np.log(runs.loss[above] / chinchilla.loss(law, runs.N[above], runs.D[above]))
  assert row["heldout"] == len(above)
  assert row["rms_error"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-3)
  assert row["bias"] == pytest.approx(error.mean(), rel=1e-2, abs=1e-6)
  with pytest.raises(ValueError, match="form='chinchila': unknown; choose from"):
    laws.compare_forms(runs, ("chinchila",))
  with pytest.raises(ValueError, match="there is no U; give it"):
    laws.compare_forms(runs, ("data_constrained",))
