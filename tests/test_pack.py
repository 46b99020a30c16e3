"""Runs that are trained together are the runs alone."""

import io
import json

import pytest

from scaling import preflight
from scaling.display import Display
from scaling.launch import Pool, Task
from train import files, loop, objectives, optim, pack

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture
def small(tiny):
  tiny.model.width, tiny.model.depth, tiny.model.heads, tiny.model.scan = 16, 1, 2, False
  tiny.model.mlp_ratio, tiny.optim.warmup_tokens = 16.0, 128
  return tiny


def together(runs, should_stop=lambda: False):
  """Trains a pack; returns records and errors, in the order of the runs."""
  outcomes = {}
  pack.train(runs, should_stop, lambda i, event: None, outcomes.__setitem__)
  return [outcomes[i] for i in range(len(runs))]


def of(config, steps, seed=0, lr=0.0, branch_from=""):
  config = config.copy_and_resolve_references()
  config.seed, config.optim.lr, config.train.branch_from = seed, lr, str(branch_from)
  config.train.tokens = steps * objectives.tokens_per_step(config)
  return config


def mlm(config):
  config.objective, config.model.family, config.model.dropout = "mlm", "encoder", 0.1
  return config


# A product's sum of n terms in another order differs by at most 2 n u of the sum of their sizes
# (u = 2^-24; Higham 2002, section 4.2). The longest sums of these models are those over the 128
# tokens of a batch: 1.5e-5 of a gradient. Adam's direction is the gradient over its own size, so a
# step of the learning rate, at most 0.02, is off by that share of itself, and 40 steps add up to
# 1.2e-5 of a weight of size 1; a loss of a few nats follows by as much. It was 2e-8 at most.
BOUND = 2e-5


@pytest.mark.parametrize(
  "family",
  [
    pytest.param(lambda config: config, id="decoder"),
    pytest.param(mlm, id="encoder", marks=pytest.mark.slow),
  ],
)
def test_a_pack_trains_what_its_runs_would_be_alone(small, tmp_path, family):
  """Of different seeds, rates, lengths and starts, and stopped all at once in the middle."""
  small = family(small)
  trunk = of(small, 32)
  trunk.optim.schedule = "constant"
  trunk.train.keep_steps = (optim.cooldown_start(small.optim, 40),)
  loop.train(trunk, tmp_path / "trunk")
  configs = [
    of(small, 40),
    of(small, 22, 1, 3e-3),
    of(small, 40, 0, 0.0, tmp_path / "trunk/checkpoints"),
  ]
  alone = [loop.train(c, tmp_path / f"alone{i}") for i, c in enumerate(configs)]
  assert alone[2]["loss"] == alone[0]["loss"]

  runs = [(c, tmp_path / f"packed{i}") for i, c in enumerate(configs)]
  calls = iter(range(10_000))
  stopped = together(runs, should_stop=lambda: next(calls) >= 3 * 5)
  assert [str(outcome) for outcome in stopped] == [
    "stopped at step 6 of 40", "stopped at step 6 of 22", "stopped at step 38 of 40"
  ]  # fmt: skip
  packed = together(runs)
  assert [run["first_step"] for run in packed] == [6, 6, 38]
  differs = {"loss", "loss_stderr", "bits_per_byte", "seconds", "times", "first_step", "pack"}
  for i, (one, other) in enumerate(zip(alone, packed, strict=True)):
    assert (one["pack"], other["pack"]) == (1, 4)
    assert other["loss"] == pytest.approx(one["loss"], rel=BOUND)
    assert {k: v for k, v in one.items() if k not in differs} == {
      k: v for k, v in other.items() if k not in differs
    }
    a, b = (
      {row["step"]: row for row in files.read_rows(tmp_path / f"{name}{i}" / "metrics.jsonl")}
      for name in ("alone", "packed")
    )
    assert a.keys() <= b.keys()
    for at, row in a.items():
      assert [b[at][k] for k in ("tokens", "flops", "lr")] == [
        row[k] for k in ("tokens", "flops", "lr")
      ]


def test_a_run_does_not_feel_who_is_beside_it(small, tmp_path):
  """The same bits in another slot; the same run beside one that diverges and two that cannot."""
  same, wild = of(small, 24, 7), of(small, 24, 3, 1e30)
  wild.optim.clip_norm = small.optim.clip_norm
  lost, other = of(small, 24, branch_from=tmp_path / "none"), of(small, 24, 1)
  wider = of(small, 24)
  wider.model.width = 24
  first = together([(same, tmp_path / "a"), (other, tmp_path / "b")])
  configs = [wild, lost, other, wider, same]
  (tmp_path / "second").mkdir()
  second = together([(c, tmp_path / "second" / str(i)) for i, c in enumerate(configs)])
  assert second[0]["status"] == "diverged"
  assert "name that folder of the trunk" in str(second[1])
  assert "another program" in str(second[3])
  assert second[2]["loss"] == pytest.approx(first[1]["loss"], rel=BOUND)
  assert second[4]["loss"] == pytest.approx(first[0]["loss"], rel=BOUND)
  third = together([(of(small, 24, 9), tmp_path / "c"), (same, tmp_path / "d")])
  assert third[1]["loss"] == first[0]["loss"]


def test_the_pool_hands_out_packs(small, tmp_path):
  def task(name, config, shape=0, size=2):
    return Task(name, tmp_path / name, config.to_dict(), config.train.tokens, None, shape, size)

  tasks = [task(f"t{i}", of(small, 20 + i, i)) for i in range(3)]
  tasks.append(task("bad", of(small, 30, branch_from=tmp_path / "none")))
  said = io.StringIO()
  pool = Pool(tmp_path, 1)
  try:
    errors = pool.run(tasks, Display("", said), lambda: False)
  finally:
    pool.close()
  assert list(errors) == ["bad"]
  found = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("t0", "t1", "t2")]
  assert [run["status"] for run in found] == ["done"] * 3
  assert [run["pack"] for run in found] == [2, 2, 2]
  assert said.getvalue().count("loss") == 3


def test_the_planner_packs_as_many_as_fit(small):
  found = {"devices": 1, "accelerator": True, "compiled": 10, "evaluating": 12, "available": 1000}
  for n, change, expected in (
    (0, {}, 64),
    (0, {"available": 12 * 9}, 8),
    (0, {"available": 12 * 8}, 4),
    (0, {"available": 12}, 1),
    (0, {"accelerator": False}, 1),
    (3, {"accelerator": False}, 2),
    (16, {}, 16),
    (1, {}, 1),
    (16, {"devices": 8}, 1),
  ):
    small.sweep.pack = n
    assert preflight.pack(small, found | change, workers=1) == expected
  small.sweep.pack = 0
  assert preflight.pack(small, found | {"available": 12 * 18}, workers=2) == 8
