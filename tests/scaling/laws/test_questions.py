"""Decisions against brute force, closed forms and published examples."""

import json
import math

import numpy as np
import pytest
from surfaces import numbers, with_growth
from synthetic import TRUTH

from configs import base
from scaling import laws
from scaling.laws import chinchilla, questions
from scaling.report import evidence, render

# Sardana et al. 2024 (arXiv:2401.00448) use these values of Hoffmann et al.'s law.
HOFFMANN = chinchilla.Chinchilla(*map(np.float64, (1.69, 406.4, 410.7, 0.336, 0.283)))
WIDE = chinchilla.Compute(6.0, 900.0)  # attention's share of a small model is not small


def bootstrap(law, size=5, noise=0.05):
  rng = np.random.default_rng(0)
  return chinchilla.Chinchilla(*(value * (1 + noise * rng.uniform(-1, 1, size)) for value in law))


@pytest.mark.parametrize("compute", [chinchilla.Compute(), WIDE])
@pytest.mark.parametrize("served", [0.0, 1e9, 1e12])
def test_the_cheapest_model_of_a_quality_against_brute_force(compute, served):
  """Over a fine grid of N, D from the loss: nothing is cheaper, for each law of a bootstrap."""
  many = bootstrap(TRUTH)
  loss = chinchilla.optimum(TRUTH, 1e15, compute).loss
  found = chinchilla.cheapest(many, loss, compute, served)
  for i, values in enumerate(zip(*many, strict=True)):
    law = chinchilla.Chinchilla(*values)
    n = np.exp(np.linspace(-5, 8, 400_001)) * found.N[i]
    room = loss - law.E - law.A * n**-law.alpha
    d = np.where(room > 0, (law.B / np.where(room > 0, room, 1)) ** (1 / law.beta), np.inf)
    total = compute.flops_per_token(n) * (d + served / 3)
    own = compute.flops_per_token(found.N[i]) * (found.D[i] + served / 3)
    assert own <= total.min() * (1 + 1e-12)
    assert found.N[i] == pytest.approx(n[np.argmin(total)], rel=1e-4)
    assert chinchilla.loss(law, found.N[i], found.D[i]) == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("compute", [chinchilla.Compute(), WIDE])
def test_the_least_compute_inverts_the_optimum(compute):
  for C in (1e10, 1e15, 1e25):
    best = chinchilla.optimum(TRUTH, C, compute)
    found = chinchilla.cheapest(TRUTH, best.loss, compute)
    np.testing.assert_allclose(found, best, rtol=1e-6)


def test_examples_of_sardana_et_al():
  """A 13B model to serve 2T tokens: 7B instead saves 1.7e22 FLOPs, 17 % (their figure 1)."""
  n = 13e9
  d = chinchilla.base_params  # D from N: the inverse of what base_params says
  tokens = np.geomspace(1e10, 1e13, 200_001)
  tokens = tokens[np.argmin(np.abs(d(HOFFMANN, tokens) - n))]
  found = chinchilla.cheapest(HOFFMANN, chinchilla.loss(HOFFMANN, n, tokens), inference_tokens=2e12)
  costs = [6 * a * b + 2 * a * 2e12 for a, b in ((n, tokens), (found.N, found.D))]
  assert pytest.approx(7e9, rel=0.02) == found.N
  assert costs[0] - costs[1] == pytest.approx(1.7e22, rel=0.02)
  assert 1 - costs[1] / costs[0] == pytest.approx(0.17, abs=0.005)


def test_a_loss_that_nothing_reaches():
  found = chinchilla.cheapest(bootstrap(TRUTH, 50, 0.2), 1.2)
  reached = bootstrap(TRUTH, 50, 0.2).E < 1.2
  assert 0 < reached.sum() < 50
  np.testing.assert_array_equal(np.isfinite(found.N), reached)


def test_effective_counts():
  """One epoch counts fully; the first repeat nearly; no number of them beyond U (1 + R*)."""
  decay = chinchilla.REPEATED_TOKENS
  assert chinchilla.effective(100.0, 40.0, decay) == pytest.approx(40)
  assert chinchilla.effective(100.0, 100.0, decay) == pytest.approx(100)
  assert chinchilla.effective(100.0, 1e9, decay) == pytest.approx(100 * (1 + decay))
  slope = (
    chinchilla.effective(100.0, 500.001, decay) - chinchilla.effective(100.0, 500.0, decay)
  ) / 1e-3
  assert slope == pytest.approx(math.exp(-4 / decay), rel=1e-4)
  # Muennighoff et al.: up to four epochs are almost as good as new tokens.
  assert chinchilla.effective(100.0, 400.0, decay) == pytest.approx(400, rel=0.08)


@pytest.mark.parametrize("compute", [chinchilla.Compute(), WIDE])
@pytest.mark.parametrize("share", [0.003, 0.1, 0.9])
def test_few_data_against_brute_force(compute, share):
  C, many = 1e15, bootstrap(TRUTH)
  unique = share * chinchilla.optimum(TRUTH, C, compute).D
  found = chinchilla.data_constrained(many, C, unique, compute)
  for i, values in enumerate(zip(*many, strict=True)):
    law = chinchilla.Chinchilla(*values)
    n = np.exp(np.linspace(-9, 9, 100_001)) * found.N[i]
    loss = chinchilla.repeated_loss(law, n, compute.tokens(n, C), unique, compute)
    assert found.loss[i] <= loss.min() + 1e-12
    assert found.N[i] == pytest.approx(n[np.argmin(loss)], rel=1e-3)


def test_enough_data_are_no_constraint():
  best = chinchilla.optimum(TRUTH, 1e15, WIDE)
  np.testing.assert_allclose(
    chinchilla.data_constrained(TRUTH, 1e15, 1.01 * best.D, WIDE), best, rtol=1e-5
  )
  fewer = chinchilla.data_constrained(TRUTH, 1e15, 0.2 * best.D, WIDE)
  assert fewer.N < best.N  # more epochs, not a larger model
  assert fewer.loss > best.loss


def test_base_params_and_params_on_tokens_invert_what_they_say():
  best = chinchilla.optimum(TRUTH, 1e14, WIDE)
  assert chinchilla.base_params(TRUTH, best.D, WIDE) == pytest.approx(best.N, rel=1e-6)
  assert WIDE.params_on_tokens(1e14, best.D) == pytest.approx(best.N, rel=1e-9)


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("", 0),
    ("1e21", 1e21),
    (" 3.5E+20 ", 3.5e20),
    ("1PFs-day", 8.64e19),
    ("0.5 PFs-days", 4.32e19),
  ],
)
def test_compute_in_two_units(text, value):
  assert questions.parse_flops(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["0", "-1e21", "1e21 FLOPs", "PFs-days", "1e", "nan", "inf", "e"])
def test_other_units_are_refused(text):
  with pytest.raises(ValueError, match=r"target_flops=.*1e21, or petaflop/s-days as 0.5PFs-days"):
    questions.parse_flops(text)


@pytest.mark.parametrize(
  ("asked", "said"),
  [
    ({"inference_tokens": 1e9}, "inference_tokens=1e\\+09: of which model"),
    ({"max_tokens": 1e9}, "max_tokens=1e\\+09: of which model"),
    ({"loss": -2.0}, "target_loss=-2: must be a positive"),
    ({"flops": 1e9, "max_tokens": math.nan}, "max_tokens=nan"),
    ({"loss": math.inf}, "target_loss=inf"),
  ],
)
def test_questions_without_an_answer_are_refused(asked, said):
  with pytest.raises(ValueError, match=said):
    questions.Questions(**asked)


@pytest.fixture(scope="module")
def fitted():
  c = np.repeat((3e11, 6e11, 1.2e12, 2.4e12), 6)
  n = chinchilla.optimum(TRUTH, c).N * np.tile(np.geomspace(1 / 3, 3, 6), 4)
  d = c / (6 * n)
  noise = np.random.default_rng(0).normal(0, 0.002, len(n))
  options = base.get_config().fit
  options.bootstraps = 300
  return laws.fit_runs(laws.make_runs(n, d, chinchilla.loss(TRUTH, n, d) * np.exp(noise)), options)


ASKED = questions.Questions(flops=1e13, loss=2.2, inference_tokens=1e9, max_tokens=2e6)


def test_every_answer_has_its_interval_and_the_truth_inside(fitted):
  found = {answer["question"]: answer for answer in questions.answers(fitted, ASKED)}
  json.dumps(found, allow_nan=False)
  assert list(found) == ["target_flops", "target_loss", "inference_tokens", "max_tokens"]
  few = chinchilla.data_constrained(TRUTH, 1e13, 2e6)
  truths = {
    "target_flops": chinchilla.optimum(TRUTH, 1e13),
    "target_loss": chinchilla.cheapest(TRUTH, 2.2),
    "inference_tokens": chinchilla.cheapest(TRUTH, 2.2, inference_tokens=1e9),
    "max_tokens": few,
  }
  for question, truth in truths.items():
    row = found[question]["rows"][0]
    for name, value in (("N", truth.N), ("D", truth.D), ("tokens_per_param", truth.D / truth.N)):
      low, high = row[f"{name}_interval"]
      assert low < row[name] < high
      assert 0.5 * low < value < 2 * high
    assert row["tokens_per_param"] == pytest.approx(row["D"] / row["N"])
    assert row["C"] == pytest.approx(6 * row["N"] * row["D"], rel=1e-3)
    assert row["petaflop_s_days"] == pytest.approx(row["C"] / 8.64e19)
  served, plain = found["inference_tokens"]["rows"]
  assert served["total_flops"] < plain["total_flops"]
  assert served["saved"] == pytest.approx(1 - served["total_flops"] / plain["total_flops"])
  assert served["total_flops"] == pytest.approx(served["C"] + 2 * served["N"] * 1e9, rel=1e-3)
  assert served["N"] < plain["N"]
  assert plain["N"] == pytest.approx(found["target_loss"]["rows"][0]["N"])
  repeated, once, unlimited = found["max_tokens"]["rows"]
  assert repeated["epochs"] == pytest.approx(repeated["D"] / 2e6)
  assert repeated["worth"] == pytest.approx(math.exp(-(repeated["epochs"] - 1) / 15.387756))
  assert once["epochs"] == 1
  assert once["loss"] > repeated["loss"] > unlimited["loss"]
  assert repeated["excess"] == pytest.approx(repeated["loss"] - unlimited["loss"])
  rule = found["target_flops"]["rows"][1]
  assert rule["D"] / rule["N"] == pytest.approx(20)
  assert rule["excess"] >= 0


def test_beyond_ten_times_the_largest_budget_is_marked(fitted):
  for factor, beyond in ((9.9, False), (10.1, True)):
    (answer,) = questions.answers(fitted, questions.Questions(flops=factor * 2.4e12))
    assert answer["extrapolation"] == pytest.approx(factor)
    assert answer["extrapolated"] is beyond
  record = type("Record", (), {"fit": {"decisions": [answer]}})
  text = render.to_markdown("", evidence.decisions(record))
  assert "10 times outside the runs" in text
  assert "say little" in text


def test_the_loss_of_one_run_is_asked_for_by_its_size_and_tokens(fitted):
  text = "N=2e5, D=1e6"
  assert questions.parse_run(text) == questions.parse_run("D=1e6,N=2e5") == (2e5, 1e6)
  asked = questions.Questions(predict=((2e5, 1e6), (2e6, 4e8)))
  (answer,) = questions.answers(fitted, asked)
  json.dumps(answer, allow_nan=False)
  for row, (n, d) in zip(answer["rows"], asked.predict, strict=True):
    loss, interval = laws.predict_loss(fitted, n, d)
    assert (row["N"], row["D"], row["loss"], row["loss_interval"]) == (n, d, loss, interval)
    assert interval[0] < chinchilla.loss(TRUTH, n, d) < interval[1]
    assert row["C"] == pytest.approx(6 * n * d)
  inside, far = (row["outside"] for row in answer["rows"])
  assert (inside, far) == (1.0, pytest.approx(6 * 8e14 / 2.4e12))
  record = type("Record", (), {"fit": {"decisions": [answer]}})
  lines = render.to_markdown("", evidence.decisions(record)).splitlines()
  cells = [line.split(" | ")[-1] for line in lines if line.startswith("| one run")]
  assert cells == ["no |", "2e+03 |"]


@pytest.mark.parametrize("text", ["N=7e9", "N=7e9,D=x", "N=7e9,N=1,D=2", "N=1e9,D=-4", "N=1,C=2"])
def test_what_is_no_run_is_refused(text):
  with pytest.raises(ValueError, match=f"predict={text}: write a run as N=7e9,D=4e12"):
    questions.parse_run(text)


@pytest.mark.parametrize(("params", "said"), [({"alpha": 0.3, "beta": 0.4}, True), ({}, False)])
def test_constants_of_repeats_are_said_to_be_fitted_under_alpha_equal_to_beta(fitted, params, said):
  answer = questions.answers(fitted, questions.Questions(flops=1e13, max_tokens=2e6))[1]
  notes = " ".join(evidence.decision_notes(answer, params))
  assert ("under alpha = beta, and are joined to alpha = 0.300, beta = 0.400" in notes) is said


def test_the_error_of_the_laws_form_widens_what_lies_beyond_the_runs(fitted):
  within = float(chinchilla.optimum(TRUTH, 1e12).loss)
  far, near = questions.Questions(loss=1.9), questions.Questions(loss=within)

  def width(law, asked):
    low, high = questions.answers(law, asked)[0]["rows"][0]["C_interval"]
    return np.log(high / low)

  wrong, right = (with_growth(fitted, e) for e in (0.02, 0.0))
  assert width(wrong, far) > 1.5 * width(right, far)
  assert width(wrong, near) == width(right, near)
  (small,) = questions.answers(wrong, questions.Questions(flops=3e11 / 20))  # below the smallest
  assert (small["extrapolation"], small["extrapolated"]) == (pytest.approx(20), True)
  low, high = small["rows"][0]["loss_interval"]
  assert np.log(high / low) > 2 * 0.02 * math.log(20)


def test_the_error_of_the_laws_form_is_in_every_answer_beyond_the_runs(fitted):
  asked = questions.Questions(flops=2.4e14, inference_tokens=1e10, max_tokens=2e6)

  def widths(error):
    found = questions.answers(with_growth(fitted, error), asked)
    rows = [row for answer in found for row in answer["rows"]]
    assert len(rows) == 7  # among them the 20 tokens per parameter
    return np.array([np.log(np.divide(*row["loss_interval"][::-1])) for row in rows])

  wide = widths(0.02)
  assert np.all(wide > 1.5 * 0.02 * math.log(100))
  assert np.all(wide > 1.2 * widths(0.0))


@pytest.mark.parametrize("compute", [chinchilla.Compute(), WIDE])
@pytest.mark.parametrize("share", [0.03, 0.1, 2.0])
def test_the_least_compute_on_few_data_inverts_the_best_loss_on_them(compute, share):
  many = bootstrap(TRUTH)
  unique = share * chinchilla.optimum(TRUTH, 1e15, compute).D
  loss = chinchilla.data_constrained(many, 1e15, unique, compute).loss
  found = chinchilla.cheapest_constrained(many, loss, unique, compute)
  C = compute.flops_per_token(found.N) * found.D
  np.testing.assert_allclose(C, 1e15, rtol=1e-3)
  np.testing.assert_allclose(
    chinchilla.repeated_loss(many, found.N, found.D, unique, compute), loss, rtol=1e-9
  )


def test_a_loss_on_few_data_costs_more_or_is_out_of_reach(fitted):
  asked = questions.Questions(loss=2.2, max_tokens=5e5)
  few, unlimited = questions.answers(fitted, asked)[1]["rows"]
  assert few["loss"] == unlimited["loss"] == 2.2
  assert few["C"] > 1.05 * unlimited["C"]
  assert few["C_interval"][0] < few["C"] < few["C_interval"][1]
  assert 1 < few["epochs"] == pytest.approx(few["D"] / 5e5)
  loss = chinchilla.repeated_loss(numbers(fitted.law), few["N"], few["D"], 5e5, fitted.compute)
  assert loss == pytest.approx(2.2, rel=1e-9)
  with pytest.raises(ValueError, match="target_loss=2.2: 1000 unique tokens.* raise max_tokens"):
    questions.answers(fitted, questions.Questions(loss=2.2, max_tokens=1e3))


def test_a_loss_near_the_floor(fitted):
  """Where some resamples never reach it, the interval has no upper end; below E it is refused."""
  E = fitted.params["E"]
  (answer,) = questions.answers(
    fitted, questions.Questions(loss=E + 0.3 * float(np.std(fitted.draws.params["E"])))
  )
  row = answer["rows"][0]
  assert row["C_interval"][0] < row["C"]
  assert row["C_interval"][1] is None
  json.dumps(answer, allow_nan=False)
  with pytest.raises(ValueError, match=f"target_loss=1: the law's floor is E = {E:.4f}"):
    questions.answers(fitted, questions.Questions(loss=1.0))


@pytest.mark.slow
def test_the_intervals_of_a_target_loss_cover(fitted):
  """Of the compute that reaches a loss, at level 0.9, over 40 sweeps: in 80 % or more."""
  options = base.get_config().fit
  options.bootstraps = 200
  n, d = fitted.runs.N, fitted.runs.D
  truth, inside = chinchilla.cheapest(TRUTH, 2.2), 0
  for seed in range(40):
    noise = np.random.default_rng((7, seed)).normal(0, 0.002, len(n))
    law = laws.fit_runs(laws.make_runs(n, d, chinchilla.loss(TRUTH, n, d) * np.exp(noise)), options)
    row = questions.answers(law, questions.Questions(loss=2.2))[0]["rows"][0]
    low, high = row["C_interval"]
    inside += low <= 6 * truth.N * truth.D <= (high or math.inf)
  assert inside >= 32
