"""`isoflop tune` on a table of runs."""

import json

import numpy as np
import pytest
from rate_grids import BEST, SIZES, TOKENS, best, make_table

from scaling import main
from scaling.laws.rates import grid, tune_json
from scaling.report.figures import rates


@pytest.fixture
def table(tmp_path):
  N, D, loss, factors = make_table(tokens=TOKENS[:2], noise=2e-4)
  rows = np.stack([N, D, factors["lr"], factors["batch"] / 64, loss], axis=1)
  lines = [",".join(map(repr, row)) for row in rows.tolist()]
  lines[0] = lines[0].rpartition(",")[0] + ","  # a run without a loss
  path = tmp_path / "grid.csv"
  path.write_text("\n".join(["params,tokens,eta,sequences,val", *lines]))
  return path


def test_a_table_of_runs_is_fitted_printed_and_written(table, tmp_path, capsys):
  columns = "N=params,D=tokens,lr=eta,batch=sequences,loss=val"
  options = ["--window=0.02", "--seq_len=64", f"--workdir={tmp_path / 'tune'}"]
  assert main.main(["tune", f"--runs={table}", f"--columns={columns}", *options]) == 0
  printed = capsys.readouterr().out
  assert "step_law" in printed
  assert "largest N (2)" in printed
  content = json.loads((tmp_path / "tune" / "tune.json").read_text())
  assert content["diverged"] == 1
  for name in ("lr", "batch"):
    assert content["best"][name]["N"] == pytest.approx(BEST[name][1], abs=0.03)
    low, high = content["best"][name]["intervals"]["D"]
    assert low < content["best"][name]["D"] < high
  drawn = {path.stem for path in (tmp_path / "tune" / "figures").glob("*.pdf")}
  assert drawn == {"tune_optima", "tune_surface"}


def test_figures_show_the_optimum_of_the_law():
  cells = grid.make_grid(*make_table(tokens=TOKENS[:2]))
  tuned = tune_json.make(cells, 0.02, 0.9)
  largest = rates.loss_over_factors(tuned, cells).axes[1]
  (star,) = (line for line in largest.get_lines() if line.get_gid() == "law")
  expected = [best(name, SIZES[-1], TOKENS[1]) for name in ("lr", "batch")]
  np.testing.assert_allclose(np.ravel(star.get_data()), expected, rtol=1e-3)
  against_N = rates.growth(tuned).axes[0]
  (line,) = (line for line in against_N.get_lines() if line.get_gid() == "law")
  slope = np.polyfit(*np.log(line.get_data()), 1)[0]
  assert slope == pytest.approx(BEST["lr"][1], abs=1e-3)


@pytest.mark.parametrize(
  ("columns", "words"),
  [("loss=val,N=params,D=tokens", "no column is named for the learning rate"),
   ("loss=val,N=params,D=tokens,lr=rate", "no column 'rate' for lr")],
)  # fmt: skip
def test_a_table_without_rates_is_refused(table, tmp_path, capsys, columns, words):
  arguments = ["tune", f"--runs={table}", f"--columns={columns}", f"--workdir={tmp_path / 'tune'}"]
  assert main.main(arguments) == 2
  assert words in capsys.readouterr().err
