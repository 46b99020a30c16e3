"""Runs along one line tell no surface: what they cannot tell is refused, the rest is said."""

import json

import numpy as np
import pytest
from surfaces import EPOCH, noisy, options

from scaling import laws, main
from scaling.laws import chinchilla, compare

N = np.repeat(np.geomspace(1e7, 1e10, 10), 3)
DESIGNS = {"C": (N, 20 * N), "D": (np.full(30, 1e9), 20 * N), "N": (N, np.full(30, 1e10))}


@pytest.mark.parametrize("variable", DESIGNS)
def test_a_law_in_the_variable_that_varies(variable):
  n, d = DESIGNS[variable]
  runs = laws.make_runs(n, d, noisy(n, d, 0.002, 0, EPOCH))
  with pytest.raises(ValueError, match="cannot be told"):
    laws.fit_runs(runs, options())
  found = compare.along(runs, options())
  assert found["variable"] == variable
  assert {"alpha", "a", "N_opt"} - set(found["refused"]) <= (
    {"alpha"} if variable == "N" else set()
  )
  for row in found["rows"]:
    at = row[variable]
    size = {"C": (at / 120) ** 0.5, "D": 1e9, "N": at}[variable]
    tokens = {"C": 20 * size, "D": at, "N": 1e10}[variable]
    truth = chinchilla.loss(EPOCH, size, tokens)
    assert row["loss"] == pytest.approx(truth, rel=0.004)
    low, high = row["loss_interval"]
    assert low - 0.002 < truth < high + 0.002
  if variable != "C":  # the other term is a constant there: the floor holds it
    exponent, factor = (EPOCH.beta, EPOCH.B) if variable == "D" else (EPOCH.alpha, EPOCH.A)
    low, high = found["intervals"]["alpha"]
    assert low - 0.02 < exponent < high + 0.02
    assert found["params"]["A"] == pytest.approx(factor, rel=0.5)


def test_runs_on_no_line_and_too_few_runs():
  two = np.tile([1e8, 1e9], 10)
  runs = laws.make_runs(two, np.geomspace(1e9, 1e11, 20), np.linspace(4, 2, 20))
  assert compare.along(runs, options()) is None
  few = laws.make_runs([1e8] * 3, [1e9, 3e9, 1e10], [4.0, 3.5, 3.0])
  assert compare.along(few, options()) is None


def test_the_command_refuses_and_says_what_can_be_said(tmp_path, capsys):
  n, d = DESIGNS["C"]
  rows = zip(n, d, chinchilla.loss(EPOCH, n, d), strict=True)
  table = tmp_path / "runs.csv"
  table.write_text("N,D,loss\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
  code = main.main(["fit", f"--runs={table}", f"--workdir={tmp_path / 'out'}"])
  said = capsys.readouterr()
  assert code == 2
  assert said.err.startswith("isoflop: fit: D follows N^1.00")
  assert "Refused: A, B, alpha, beta, a, N_opt, D_opt (D follows" in said.out
  found = json.loads((tmp_path / "out" / "line.json").read_text())
  assert found["form"] == "power_law_c"
  assert f"{found['rows'][0]['loss']:.4f}" in said.out
  assert not (tmp_path / "out" / "fit.json").exists()
