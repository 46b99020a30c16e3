"""Arms side by side: the numbers side by side are those of each, and of their truth."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from synthetic import BUDGETS, COMPUTE, HELD, TRUTH, build_several, edit_table

from scaling.claims import prediction_json
from scaling.commands.runs import runs_table
from scaling.formats import bracket, nats, ratio
from scaling.laws import chinchilla
from scaling.progress import Display
from scaling.report import compare, document, sweep_results
from scaling.report import comparison as comparison_text
from scaling.report.figures import arms
from scaling.sweep import run as sweeps
from scaling.sweep.design import plan_table

TRUTHS = {
  "clm": TRUTH,
  "mlm": TRUTH._replace(E=np.array(0.9), B=np.array(200.0)),  # wants more tokens per parameter
  "span": TRUTH._replace(E=np.array(1.5)),  # another loss, the same optimum
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Three finished sweeps on known surfaces, and their comparison."""
  folder = build_several(tmp_path_factory.mktemp("objectives"), TRUTHS)
  document.write(folder)
  return folder


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of them, for a test to change."""
  return Path(shutil.copytree(finished, tmp_path / "objectives"))


def comparison(folder):
  return json.loads((folder / "comparison.json").read_text())


def true_ratio(name, C):
  best = chinchilla.optimum(TRUTHS[name], C, COMPUTE)
  return float(best.D / best.N)


def test_each_law_equals_that_of_its_own_sweep(finished):
  found = comparison(finished)
  assert found["complete"]
  assert found["budgets"] == [*BUDGETS, HELD]
  for name in TRUTHS:
    own = json.loads((finished / name / "fit.json").read_text())
    [sealed] = prediction_json.read(finished / name)["budgets"]
    side = found["sweeps"][name]
    for key in ("params", "intervals", "a", "b", "input_hash"):
      assert side[key] == own[key]
    assert side["optimum"][-1]["tokens_per_param"] == sealed["tokens_per_param"]
    assert side["optimum"][-1]["N_opt_interval"] == sealed["N_interval"]
    assert side["optimum"][0]["flops_per_param_and_token"] == pytest.approx(6)
    assert side["verification"][0]["predicted_loss"] == sealed["cells"][1]["predicted_loss"]


def test_optima_agree_with_the_true_surfaces(finished):
  found = comparison(finished)
  inside = []
  for name in TRUTHS:
    side = found["sweeps"][name]
    share = {"clm": 1.0, "mlm": 0.15, "span": 29 / 141}[name]  # T5: 128 inputs, 29 targets
    for C, row in zip(found["budgets"], side["optimum"], strict=True):
      low, high = row["tokens_per_param_interval"]
      inside.append(low <= true_ratio(name, C) <= high)
      assert row["tokens_per_param"] == pytest.approx(true_ratio(name, C), rel=0.25)
      predicted = row["predicted_tokens_per_param"] / row["tokens_per_param"]
      assert predicted == pytest.approx(share)
      assert row["predicted_tokens_per_param_interval"][1] == pytest.approx(predicted * high)
  assert np.mean(inside) >= 0.7  # of 90 % intervals, of which those of a law move together


def test_differences_have_the_true_ratio_and_sign(finished):
  rows = {(r["of"], r["to"], r["quantity"], r["C"]): r for r in comparison(finished)["differences"]}
  assert len(rows) == 3 * (3 + len(BUDGETS) + 1)
  for C in BUDGETS:
    row = rows["mlm", "clm", "tokens_per_param", C]
    wanted = true_ratio("mlm", C) / true_ratio("clm", C)
    assert wanted > 2
    assert row["interval"][0] < wanted < row["interval"][1]
    assert row["differs"]
    same = rows["span", "clm", "tokens_per_param", C]
    assert same["interval"][0] < 1 < same["interval"][1]
    assert not same["differs"]
    turned = rows["span", "mlm", "tokens_per_param", C]
    assert turned["value"] == pytest.approx(same["value"] / row["value"])
    assert turned["interval"][1] < 1
  for quantity in ("alpha", "beta", "a"):
    row = rows["mlm", "clm", quantity, None]
    params = [
      side["params"] | {"a": side["a"]}
      for side in map(comparison(finished)["sweeps"].get, ("mlm", "clm"))
    ]
    assert row["value"] == pytest.approx(params[0][quantity] - params[1][quantity])
    assert row["interval"][0] < row["value"] < row["interval"][1]


def test_an_undetermined_law_held_for_no_arm(workdir):
  """As its runs say now, whatever an earlier version wrote of them, or sealed on them."""
  sweeps, _, numbers = compare.compare_sweeps(sweep_results.read(workdir))
  assert "held for clm, mlm, span" in comparison_text.summary(sweeps, numbers)

  def flatten(row):
    if row["kind"] == "fit":  # by budget alone, as on a plateau
      row["loss"] = 9 * float(row["C"]) ** -0.05 * (1 + 1e-4 * int(row["size"]))

  edit_table(workdir / "span" / "cells.csv", flatten)
  sweeps, fitted, numbers = compare.compare_sweeps(sweep_results.read(workdir))
  assert list(fitted) == ["clm", "mlm"]
  text = comparison_text.summary(sweeps, numbers)
  assert "held for clm, mlm." in text
  assert "span" not in text
  assert numbers["sweeps"]["span"]["state"].startswith("No law yet: undetermined")
  assert not numbers["complete"]


BETTER = TRUTH._replace(A=TRUTH.A * 0.93, B=TRUTH.B * 0.93)  # less loss everywhere


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
  """Two arms of one objective."""
  folder = tmp_path_factory.mktemp("recipes")
  return build_several(folder, {"gelu": TRUTH, "swiglu": BETTER}, objectives=False)


def gains(folder):
  _, _, numbers = compare.compare_sweeps(sweep_results.read(folder))
  rows = numbers["differences"]
  return {(row["quantity"], row["C"]): row for row in rows if "paired" in row}


def true_gain(C):
  """Of BETTER over TRUTH: nats, and times the compute."""
  loss = chinchilla.optimum(BETTER, C, COMPUTE).loss
  best = chinchilla.cheapest(TRUTH, loss, COMPUTE)
  gain = chinchilla.optimum(TRUTH, C, COMPUTE).loss - loss
  return float(gain), float(COMPUTE.flops_per_token(best.N) * best.D / C)


def test_gains_of_arms_of_one_objective_are_those_of_their_true_surfaces(recipes):
  rows = gains(recipes)
  assert len(rows) == 2 * (len(BUDGETS) + 1)
  for C in (*BUDGETS, HELD):
    wanted = true_gain(C)
    assert wanted[0] > 0.02
    assert wanted[1] > 1.1
    for quantity, value in zip(("gain", "compute"), wanted, strict=True):
      row = rows[quantity, C]
      assert (row["of"], row["to"], row["paired"]) == ("swiglu", "gelu", True)
      assert row["value"] == pytest.approx(value, rel=0.1)
      assert row["interval"][0] < row["value"] < row["interval"][1]
      assert row["differs"]


def test_what_two_arms_have_in_common_cancels(recipes, tmp_path):
  """Their cells are equally lucky, so the gain is better known than either loss."""
  other = Path(shutil.copytree(recipes, tmp_path / "other"))
  path = other / "swiglu" / "cells.csv"
  path.write_text(path.read_text().replace("fit-s1-", "fit-first-"))  # which are other cells
  together, alone = gains(recipes), gains(other)
  for C in (*BUDGETS, HELD):
    paired, apart = together["gain", C], alone["gain", C]
    assert not apart["paired"]
    assert apart["value"] == paired["value"]
    assert 3 * np.ptp(paired["interval"]) < np.ptp(apart["interval"])


def test_losses_of_other_tokens_or_text_are_not_compared(recipes, tmp_path):
  for field, value in (
    (("config", "data", "tokenizer"), "bpe:300"),
    (("config", "train", "eval_tokens"), 9999),
    (("config", "corruption", "mlm_rate"), 0.5),
    (("config", "fit", "flops"), "6nd"),
    (("corpus", "fingerprint"), "another"),
  ):
    folder = Path(shutil.copytree(recipes, tmp_path / field[-1]))
    head = json.loads((folder / "gelu" / "sweep.json").read_text())
    *path, name = field
    section = head
    for part in path:
      section = section.setdefault(part, {})
    section[name] = value
    (folder / "gelu" / "sweep.json").write_text(json.dumps(head))
    assert gains(folder) == {}


def test_two_fits_to_the_same_runs_gain_nothing(recipes, tmp_path):
  folder = Path(shutil.copytree(recipes, tmp_path / "fits"))
  shutil.copy(folder / "gelu" / "cells.csv", folder / "swiglu" / "cells.csv")
  assert gains(folder) == {}


def test_report_says_what_a_recipe_gains(recipes):
  document.write(recipes)
  text, rows = (recipes / "report.md").read_text(), gains(recipes)
  gain, compute = (rows[quantity, HELD] for quantity in ("gain", "compute"))
  sentence = (
    f"the gain of swiglu over gelu is {nats(gain['value'])} {bracket(gain['interval'])} nats; gelu "
    f"reaches that loss at {ratio(compute['value'])} {bracket(compute['interval'], ratio)} times"
  )
  assert sentence in text
  assert sentence in document.terminal(recipes)
  assert text.count("| swiglu over gelu |") == len(BUDGETS) + 1


def artists(axes, gid):
  return [artist for artist in axes.get_children() if artist.get_gid() == gid]


def test_figure_has_a_column_per_objective_and_the_optima_together(finished):
  sweeps, laws, numbers = compare.compare_sweeps(sweep_results.read(finished))
  axes = arms.arms(sweeps, laws, numbers).axes
  assert len(axes) == 2 * 3 + 3
  assert [a.get_title() for a in axes[:6:2]] == [
    "clm (decoder)", "mlm (encoder)", "span (encoder-decoder)"
  ]  # fmt: skip
  for (name, record), top, middle in zip(sweeps.items(), axes[:6:2], axes[1:6:2], strict=True):
    N = np.concatenate([a.get_xdata() for a in artists(top, "runs")])
    assert sorted(N) == pytest.approx(sorted(c["N"] for c in record.done("fit")))
    C, loss = artists(middle, "law")[0].get_xydata().T
    best = laws[name].law.optimum(C)
    np.testing.assert_allclose(loss, best.loss, rtol=1e-6)
    assert abs(loss[0] - chinchilla.optimum(TRUTHS[name], C[0], COMPUTE).loss) < 0.05
    held = artists(middle, "heldout")[0].get_offsets()
    np.testing.assert_allclose(held, [(c["C"], c["loss"]) for c in record.done("heldout")])
  for name, summary in numbers["sweeps"].items():
    for panel, quantity in zip(axes[6:], arms.COMPARED, strict=True):
      marks = artists(panel, f"{name} {quantity}")
      wanted = [row[quantity] for row in summary["optimum"]]
      assert [mark.get_ydata()[0] for mark in marks] == pytest.approx(wanted)
      hollow = [mark.get_markerfacecolor() == "white" for mark in marks]
      assert hollow == [False] * len(BUDGETS) + [True]
  for kind, start in (("pdf", b"%PDF-"), ("png", b"\x89PNG")):
    assert (finished / "figures" / f"arms.{kind}").read_bytes().startswith(start)


def test_report_gives_the_numbers_and_what_cannot_be_compared(finished):
  text = (finished / "report.md").read_text()
  found = comparison(finished)
  best = {name: found["sweeps"][name]["optimum"][-1] for name in TRUTHS}
  cells = [
    f"{ratio(o['tokens_per_param'])} * | {bracket(o['tokens_per_param_interval'], ratio)}"
    for o in best.values()
  ]
  assert f"| 7.20e12 | {' | '.join(cells)} |" in text
  fitted = text.split("## Tokens per parameter")[1].split("| 7.20e12")[0]
  assert " * " not in fitted
  first = text.split("\n\n")[1]
  for name, o in best.items():
    interval = bracket(o["tokens_per_param_interval"], ratio)
    assert f"{ratio(o['tokens_per_param'])} {interval} for {name}" in first
  assert "losses, and with them E, A and B, cannot be compared" in text
  assert text.count("**Incomplete.**") == 0
  marked = sum(row["differs"] for row in found["differences"])
  assert f"Bold ({marked} of 24)" in text
  assert f"{marked}" == str(text.split("Where they differ")[1].split("Bold")[0].count("]**"))
  assert "data:image/png;base64," in (finished / "report.html").read_text()
  assert "7.20e12" in document.terminal(finished)


def test_a_sweep_without_a_law_is_named_and_left_out(workdir):
  for name in ("fit", "prediction", "verification"):
    (workdir / "mlm" / f"{name}.json").unlink()
  shutil.rmtree(workdir / "span")
  document.write(workdir)
  text, found = (workdir / "report.md").read_text(), comparison(workdir)
  assert "2 of 3 sweeps have no verdict yet" in text
  assert "| mlm (encoder) | 23 of 23 cells are done; nothing is fitted yet. |" in text
  assert "| span | Not begun. |" in text
  assert not found["complete"]
  assert set(found["sweeps"]["mlm"]) == {"complete", "state"}
  assert found["differences"] == []
  assert found["budgets"] == [*BUDGETS, HELD]
  figure = arms.arms(*compare.compare_sweeps(sweep_results.read(workdir)))
  assert len(figure.axes) == 2 + 3


def test_comparison_before_any_sweep_has_begun(workdir):
  for name in TRUTHS:
    shutil.rmtree(workdir / name)
  shutil.rmtree(workdir / "figures")
  document.write(workdir)
  assert "none of 3 sweeps is fitted" in (workdir / "report.md").read_text()
  assert comparison(workdir)["budgets"] == []
  assert not (workdir / "figures").exists()


# --------------------------------------------------------------------------------- for real


@pytest.fixture
def small(make_tiny):
  c = make_tiny()
  c.model.depth, c.model.mlp_ratio = 1, 24.0  # one wide block: it compiles fast
  c.model.scan = False
  c.data.isolate_documents = False
  c.sweep.arms = {"clm": {}, "mlm": {"objective": "mlm", "corruption": {"mlm_rate": 0.4}}}
  c.sweep.sizes = (0, 2, 4)
  c.sweep.budgets = (1.6e10, 3.2e10, 8e10)  # with half of it mlm had no law at one seed of two
  c.sweep.probe_sizes = ()
  c.sweep.heldout_sizes = (1.0,)
  c.fit.bootstraps = 200
  c.fit.E = "0.4"  # nine runs of so few tokens do not tell it, and hardly a law with .7
  return c


def swept(config, workdir):
  """Runs a sweep, and returns what it said."""
  said = io.StringIO()
  with Display(config.sweep.name, said) as display:
    sweeps.sweep(config, workdir, display, lambda: False)
  return said.getvalue()


@pytest.mark.slow
def test_two_objectives_are_swept_compared_and_not_swept_again(small, optimized, tmp_path):
  workdir = tmp_path / "both"
  said = swept(small, workdir)
  assert "arm 1 of 2: clm, clm with models of family decoder" in said
  assert "arm 2 of 2: mlm, mlm with models of family encoder" in said
  found = comparison(workdir)
  assert found["complete"]
  assert len(found["differences"]) == 3 + 4
  for name in ("clm", "mlm"):
    with (workdir / name / "cells.csv").open() as file:
      rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["fit"] * 9 + ["heldout"]
    assert {(row["status"], row["objective"]) for row in rows} == {("done", name)}
    assert (workdir / name / "report.html").exists()
  assert runs_table(workdir).count(" done ") == 2 * (9 + 1)
  assert plan_table(small, workdir, "h100", 0.4).count("9 fit and 1 held-out cells") == 2
  assert "tokens / parameter" in document.terminal(workdir)

  runs = {path: path.stat().st_mtime_ns for path in workdir.glob("*/*/*/run.json")}
  assert len(runs) == 2 * (9 + 3 + 1)  # cells, trunks, the held-out cell
  small.sweep.arms.clm = {"fit": {"bootstraps": 7}}  # refused before any sweep begins
  with pytest.raises(ValueError, match=r"^fit.bootstraps=7: must be .* .arm clm.$"):
    swept(small, workdir)
  assert {path: path.stat().st_mtime_ns for path in runs} == runs
  assert comparison(workdir) == found
