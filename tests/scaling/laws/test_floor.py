"""What is known of E beforehand: held, bounded, or with a prior."""

import numpy as np
import pytest
from surfaces import EPOCH, isoflop, noisy, options

from configs import base
from scaling import laws, main
from scaling.laws import fit_json


def fitted(E, delta=10.0, seed=0, sizes=5, **changed):
  n, d = isoflop(EPOCH, np.geomspace(1e18, 1e20, 4), sizes)
  runs = laws.make_runs(n, d, noisy(n, d, 0.01, seed, EPOCH))
  return laws.fit_runs(runs, options(E=E, delta=delta, **changed))


def test_a_prior_is_weighed_as_the_runs_are():
  """A minimum of the two sums of squares, each over its variance, by the definition."""
  found = fitted("1.6+-.05")
  runs, scatter = found.runs, found.problem.floor.scatter
  assert scatter == pytest.approx(0.01, rel=0.5)

  def cost(params):
    law = laws.Law(found.law.form, params)
    r = np.log(law.loss(runs.N, runs.D) / runs.loss)
    return np.sum(r**2) / scatter**2 + (params["E"] - 1.6) ** 2 / 0.05**2

  least = cost(found.params)
  for name, value in found.params.items():
    for factor in (0.999, 1.001):
      assert cost(found.params | {name: value * factor}) > least
  free = fitted("").params["E"]
  assert abs(found.params["E"] - 1.6) < 0.5 * abs(free - 1.6)
  assert fitted("1.6+-100").params["E"] == pytest.approx(free, abs=1e-4)


@pytest.mark.parametrize("delta", [1e-3, 10.0])
@pytest.mark.parametrize("sizes", [2, 5])  # 2: Student's law, not resamples
def test_draws_scatter_as_much_as_a_prior_that_alone_tells_e(delta, sizes):
  found = fitted("1.6+-0.01", delta, sizes=sizes)
  draws = found.draws.params["E"]
  assert np.mean(draws) == pytest.approx(1.6, abs=0.01)
  assert np.std(draws) == pytest.approx(0.01, rel=0.2)
  free = fitted("", delta, sizes=sizes).draws.params
  assert np.std(found.draws.params["alpha"]) < 0.8 * np.std(free["alpha"])


def test_a_bound_of_the_users_is_no_sign_of_too_few_runs():
  found = fitted("1.9..2.5")
  assert found.params["E"] == pytest.approx(1.9)
  assert found.draws.params["E"].min() >= 1.9
  assert not found.convergence["at_bound"]
  assert found.convergence["resamples_at_bound"] == 0
  assert not laws.undetermined(found)
  (warning,) = [w for w in laws.to_json(found)["warnings"] if "fit.E" in w]
  assert "E ended at an end of fit.E=1.9..2.5" in warning
  assert fit_json.law_json(found)["intervals"]["E"][0] == pytest.approx(1.9)


@pytest.mark.parametrize("E", ["1.8..1.4", "1.6+-0", "0", "-1", "1.6+0.1", "chinchilla"])
def test_other_words_are_refused(E):
  with pytest.raises(ValueError, match=r"fit.E='.*': must be 1.6 \(held there\), 1.4..1.8 "):
    fitted(E)


def test_a_field_of_earlier_versions_is_read_or_names_its_heir(capsys):
  for stored, E in ((0.0, ""), (1.69, "1.69")):
    assert base.from_json({"fit": {"fixed_E": stored}}).fit.E == E
  assert main.main(["fit", "--runs=runs.csv", "--config.fit.fixed_E=1.6"]) == 2
  assert "no field 'fit.fixed_E'; it is fit.E, as in --config.fit.E=1.6" in capsys.readouterr().err
