"""What does not fit is found before anything is trained, and made to fit where it can be."""

import io
import json
import os

import jax
import pytest

from configs import ladders
from scaling.launch import worker
from scaling.launch.local import Pool
from scaling.progress import Display
from scaling.sweep import plan, store
from scaling.sweep import preflight as planner
from scaling.sweep import run as sweeps
from train import fitting, loop
from train.data import dataset
from train.system import files, process


@pytest.fixture
def run(tiny):
  """A config whose logits are most of what it needs, and its text."""
  tiny.data.batch_size, tiny.data.seq_len, tiny.train.eval_batch_size = 16, 128, 8
  tiny.train.tokens = 40 * 16 * 128
  tiny.optim.warmup_tokens = 4096
  config = ladders.resolve(tiny)
  return config, dataset.prepare(config)


def compiled(config, tokens, **fields):
  config = config.copy_and_resolve_references()
  config.sharding.update(fields)
  return fitting.needs(config, tokens).compiled


@pytest.mark.slow
def test_microbatches_are_halved_until_they_fit_and_the_batch_stays(run, tmp_path):
  config, tokens = run
  whole, half, quarter = (compiled(config, tokens, microbatches=n) for n in (1, 2, 4))
  assert whole > half > quarter
  config.sharding.device_memory = (half + quarter) / 2
  fitted, found = fitting.fitting(config, tokens)
  assert (fitted.sharding.microbatches, found.compiled) == (4, quarter)
  assert config.sharding.microbatches == 1
  small = loop.train(config, tmp_path / "small")
  config.sharding.device_memory = 0.0
  large = loop.train(config, tmp_path / "large")
  microbatches = [r["config"]["sharding"]["microbatches"] for r in (small, large)]
  assert microbatches == [4, 1]
  assert small["steps"] == large["steps"]
  assert small["loss"] == pytest.approx(large["loss"], rel=1e-4)


def test_what_cannot_fit_is_refused_with_what_would_help(run, tmp_path):
  config, _ = run
  config.sharding.device_memory = 1e5
  config.data.batch_size = 2
  with pytest.raises(ValueError, match=r"microbatches=2: a step needs .* MiB .*remat") as error:
    loop.train(config, tmp_path)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run.json").exists()
  config.sharding.halve_microbatches = False
  with pytest.raises(ValueError, match=r"microbatches=1: .*halve_microbatches=True"):
    loop.train(config, tmp_path)


def test_arithmetic_is_believed_far_from_the_limit(run, monkeypatch):
  config, tokens = run
  monkeypatch.setattr(fitting, "needs", lambda *_: pytest.fail("it was compiled"))
  assert fitting.fitting(config, tokens, near=fitting.NEAR) == (config, None)


def test_memory_of_this_machine(tiny):
  alone = fitting.available(tiny)
  assert 2**28 < alone <= fitting.machine_memory()
  assert fitting.available(tiny, sharing=4) == pytest.approx(alone / 4, rel=1e-6)
  assert jax.default_backend() == "cpu"


def test_a_sweep_is_refused_before_it_trains_where_a_size_does_not_fit(tiny, tmp_path):
  c = tiny
  c.sweep.sizes, c.sweep.probe_sizes, c.sweep.design = (0, 1, 3), (), "grid"
  c.sweep.token_counts = (20_000, 40_000, 80_000)
  c.sweep.workers, c.train.eval_batch_size = 1, 4
  needed = []
  for size in (1, 3):
    sized = c.copy_and_resolve_references()
    sized.model.size = size
    sized = ladders.resolve(sized)
    needed.append(compiled(sized, dataset.prepare(sized)))
  c.sharding.device_memory, c.sharding.halve_microbatches = sum(needed) / 2, False
  display = Display("", io.StringIO())
  with pytest.raises(ValueError, match="1 of 3 sizes do not fit .*preflight_s03: sharding.micro"):
    sweeps.sweep(c.lock(), tmp_path / "sweep", display, lambda: False)
  assert not list((tmp_path / "sweep").glob("cells/*/run.json"))
  assert not list((tmp_path / "sweep").glob("trunks/*/run.json"))
  found = json.loads((tmp_path / "sweep/preflight/s01/fits.json").read_text())
  assert found["compiled"] <= found["available"] == int(c.sharding.device_memory)


@pytest.mark.slow
def test_each_of_several_processes_brings_its_own_rows(run, monkeypatch):
  config, tokens = run
  alone = fitting.needs(config, tokens)
  monkeypatch.setattr(process, "place", lambda: (1, 2))
  shared = fitting.needs(config, tokens)
  assert shared.compiled < 0.8 * alone.compiled
  assert shared.evaluating < alone.evaluating


def test_what_evaluation_needs_is_looked_at_too(run):
  config, tokens = run
  config.train.eval_batch_size = 128
  found = fitting.needs(config, tokens)
  assert found.evaluating > found.compiled
  config.sharding.device_memory = (found.compiled + found.evaluating) / 2
  with pytest.raises(ValueError, match="train.eval_batch_size=128: evaluation needs .*; lower it"):
    fitting.fitting(config, tokens)


def test_a_begun_sweep_goes_on_with_what_makes_it_fit_and_with_nothing_else(tiny, tmp_path):
  tokens = dataset.prepare(tiny)
  store.write_sweep(tmp_path, sweeps.begin(tiny, tmp_path, tokens), [])
  for section, field, value in (
    ("model", "remat", "full"),
    ("sharding", "microbatches", 2),
    ("sharding", "halve_microbatches", False),
  ):
    changed = tiny.copy_and_resolve_references()
    changed[section][field] = value
    assert sweeps.begin(changed, tmp_path, tokens)["config"][section][field] == value
  tiny.model.norm = "layer"
  with pytest.raises(ValueError, match="holds a sweep with model.norm='rms', asked 'layer'"):
    sweeps.begin(tiny, tmp_path, tokens)


class Rates:
  """A pool that is as fast as it is told."""

  def __init__(self, each, packed, one):
    self.each, self.packed, self.one = each, packed, one
    self.cores = [0, 1]

  def restart(self, cores):
    self.cores = list(cores)

  def rate(self, config, slots, seconds, *_):
    return self.one if self.cores == [None] else (self.each if slots == 1 else self.packed)


@pytest.mark.parametrize(
  ("rates", "each_core", "pack", "changed"),
  [
    ((60, 55, 35), True, 1, False),
    ((60, 65, 62), True, 1, False),  # within what a measurement varies by
    ((60, 70, 62), True, 2, True),
    ((60, 70, 90), False, 1, True),
  ],
)
def test_workers_are_chosen_by_what_was_measured_and_once(
  tiny, tmp_path, monkeypatch, rates, each_core, pack, changed
):
  monkeypatch.setattr(process, "cores", lambda: [0, 1])
  tiny.sweep.sizes, tiny.sweep.budgets = (0, 1), (1e9, 1e14)
  (tmp_path / "preflight").mkdir()
  said, pool = io.StringIO(), Rates(*rates)
  arguments = plan.fit_cells(tiny, 257), pool, Display("", said), lambda: False
  assert planner.choose(tiny, tmp_path, *arguments) is changed
  found = planner.chosen(tmp_path)
  assert (found["each_core"], found["pack"]) == (each_core, pack)
  assert list(found["steps_per_second"].values()) == list(rates)
  assert pool.cores == ([0, 1] if each_core else [None])
  assert said.getvalue().count("\n") == 1
  record = {"devices": 1, "accelerator": False, "compiled": 1, "evaluating": 1, "available": 1e9}
  assert planner.pack(tiny, 0, record, found["pack"]) == pack
  pool.each = 1e9
  assert not planner.choose(tiny, tmp_path, *arguments)  # a second start keeps it
  assert planner.chosen(tmp_path) == found
  (tmp_path / "sweep.json").write_text("{}")
  monkeypatch.setattr(process, "cores", lambda: [0, 1, 2])
  assert planner.chosen(tmp_path) == {"each_core": True, "pack": 1}
  pool.restart(process.cores())
  assert not planner.choose(tiny, tmp_path, *arguments)  # a core each is fastest now
  assert (planner.chosen(tmp_path)["pack"], planner.chosen(tmp_path)["cores"]) == (1, 3)


def test_nothing_is_measured_where_it_is_said_or_short_or_begun(tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(process, "cores", lambda: [0, 1])
  tiny.sweep.sizes, tiny.sweep.budgets = (0, 1), (1e9, 1e14)

  def choose(c):
    said = io.StringIO()
    cells = plan.fit_cells(c, 257)
    assert not planner.choose(c, tmp_path, cells, None, Display("", said), lambda: False)
    return said.getvalue()

  for field in ("workers", "pack"):
    c = tiny.copy_and_resolve_references()
    c.sweep[field] = 2
    assert choose(c) == ""
  c = tiny.copy_and_resolve_references()
  c.sweep.budgets = (1e9, 1e10)
  assert "workers: 2, a core each (the sweep is too short" in choose(c)
  (tmp_path / "sweep.json").write_text("{}")
  assert choose(tiny) == ""
  assert planner.chosen(tmp_path) == {"each_core": True, "pack": 1}


class Lookers:
  """A pool that finds what it is told, of sizes that have not been looked at."""

  def __init__(self):
    self.place, self.found = {"device": "cpu", "devices": 1, "workers": 2}, {}
    self.looked_at = []

  def setting(self, *_):
    return dict(self.place)

  def run(self, tasks, *_):
    self.looked_at = sorted(task.shape for task in tasks if not task.done())
    for task in tasks:
      if not task.done():
        task.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(task.record, {"status": "done", "microbatches": 1, **self.found})
    return {}


def test_what_was_found_elsewhere_is_looked_at_again(tiny, tmp_path):
  tiny.sweep.sizes, tiny.sweep.budgets, tiny.sweep.pack = (0, 1), (1e9, 1e10), 2
  cells = plan.fit_cells(tiny, 257)
  pool = Lookers()
  pool.found = {"devices": 1, "accelerator": False, "compiled": 9, "evaluating": 9}
  pool.found |= {"predicted": 9, "available": 1000}

  def look():
    fits = planner.look(tiny, tmp_path, cells, pool, Display("", io.StringIO()), lambda: False)
    return {fit.pack for fit in fits.values()}, pool.looked_at

  assert look() == ({2}, [0, 1])
  assert look() == ({2}, [])
  pool.place["devices"] = pool.found["devices"] = 2  # whose runs are never packed
  assert look() == ({1}, [0, 1])
  assert look() == ({1}, [])
  for change in (
    lambda: pool.place.update(device="NVIDIA H200"),
    lambda: pool.place.update(workers=3),
    lambda: tiny.sharding.update({"microbatches": 2}),
    lambda: tiny.sharding.update({"device_memory": 1e9}),
    lambda: tiny.model.update({"remat": "full"}),
  ):
    change()
    assert look()[1] == [0, 1]
    assert look()[1] == []


@pytest.mark.parametrize(
  ("workers", "own", "share"),
  [
    (1, {}, None),
    (2, {}, "0.3750"),
    (4, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, "0.1875"),
    (2, {"XLA_CLIENT_MEM_FRACTION": "0.2"}, "0.2"),
    (2, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2"}, None),
  ],
)
def test_workers_of_one_accelerator_share_its_memory(monkeypatch, workers, own, share):
  for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
    monkeypatch.delenv(name, raising=False)
  for name, value in own.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(process, "has_accelerator", lambda: True)
  env = worker.environment(workers)
  assert env.get("XLA_CLIENT_MEM_FRACTION") == share
  assert env | own == env
  monkeypatch.setattr(process, "has_accelerator", lambda: False)
  assert worker.environment(workers) == dict(os.environ)


def test_a_pool_says_what_it_runs_on_and_ticks_while_it_waits(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
  ticks = []
  pool = Pool(tmp_path, 1, tick=lambda: ticks.append(1))
  try:
    found = pool.setting(Display("", io.StringIO()), lambda: False)
    assert found == {"device": "cpu", "devices": 2, "workers": 1}
    assert ticks
    pool.restart([None])
    with pytest.raises(KeyboardInterrupt):
      pool.setting(Display("", io.StringIO()), lambda: True)
  finally:
    pool.close()


@pytest.mark.slow
def test_a_pool_measures_its_workers_and_starts_others(tiny, tmp_path):
  pool = Pool(tmp_path, 1)
  arguments = tiny.to_dict(), 2, 0.3, Display("", io.StringIO()), lambda: False
  try:
    assert pool.rate(*arguments) > 10
    pool.restart([None])
    assert len(pool) == 1
    assert pool.rate(*arguments) > 10
  finally:
    pool.close()
