"""Arms of a sweep: their configs, the runs that they share, and how they go on."""

import json

import pytest
import written

from configs import base
from scaling.sweep import design


@pytest.fixture
def config(tiny):
  c = tiny
  c.sweep.sizes, c.sweep.budgets = (0, 1, 2), (4e8, 8e8, 2e9)
  c.sweep.probe_sizes, c.sweep.probe_tokens = (1,), 8000
  c.optim.warmup_tokens = 256
  c.fit.bootstraps = 100
  return c


@pytest.mark.smoke
def test_an_arm_has_its_fields_and_the_family_of_its_objective(config):
  config.sweep.arms = {
    "clm": {},
    "mlm": {"objective": "mlm", "optim": {"lr_ref": 1}},
    "span": {
      "objective": "span",
      "sweep": {"sizes": (0, 2)},
      "data": {"evaluate": {"a": "markov"}},
    },
    "odd": {"objective": "mlm", "model": {"family": "decoder"}},
  }
  configs = design.split(config)
  assert {name: arm.model.family for name, arm in configs.items()} == {
    "clm": "decoder", "mlm": "encoder", "span": "encoder_decoder", "odd": "decoder"
  }  # fmt: skip
  for name, arm in configs.items():
    assert arm.objective == {"odd": "mlm"}.get(name, name)
    assert arm.sweep.name == f"sweep, {name}"
    assert not arm.sweep.arms
    assert arm.optim.lr_ref == (1.0 if name == "mlm" else config.optim.lr_ref)
    assert arm.sweep.sizes == ((0, 2) if name == "span" else config.sweep.sizes)
    assert arm.data.evaluate.to_dict() == ({"a": "markov"} if name == "span" else {})
  assert config.optim.lr_ref != 1.0
  assert design.split(base.get_config()) == {"": base.get_config()}


@pytest.mark.smoke
@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"a": {"optim": {"lrr": 1}}}, r"sweep\.arms\.a\.optim\.lrr=1: the config has no field"),
    ({"a": {"optim": {"lr": "fast"}}}, r"sweep\.arms\.a\.optim\.lr='fast': must be of type float"),
    ({"a": {"optim": 3}}, r"sweep\.arms\.a\.optim=3: the config has no field"),
    ({"a": {"data": {"evaluate": {"x": 3}}}}, r"data\.evaluate\.x=3: must be text \(arm a\)"),
    ({"a": {"optim": {"lr": -1.0}}}, r"optim\.lr=-1\.0: must not be negative \(arm a\)"),
    (
      {"a": {"sweep": {"arms": {"b": {}}}}},
      r"sweep\.arms\.a\.sweep\.arms\.b={}: the config has no",
    ),
    ({"a": {"objective": "bert"}}, r"objective='bert': unknown"),
    ({"a": {}, "b": {"optim": {"lr": 0}}}, r"sweep\.arms\.b: is the same as a"),
    ({"figures": {}}, r"sweep\.arms\.figures: a sweep has a folder of this name"),
    ({"a/b": {}}, r"sweep\.arms\.a/b: 'a/b' must consist of letters"),
    ({"a": {"sweep": {"sizes": (3,)}}}, r"a law in N and D needs at least two of each \(arm a\)"),
  ],
)
def test_what_is_no_arm_is_refused_in_one_line_before_anything_is_made(
  config, tmp_path, monkeypatch, fields, message
):
  config.sweep.arms = fields
  with pytest.raises(ValueError, match=message) as raised:
    raise written.begin(config, tmp_path, monkeypatch)[2]
  assert "\n" not in str(raised.value)
  assert not [*tmp_path.iterdir()]


def test_a_grid_has_no_arms(config):
  config.sweep.arms, config.sweep.design = {"a": {}}, "grid"
  with pytest.raises(ValueError, match=r"sweep\.design='grid': arms are compared at equal budgets"):
    design.split(config)


def verdict(folder):
  return json.loads((folder / "verification.json").read_text())


def test_what_arms_have_in_common_is_trained_once(config, tmp_path, monkeypatch):
  """They differ in the fit, or where the prediction is tested; the third trains otherwise."""
  config.sweep.arms = {
    "plain": {},
    "absolute": {"fit": {"delta": 1e-5}},
    "denser": {"sweep": {"heldout_sizes": (0.5, 0.7, 1.0, 1.4, 2.0)}},
    "faster": {"optim": {"b1": 0.8}},
  }
  said, ran, error = written.begin(config, tmp_path, monkeypatch)
  assert error is None
  assert len(set(ran)) == len(ran)
  by_arm = {arm: [name for name in ran if name.startswith(f"{arm}/")] for arm in config.sweep.arms}
  first = "absolute"  # by their names
  assert not [name for name in by_arm["plain"] if "heldout" not in name]
  assert {name.partition("heldout")[1] for name in by_arm["denser"]} == {"heldout"}
  runs = {name.partition("/")[2] for name in by_arm[first]}
  assert runs == {name.partition("/")[2] for name in by_arm["faster"]}
  assert sum("heldout" not in name for name in runs) == 9 + 3 + 6  # fit, trunks, probes
  assert "fit: 9 cells, " in said
  assert said.count("; 9 of them are those of another arm") == 2
  for name in config.sweep.arms:
    folder = tmp_path / name
    records = list(folder.glob("cells/*/run.json"))
    assert len(records) >= 9 + 6
    assert len(verdict(folder)["cells"]) == (5 if name == "denser" else 3)
    spent = json.loads((folder / "sweep.json").read_text())
    assert len(spent["cells"]) == len(records)
  assert written.begin(config, tmp_path, monkeypatch)[1] == []


def test_an_arm_goes_on_without_the_folder_that_it_shared(config, tmp_path, monkeypatch):
  config.sweep.arms = {"a": {}, "b": {"fit": {"delta": 1e-5}}}
  written.begin(config, tmp_path, monkeypatch)
  for path in (tmp_path / "a" / "cells").glob("fit_s01*/run.json"):
    path.unlink()
    path.parent.rmdir()
  _, ran, error = written.begin(config, tmp_path, monkeypatch)
  assert error is None
  assert {name.partition("/")[0] for name in ran} == {"a"}


def test_a_stopped_sweep_of_two_arms_goes_on_in_the_second(config, tmp_path, monkeypatch):
  config.sweep.arms = {"a": {}, "b": {"optim": {"b1": 0.8}}}
  _, whole, _ = written.begin(config, tmp_path / "whole", monkeypatch)
  workdir = tmp_path / "stopped"
  _, first, error = written.begin(config, workdir, monkeypatch, **{"b/cells/fit_s01": "stopped"})
  assert isinstance(error, KeyboardInterrupt)
  _, rest, error = written.begin(config, workdir, monkeypatch)
  assert error is None
  assert sorted(first[:-1] + rest) == sorted(whole)
  assert {name.partition("/")[0] for name in rest} == {"b"}
  for name in ("a", "b"):
    assert verdict(workdir / name) == verdict(tmp_path / "whole" / name)


def test_an_arm_that_fails_leaves_the_others_their_verdict(config, tmp_path, monkeypatch):
  config.sweep.arms = {"a": {}, "b": {"optim": {"b1": 0.8}}}
  said, _, error = written.begin(config, tmp_path, monkeypatch, **{"/a/": "killed"})
  assert str(error).startswith(f"{tmp_path}: 1 of 2 arms failed (a: ")
  assert "FAILED a: " in said
  assert not (tmp_path / "a" / "verification.json").exists()
  assert verdict(tmp_path / "b")["budgets"][0]["inside"]


def test_arms_may_join_and_leave_a_begun_sweep(config, tmp_path, monkeypatch):
  config.sweep.arms = {"a": {}}
  assert not written.begin(config, tmp_path, monkeypatch)[2]
  config.sweep.arms.b = {"optim": {"b1": 0.8}}
  _, ran, error = written.begin(config, tmp_path, monkeypatch)
  assert error is None
  assert {name.partition("/")[0] for name in ran} == {"b"}
  config.sweep.arms.a = {"optim": {"b1": 0.7}}
  error = written.begin(config, tmp_path, monkeypatch)[2]
  assert "sealed sweep with optim.b1=0.9, asked 0.7; name another workdir (arm a)" in str(error)
  config.sweep.arms = {}
  error = written.begin(config, tmp_path, monkeypatch)[2]
  assert "holds a sweep of several arms" in str(error)
