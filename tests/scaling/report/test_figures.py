"""Figures of a sweep: what they show is what the records say."""

import struct

import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic import BUDGETS, edit, markdown

from scaling.report import sweep_results
from scaling.report.figures import curves, law, profiles, style, table


def artists(axes, gid):
  return [a for a in axes.get_children() if a.get_gid() == gid]


def points(axes, gid):
  """The (x, y) of every marker drawn under a name, [n, 2]."""
  get = lambda a: a.get_offsets() if hasattr(a, "get_offsets") else a.get_xydata()  # noqa: E731
  return np.concatenate([np.asarray(get(a)) for a in artists(axes, gid)])


def legend(figure):
  return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_figure_is_a_pdf_and_a_png_of_its_column_width(finished):
  widths = {"training_curves": 7.0, "residuals": 7.0, "frontier": 7.0}
  for name in (name for name, figure in table.FIGURES.items() if not figure.extra):
    pdf = (finished / "figures" / f"{name}.pdf").read_bytes()
    png = (finished / "figures" / f"{name}.png").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    assert b"/Subtype /Type3" not in pdf  # journals refuse Type 3 fonts
    assert b"/CreationDate" not in pdf
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", png[16:20])[0] == round(220 * widths.get(name, 3.4))


def test_profile_markers_sit_at_the_minima_and_on_their_parabolas(workdir):
  record = sweep_results.read(workdir)
  axes = profiles.isoflop_profiles(record).axes[0]
  wanted = [(p["minimum_N"], p["minimum_loss"]) for p in record.profiles]
  np.testing.assert_allclose(points(axes, "minimum"), wanted)
  for line, (N, loss) in zip(artists(axes, "parabola"), wanted, strict=True):
    x, y = line.get_xydata().T
    assert np.interp(N, x, y) == pytest.approx(loss, abs=1e-3)
    assert y.min() >= loss - 1e-12
  held = [(c["N"], c["loss"]) for c in record.done("heldout")]
  np.testing.assert_allclose(points(axes, "heldout"), held)
  N, predicted = points(axes, "predicted").T
  for cell in record.prediction["cells"]:
    assert np.interp(cell["N"], N, predicted) == pytest.approx(cell["predicted_loss"], abs=1e-4)


def test_a_profile_without_interior_minimum_says_so(workdir):
  def change(fit):
    fit["approach2"]["profiles"][0] |= {"inside": False, "minimum_N": None, "minimum_loss": None}

  edit(workdir / "fit.json", change)
  record = sweep_results.read(workdir)
  figure = profiles.isoflop_profiles(record)
  axes = figure.axes[0]
  first = record.profiles[0]
  low = int(np.argmin(first["loss"]))
  assert len(points(axes, "minimum")) == 3
  np.testing.assert_allclose(points(axes, "open"), [(first["N"][low], first["loss"][low])])
  assert "no interior minimum" in legend(figure)
  assert "**No interior minimum** in the isoFLOP profile at 3.00e11 FLOPs" in markdown(workdir)


def test_the_frontier_balances_the_two_terms_of_the_law(workdir):
  record = sweep_results.read(workdir)
  axes = law.contours(record).axes[0]
  N, D = points(axes, "frontier").T
  _, A, B, alpha, beta = record.law.params.values()
  np.testing.assert_allclose(alpha * A * N**-alpha, beta * B * D**-beta, rtol=1e-9)
  stars = points(axes, "optimum")
  np.testing.assert_allclose(stars, [(o["N_opt"], o["D_opt"]) for o in record.optima])
  [sealed] = record.prediction["budgets"]
  assert (sealed["N"], sealed["D"]) in {tuple(star) for star in stars}
  N, D = points(axes, "target").T
  np.testing.assert_allclose(D / N, 20.0)
  assert len(points(axes, "fit")) == 36  # the diverged cell is not among them
  lines = next(c for c in axes.collections if hasattr(c, "levels") and not c.filled)
  for level, path in zip(lines.levels, lines.get_paths(), strict=True):
    if len(path.vertices):
      np.testing.assert_allclose(record.law.loss(*path.vertices.T), level, rtol=2e-3)


def test_the_frontier_figure_shows_law_interval_and_rule(workdir):
  record = sweep_results.read(workdir)
  left, right = law.frontier(record).axes
  best = record.optima
  np.testing.assert_allclose(points(left, "N_opt"), [(o["C"], o["N_opt"]) for o in best])
  ratios = [(o["C"], o["tokens_per_param"]) for o in best]
  np.testing.assert_allclose(points(right, "tokens_per_param"), ratios)
  C, N = points(left, "target").T
  np.testing.assert_allclose(C / (6 * N) / N, 20.0)
  hollow = [a.get_markerfacecolor() == "white" for a in artists(left, "N_opt")]
  assert hollow == [row["C"] > BUDGETS[-1] for row in best]  # projections, and the sealed budget


def test_residuals_are_relative_and_carry_the_sealed_interval(workdir):
  record = sweep_results.read(workdir)
  for axes, x in zip(law.residuals(record).axes, "ND", strict=False):
    cells = record.done("fit")
    losses = [record.law.loss(c["N"], c["D"]) for c in cells]
    wanted = [(c[x], 100 * (c["loss"] / y - 1)) for c, y in zip(cells, losses, strict=True)]
    np.testing.assert_allclose(points(axes, "fit"), wanted, rtol=1e-9, atol=1e-9)
    (bars,) = artists(axes, "interval")
    for segment, cell in zip(bars.get_segments(), record.prediction["cells"], strict=True):
      ends = 100 * (np.array(cell["interval"]) / cell["predicted_loss"] - 1)
      np.testing.assert_allclose(segment, [(cell[x], ends[0]), (cell[x], ends[1])])


def test_predicted_vs_trained_has_predictions_on_x(workdir):
  record = sweep_results.read(workdir)
  axes = law.predicted_vs_trained(record).axes[0]
  held = record.done("heldout")
  sealed = [c["predicted_loss"] for c in record.prediction["cells"]]
  np.testing.assert_allclose(points(axes, "heldout").T, [sealed, [c["loss"] for c in held]])
  x, y = points(axes, "fit").T
  assert np.std(y / x - 1) == pytest.approx(0.002, rel=0.4)
  np.testing.assert_allclose(*points(axes, "identity").T)


def test_training_curves_branch_from_their_trunk_and_end_at_the_evaluation(workdir):
  record = sweep_results.read(workdir)
  left, right = curves.training_curves(record).axes[:2]
  cells = record.done("fit")
  np.testing.assert_allclose(points(left, "fit"), [(c["D"], c["loss"]) for c in cells])
  np.testing.assert_allclose(points(right, "fit"), [(c["C"], c["loss"]) for c in cells])
  branches = [line.get_xydata() for line in artists(left, "cooldown")]
  branched = record.done("fit", "heldout")
  assert len(branches) == len(branched)
  for line, cell in zip(branches, branched, strict=True):
    assert 0.79 <= line[0, 0] / cell["D"] < 0.92
    assert 0.9 < line[-1, 0] / cell["D"] <= 1.0
    assert abs(line[-1, 1] - cell["loss"]) < 0.1  # nats: the noise of the train loss, smoothed
  for line, twin, cell in zip(branches, artists(right, "cooldown"), branched, strict=True):
    np.testing.assert_allclose(twin.get_xdata(), line[:, 0] * cell["C"] / cell["D"])
  trunks = {s["trunk"] for s in record.sweep["cells"]} - {None}
  alone = [c for c in record.done("fit", "heldout") if c["kind"] == "heldout" or c["seed"]]
  assert len(artists(left, "constant")) == len(trunks) + len(alone)


def test_normalised_curves_end_at_one(workdir):
  record = sweep_results.read(workdir)
  axes = curves.collapse(record).axes[0]
  for kind in ("fit", "heldout"):
    lines = [line.get_xydata() for line in artists(axes, kind)]
    assert len(lines) == len(record.done(kind))
    for line in lines:
      np.testing.assert_allclose(line[-1], 1)
      assert line[0, 1] > 1.1  # a twentieth of the run


def test_smoothing_keeps_a_level_and_removes_noise():
  rng = np.random.default_rng(0)
  tokens = np.arange(1, 2001) * 1024.0
  np.testing.assert_allclose(curves.smooth(tokens, np.full(2000, 3.0), tokens[::50]), 3.0)
  noise = curves.smooth(tokens, 3 + 0.1 * rng.standard_normal(2000), tokens[500:1500:50])
  assert abs(noise.mean() - 3) < 0.01
  assert noise.std() < 0.03


def test_the_sensitivity_figure_has_every_estimator_and_choice_that_gave_a_law(workdir):
  record = sweep_results.read(workdir)
  axes = law.sensitivity(record).axes[0]
  labels = [label.get_text() for label in axes.get_yticklabels()]
  stored = record.fit
  wanted = [stored["a"], *(row["a"] for row in stored["estimators"]["rows"] if row["a"])]
  wanted += [row["a"] for row in stored["choices"][1:] if row["value"] not in ("LAD", "MSE")]
  np.testing.assert_allclose(points(axes, "a")[:, 0], wanted)
  assert len(labels) == len(wanted)
  assert labels[0] == "the fit"
  assert "N counts: total" in labels
  assert axes.yaxis_inverted()


def test_runs_beyond_the_profiles_have_colours_of_their_own():
  figure = Figure()
  shade = style.color_bar(figure, figure.subplots(), [1e18, 1e19, 1e20, 1e22], "C", [1e19, 1e20])
  assert shade(1e18) != shade(1e19)
  assert shade(1e22) != shade(1e20)
  ticks = figure.axes[1].get_yticks()
  assert ticks.tolist() == [1e19, 1e20]


def test_names_of_budgets_do_not_overlap():
  figure = Figure(figsize=(3.4, 3.1))
  axes = figure.subplots()
  axes.set(xscale="log", xlim=(1e7, 1e10), ylim=(2, 3))
  points = [(1e18 * 2**i, (1e8, 2.5 + 0.002 * i), "k") for i in range(10)]
  profiles.label_budgets(axes, [*points, (1e17, (1e8, 2.9), "k")])
  figure.draw_without_rendering()
  boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
  middles = [(box.y0 + box.y1) / 2 * 72 / figure.dpi for box in boxes]
  assert min(np.diff(middles)) > 0.9 * profiles.LINE
  assert axes.texts[-1].get_position()[1] == 0  # where there is room it stays
