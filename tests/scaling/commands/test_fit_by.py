"""`isoflop fit --by`: a law for the runs of each value of a column, side by side."""

import json
import re

import pytest
from surfaces import grid, noisy

from scaling import main

FEW = ["--config.fit.bootstraps=100"]


@pytest.fixture
def table(tmp_path):
  """Two groups whose laws differ by a factor in loss."""
  n, d = grid()
  loss = noisy(n, d, 0.002, 0)
  rows = [f"{a:.0f},{b:.0f},{c:.5f},plain" for a, b, c in zip(n, d, loss, strict=True)]
  rows += [f"{a:.0f},{b:.0f},{0.7 * c:.5f},a/b" for a, b, c in zip(n, d, loss, strict=True)]
  path = tmp_path / "runs.csv"
  path.write_text("\n".join(["N,D,loss,text set", *rows]))
  return path


def fitted(folder):
  return json.loads((folder / "fit.json").read_text())


def test_each_group_has_the_law_of_its_runs_alone(table, tmp_path, capsys):
  both = tmp_path / "both"
  run = ["fit", f"--runs={table}", *FEW]
  assert main.main([*run, f"--workdir={both}", "--by=text set", "--predict=N=1e6,D=1e7"]) == 0
  shown = capsys.readouterr().out
  assert not (both / "fit.json").exists()
  assert main.main([*run, f"--workdir={both}", "--where=`text set` == 'plain'"]) == 0
  assert not (both / "by.json").exists()  # the newer fit is of no groups
  plain, scaled = (fitted(both / f"text set={name}") for name in ("plain", "a%2Fb"))
  assert plain["params"] == fitted(both)["params"]
  assert scaled["params"]["alpha"] == pytest.approx(plain["params"]["alpha"], rel=0.01)
  losses = [f["decisions"][0]["rows"][0]["loss"] for f in (plain, scaled)]
  assert losses[1] == pytest.approx(0.7 * losses[0], rel=1e-3)
  for fit in (plain, scaled):
    assert f"{fit['params']['E']:.4f}" in shown
  assert len([line for line in shown.splitlines() if line.startswith("one run")]) == 2
  assert shown.splitlines()[-12].split() == ["a/b", "plain"]


def test_a_group_without_a_law_is_named_beside_those_that_have_one(table, tmp_path, capsys):
  lines = table.read_text().splitlines()
  table.write_text("\n".join([*lines[:21], *(f"{line[:-5]}few" for line in lines[1:4])]))
  run = ["fit", f"--runs={table}", *FEW, "--by=text set"]
  assert main.main([*run, f"--workdir={tmp_path / 'fit'}"]) == 2
  out, err = capsys.readouterr()
  assert "text set=few: fit: 3 runs at 3 distinct (N, D)" in err
  assert "text set = plain: Fitted on 20 runs" in out


@pytest.mark.parametrize(
  ("by", "said"),
  [
    ("set", "by='set': no such column; .* has N, D, loss, text set"),
    ("loss", "by='loss': it has 40 values; name a column of 1 to 20"),
  ],
)
def test_a_column_that_names_no_groups_is_refused(table, tmp_path, capsys, by, said):
  arguments = ["fit", f"--runs={table}", f"--by={by}", f"--workdir={tmp_path / 'fit'}"]
  assert main.main(arguments) == 2
  assert re.search(said, capsys.readouterr().err)


@pytest.mark.slow
def test_the_report_has_the_groups_side_by_side_and_each_in_its_folder(table, tmp_path):
  folder = tmp_path / "fit"
  assert main.main(["fit", f"--runs={table}", *FEW, "--by=text set", f"--workdir={folder}"]) == 0
  assert main.main(["report", f"--workdir={folder}"]) == 0
  text = (folder / "report.md").read_text()
  assert "|  | `a/b` |  | `plain` |  |" in text
  assert (folder / "text set=a%2Fb" / "report.html").exists()
