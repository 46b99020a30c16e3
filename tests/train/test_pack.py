"""Runs that are trained together are the runs alone."""

import io
import json
import subprocess
import threading

import jax
import pytest
import tiny_sweep
from jax.experimental.compilation_cache import compilation_cache

from scaling.launch.local import Pool
from scaling.launch.queue import Task
from scaling.progress import Display
from train import aot, loop, optim, pack
from train.objectives import registry
from train.system import files


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
  config.train.tokens = steps * registry.tokens_per_step(config)
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
  differs |= {"digests", "hash"}
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


@pytest.mark.slow
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
  pool = Pool(tmp_path, 1, Display("", said), lambda: False)
  try:
    failures = pool.run(tasks)
  finally:
    pool.close()
  assert list(failures) == ["bad"]
  found = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("t0", "t1", "t2")]
  assert [run["status"] for run in found] == ["done"] * 3
  assert [run["pack"] for run in found] == [2, 2, 2]
  assert said.getvalue().count("loss") == 3


def test_what_memory_does_not_hold_goes_on_in_half_the_slots(small, tmp_path, monkeypatch):
  """Four runs out of memory at step 12, two of them again, and one alone: no run is lost."""
  step, steps, said, outcomes = pack.Slots.step, [], [], {}

  def scarce(stack, inputs):
    steps.append(len(stack.runs))
    first = stack.runs[0] == 0 and len(said) < 2
    if len(stack.runs) == 4 and len(steps) == 12 or len(stack.runs) == 2 and first:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
    return step(stack, inputs)

  monkeypatch.setattr(pack.Slots, "step", scarce)
  small.train.checkpoint_every_seconds = 0.0  # each of them is saved at every look
  runs = [(of(small, 24, i), tmp_path / f"run{i}") for i in range(4)]
  pack.train(runs, lambda: False, lambda i, e: None, outcomes.__setitem__, said.append)
  assert [outcomes[i]["status"] for i in range(4)] == ["done"] * 4
  assert [outcomes[i]["pack"] for i in range(4)] == [1, 1, 2, 2]
  assert [outcomes[i]["first_step"] for i in range(4)] == [10] * 4  # nothing before it again
  assert said == [
    "out of memory with 4 runs together (run0): now 2",
    "out of memory with 2 runs together (run0): now 1",
  ]
  monkeypatch.setattr(pack.Slots, "step", step)
  for i in (0, 3):
    alone = together([(runs[i][0], tmp_path / f"alone{i}")])[0]
    assert outcomes[i]["loss"] == pytest.approx(alone["loss"], rel=BOUND)


def test_what_does_not_fit_alone_has_failed(small, tmp_path, monkeypatch):
  error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

  def never(*_):
    raise error

  monkeypatch.setattr(pack.Slots, "step", never)
  assert together([(of(small, 24, i), tmp_path / str(i)) for i in range(2)]) == [error] * 2


@pytest.fixture
def own_programs(tmp_path):
  """A folder of compiled programs that no other test writes into."""
  shared, folder = jax.config.jax_compilation_cache_dir, tmp_path / "programs"
  for use in (folder, shared):
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(use))
    if use is folder:
      yield folder


def test_what_was_compiled_ahead_is_what_training_takes(small, own_programs, optimized, tmp_path):
  """In another thread, while another program trains; with no difference in the numbers."""
  small.model.width = 24  # that no other test has compiled
  runs = [(of(small, 24, i), tmp_path / f"run{i}") for i in range(2)]

  def programs():
    return {path.name for path in own_programs.glob("jit_pack_step*-cache")}

  before = programs()
  thread = threading.Thread(target=aot.compile_ahead, args=(runs[0][0], 2))
  thread.start()
  other = of(small, 24)
  other.model.width = 16
  loop.train(other, tmp_path / "other")
  thread.join()
  compiled = programs()
  assert len(compiled - before) == 1
  assert [run["status"] for run in together(runs)] == ["done"] * 2
  assert programs() == compiled


SWEEP = (
  "--config.train.checkpoint_every_seconds=0.3", "--config.sweep.seed_sizes=(1,)",
  "--config.sweep.pack=4", "--config.sweep.workers=1", "--config.sweep.heldout_budgets=(1.0,)",
  "--config.sweep.heldout_sizes=(1.0,)",
)  # fmt: skip


def packed_sweep(corpus, folder):
  """The command of a sweep whose runs are trained together by one worker."""
  return tiny_sweep.command(folder, corpus, *SWEEP, sizes="1,2,3", budgets="1e9,2e9,5e9")


def records(folder, status=("done",)):
  """The records of a sweep by run, without its folder, which stands in `train.branch_from`."""
  texts = {p.parent.name: p.read_text() for p in folder.glob("*/*/run.json")}
  found = {key: json.loads(text.replace(str(folder), "")) for key, text in texts.items()}
  return {key: run for key, run in found.items() if run["status"] in status}


@pytest.mark.slow
def test_a_packed_sweep_trains_its_runs_together(corpus, tmp_path):
  """One that is killed is in tests/release; this one need not save often."""
  command = [*packed_sweep(corpus, tmp_path), "--config.train.checkpoint_every_seconds=10"]
  whole = subprocess.run(command, capture_output=True, text=True, timeout=900)
  determined = "prediction" in whole.stdout  # so few runs of so few tokens tell hardly a law
  assert determined or "fit: undetermined: " in whole.stderr, whole.stderr
  assert whole.returncode == (0 if determined else 2), whole.stderr
  cells = [name for name in records(tmp_path) if name.startswith("fit_")]
  assert json.loads((tmp_path / "fit.json").read_text())["n_runs"] == len(cells) > 10
  packs = [run["pack"] for run in records(tmp_path).values()]
  assert {1, 4} <= set(packs) <= {1, 2, 4}
