"""Forms: each is recovered from its own runs, in any units, by one solver."""

import re
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
from surfaces import BASE, EPOCH, TRUE, grid, noisy, options, runs_of, runs_with

from scaling import laws
from scaling.laws import chinchilla, fit, forms, questions, solve
from scaling.laws.forms import FLOOR, FORMS, POWER, SCALE, Form
from scaling.laws.intervals import bootstrap

QUICK = ("cross", "kaplan_nd", "power_law_c")


@pytest.mark.parametrize("name", sorted(FORMS.keys() | TRUE.keys()))
def test_every_form_is_here_and_names_its_source(name):
  assert name in FORMS, f"{name}: a row of TRUE (tests/helpers/surfaces.py), and no form"
  assert name in TRUE, f"{name}: give it a row of TRUE (tests/helpers/surfaces.py)"
  source = r"et al\. 20\d\d.*arXiv:|\b[Oo]wn\b"
  said = f"{name}: its docstring names no source, as (Hoffmann et al. 2022, arXiv:...), or 'own'"
  assert re.search(source, FORMS[name].doc, re.DOTALL), said


def test_formulas_are_whole():
  one = FORMS["chinchilla"]
  three = "E + A/N^alpha + B/D^beta + G/(N D)^gamma"
  for rest in ("", ": own.", " (Someone et al. 2030, arXiv:3001.00001, eq. 2).", "."):
    assert one._replace(doc=three + rest + "\n\n  More (et al.).").formula == three
  power = "G e^(g h(gamma)) + B e^(b h(beta)) / D^(A e^(a h(alpha)))"
  formulas = {
    "chinchilla": "E + A / N^alpha + B / D^beta",
    "chinchilla_equal": "E + A / N^alpha + B / D^alpha",
    "cross": "E + A / N^alpha + B / N^kappa / D^beta",
    "farseer": power,
    "kaplan_nd": "[(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D",
    "precision": "E + A / (N (1 - exp(-P / gamma)))^alpha + B / D^beta",
    "data_constrained": "Chinchilla's law of effective N and D when U unique tokens are repeated",
    "transfer": "Kaplan's joint law of D + D_T, where pre-training is worth D_T = k D^given N^size "
    "tokens",
  }
  for v in "ndc":
    formulas[f"kaplan_{v}"] = "(X_c / X)^alpha"
    formulas[f"power_law_{v}"] = "E + A / X^alpha"
    formulas[f"broken_{v}"] = "E + A X^-c0 (1 + (X / X_1)^(1 / f))^(-c1 f)"
  for name, form in FORMS.items():
    assert form.formula == formulas.get(name, form.formula)  # others are one's own


@pytest.mark.parametrize("name", sorted(TRUE))
def test_a_form_means_the_same_in_the_solvers_units(name):
  """Its declared units are right: the truth, turned into the solver's units, fits exactly."""
  form = FORMS[name]
  variables = runs_of(form)
  loss = laws.evaluate(form, TRUE[name], variables)
  problem = solve.make_problem(form, variables, loss)
  np.testing.assert_allclose(
    solve.log_residuals(problem, problem.theta(TRUE[name])[None]), 0, atol=1e-12
  )
  turned = problem.natural(problem.theta(TRUE[name]))
  assert turned == pytest.approx(TRUE[name], rel=1e-12)


@pytest.mark.parametrize(
  "name",
  [v if v in QUICK else pytest.param(v, marks=pytest.mark.slow) for v in sorted(TRUE)],
)
def test_a_form_is_recovered_from_its_own_runs(name):
  form = FORMS[name]
  runs = runs_with(form, TRUE[name])
  problem = fit.problem_of(runs, options(), form)
  best = solve.minimum(problem, 1e-3)[1]
  found = problem.natural(best.theta[0])
  for key, value in TRUE[name].items():
    assert found[key] == pytest.approx(value, rel=1e-6), key
  assert np.all(np.abs(solve.log_residuals(problem, best.theta)) < 1e-9)
  assert not best.at_bound.any()


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
  found = laws.fit_runs(laws.make_runs(n, d, 2 + 50 * (n * d) ** -0.2), options(), product)
  assert found.params == pytest.approx({"E": 2, "A": 50, "alpha": 0.2}, rel=1e-6)


def test_of_many_runs_a_part_decides_between_starts_and_all_of_them_decide_the_rest(monkeypatch):
  n, d = grid(20, 20)
  loss = 2 + 50 * (n * d) ** -0.2
  loss = loss * np.exp(0.001 * np.random.default_rng(0).standard_normal(400))
  runs, form = laws.make_runs(n, d, loss), FORMS["power_law_c"]
  whole = laws.fit_runs(runs, options(), form)
  monkeypatch.setattr(solve, "MANY", 100)
  monkeypatch.setattr(solve, "_minima", {})
  monkeypatch.setattr(bootstrap, "MANY_BY_JAX", 100)
  part = laws.fit_runs(runs, options(bootstraps=2000), form)
  assert part.params == pytest.approx(whole.params, rel=1e-6)
  for name, draws in part.draws.params.items():  # the sandwich covariance
    assert draws.std() == pytest.approx(whole.draws.params[name].std(), rel=0.25)


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
    solve.make_problem(FORMS["kaplan_nd"], variables, np.ones(20))


@pytest.mark.parametrize(
  ("field", "value", "said"),
  [
    (
      "form",
      "chinchila",
      "fit.form=chinchila: must be one of .*chinchilla, .*farseer, .*kap",
    ),
    ("form", "power_law_c", "fit.form=power_law_c: must be one of .*: it is of C, and not of N"),
    ("form", "data_constrained", "it is of N, D, U, and not of N and D"),
    ("response", "sqrt", "fit.response=sqrt: must be one of log, raw"),
  ],
)
def test_a_form_that_is_no_surface_is_refused(field, value, said):
  runs = laws.make_runs(*grid(), np.ones(20))
  with pytest.raises(ValueError, match=said):
    laws.fit_runs(runs, SimpleNamespace(**options().to_dict() | {field: value}))


def test_a_form_of_more_than_n_and_d_has_no_optimum_and_says_so():
  law = laws.Law(FORMS["precision"], TRUE["precision"])
  assert laws.evaluate(law.form, law.params, {"N": 1e8, "D": 2e9, "P": 8.0}) > 1.7
  with pytest.raises(
    ValueError, match="form=precision: there is no P: .* no optimum along compute"
  ):
    law.optimum(1e18)


@pytest.mark.slow
def test_alpha_equal_to_beta_is_the_law_with_both_the_same():
  """Optima, costs and losses are Chinchilla's in closed form; only its four numbers are fitted."""
  n, d = grid()
  truth = chinchilla.Chinchilla(1.7, 40.0, 90.0, 0.35, 0.35)
  law = laws.fit_runs(
    laws.make_runs(n, d, chinchilla.loss(truth, n, d)), options(form="chinchilla_equal")
  )
  assert law.params == pytest.approx({"E": 1.7, "A": 40.0, "B": 90.0, "alpha": 0.35}, rel=1e-6)
  assert law.law.exponents(1e15) == pytest.approx((0.5, 0.5))
  np.testing.assert_allclose(law.law.optimum(1e15), chinchilla.optimum(truth, 1e15), rtol=1e-5)
  assert law.freedom == len(n) - 4
  (row,) = questions.answers(law, questions.Questions(flops=1e15, max_tokens=1e7))[1]["rows"][:1]
  few = chinchilla.data_constrained(truth, 1e15, 1e7)
  np.testing.assert_allclose((row["N"], row["loss"]), (few.N, few.loss), rtol=1e-3)


def test_what_runs_cannot_tell_of_a_form_is_refused():
  runs = laws.make_runs(*grid(), np.ones(20))
  with pytest.raises(ValueError, match="form=data_constrained: needs N, D, U, and there is no U"):
    laws.fit_runs(runs, options(), FORMS["data_constrained"])
  with pytest.raises(ValueError, match="form=farseer: 8 runs for 9 parameters; 10 are needed"):
    laws.fit_runs(runs.subset(np.array([0, 1, 2, 5, 6, 7, 10, 12])), options(form="farseer"))
  with pytest.raises(ValueError, match="fit.E=1.7: fit.form=kaplan_nd has no E; leave"):
    laws.fit_runs(runs, options(form="kaplan_nd", E="1.7"))


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
  assert all(row["rms_error"] is None and "needs 6 or more" in row["reason"] for row in few)
  # By hand, at the middle cut: our law fitted to the runs below it, asked for those above.
  row = next(r for r in table if r["C"] == cuts[4] and r["form"] == "chinchilla")
  below = np.flatnonzero(row["C"] * (1 + 1e-9) >= runs.C)
  above = np.setdiff1d(np.arange(len(runs)), below)
  law = laws.fit_runs(runs.subset(below), options(bootstraps=100)).law
  error = np.log(runs.loss[above] / law.loss(runs.N[above], runs.D[above]))
  assert row["heldout"] == len(above)
  assert row["rms_error"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-3)
  assert row["bias"] == pytest.approx(error.mean(), rel=1e-2, abs=1e-6)
  with pytest.raises(ValueError, match="form='chinchila': unknown; choose from"):
    laws.compare_forms(runs, ("chinchila",))
  with pytest.raises(ValueError, match="there is no U; give it"):
    laws.compare_forms(runs, ("data_constrained",))
