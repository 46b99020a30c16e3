"""How cost grows: slopes, synthetic sweeps, the figure."""

import json

import numpy as np
import pytest

from configs import base
from scaling.bench import curves, growth
from scaling.laws.tables import runs
from scaling.sweep import plan


def test_slopes_are_the_exponents():
  x = [10.0, 100.0, 1000.0]
  square = curves.Curve("cells", "square", x, [3e-6 * v**2 for v in x])
  assert square.slope == pytest.approx(2.0)
  late = curves.Curve("cells", "late", x, [1.0 + 1e-2 * v for v in x])  # a constant hides it
  assert late.slope < 0.6 < 0.7 < late.last_slope < 1.0


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_a_synthetic_sweep_has_n_cells_of_different_names(n):
  cells = plan.fit_cells(growth.synthetic_sweep(n), 257)
  assert n <= len(cells) <= 1.2 * n
  assert len({cell.id for cell in cells}) == len(cells)


@pytest.mark.slow
def test_the_fit_of_synthetic_runs_finds_their_law(tmp_path):
  taken = growth.sweep_work(tmp_path, growth.synthetic_sweep(100))
  assert len(taken) == 7
  assert min(taken.values()) > 0
  assert len(runs.read_runs(tmp_path)) == 100
  fitted = json.loads((tmp_path / "fit.json").read_text())
  assert fitted["n_runs"] == 100
  for name, value in growth.LAW._asdict().items():
    low, high = fitted["intervals"][name]
    assert low - (high - low) < value < high + (high - low)
  assert fitted["params"]["alpha"] == pytest.approx(0.35, abs=0.03)
  assert (tmp_path / "report.html").exists()


def test_every_curve_has_its_points_and_its_line_in_the_figure(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(curves, "save", lambda figure, stem: drawn.append(figure))
  x = [1.0, 2.0, 4.0, 8.0]
  measured = [curves.Curve("depth", n, x, [0.5 * v for v in x]) for n in ("scanned", "unrolled")]
  measured.append(curves.Curve("devices", "step", x, [0.1] * 4))
  curves.draw(measured, growth.PANELS, tmp_path / "growth")
  depth, devices = drawn[0].axes
  assert [len([a for a in p.lines if a.get_gid() == "measured"]) for p in (depth, devices)] == [
    2,
    1,
  ]
  slope = next(a for a in depth.lines if a.get_gid() == "slope")
  np.testing.assert_allclose(slope.get_xydata(), [(1.0, 0.5), (8.0, 4.0)])
  assert [t.get_text() for t in depth.get_legend().get_texts()] == [
    "scanned: 1.00",
    "unrolled: 1.00",
  ]
  assert depth.get_xscale() == depth.get_yscale() == "log"


def test_an_unknown_panel_is_refused_before_anything_is_measured(tmp_path):
  with pytest.raises(ValueError, match="growth='cell': unknown; choose from batch"):
    growth.growth(base.get_config(), tmp_path / "g", ["cell"])
  assert not (tmp_path / "g").exists()
