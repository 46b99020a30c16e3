"""How a sweep's runs are placed on devices and workers, before anything is trained."""

import io
import json

import pytest

from configs import ladders
from scaling.progress import Display
from scaling.sweep import placement, plan
from scaling.sweep import run as sweeps
from train import aot
from train.data import dataset
from train.system import files, process


@pytest.mark.slow
def test_a_size_that_does_not_fit_is_refused_before_training(tiny, tmp_path):
  c = tiny
  c.sweep.sizes, c.sweep.probe_sizes, c.sweep.design = (0, 1, 3), (), "grid"
  c.sweep.token_counts = (20_000, 40_000, 80_000)
  c.sweep.workers, c.train.eval_batch_size = 1, 4
  needed = []
  for size in (1, 3):
    sized = c.copy_and_resolve_references()
    sized.model.size = size
    sized = ladders.resolve(sized)
    needed.append(aot.needs(sized, dataset.prepare(sized).vocab_size).compiled)
  c.sharding.device_memory, c.sharding.halve_microbatches = sum(needed) / 2, False
  display = Display("", io.StringIO())
  with pytest.raises(ValueError, match="1 of 3 sizes do not fit .*preflight_s03: sharding.micro"):
    sweeps.sweep(c.lock(), tmp_path / "sweep", display, lambda: False)
  assert not list((tmp_path / "sweep").glob("cells/*/run.json"))
  assert not list((tmp_path / "sweep").glob("trunks/*/run.json"))
  found = json.loads((tmp_path / "sweep/preflight/s01/fits.json").read_text())
  assert found["compiled"] <= found["available"] == int(c.sharding.device_memory)


class Rates:
  """A pool of given speeds."""

  def __init__(self, each, packed, one):
    self.each, self.packed, self.one = each, packed, one
    self.cores = [0, 1]

  def restart(self, cores):
    self.cores = list(cores)

  def rate(self, config, slots, seconds):
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
def test_workers_are_chosen_once_by_their_measured_rates(
  tiny, tmp_path, monkeypatch, rates, each_core, pack, changed
):
  monkeypatch.setattr(process, "cores", lambda: [0, 1])
  tiny.sweep.sizes, tiny.sweep.budgets = (0, 1), (1e9, 1e14)
  (tmp_path / "preflight").mkdir()
  said, pool = io.StringIO(), Rates(*rates)
  arguments = tiny, tmp_path, plan.design_cells(tiny, 257), pool, Display("", said)
  assert placement.choose_workers(*arguments, False) is changed
  assert placement.chosen_workers(tmp_path) == (each_core, pack)
  stored = json.loads((tmp_path / "preflight/workers.json").read_text())
  assert list(stored["steps_per_second"].values()) == list(rates)
  assert pool.cores == ([0, 1] if each_core else [None])
  assert said.getvalue().count("\n") == 1
  record = {"devices": 1, "accelerator": False, "compiled": 1, "evaluating": 1, "available": 1e9}
  assert placement.pack_size(tiny, 0, record, pack) == pack
  pool.each = 1e9
  assert not placement.choose_workers(*arguments, True)  # a second start keeps it
  assert placement.chosen_workers(tmp_path) == (each_core, pack)
  monkeypatch.setattr(process, "cores", lambda: [0, 1, 2])
  assert placement.chosen_workers(tmp_path) == (True, 1)
  pool.restart(process.cores())
  assert not placement.choose_workers(*arguments, True)  # a core each is fastest now
  stored = json.loads((tmp_path / "preflight/workers.json").read_text())
  assert (stored["pack"], stored["cores"]) == (1, 3)


def test_workers_are_not_measured_where_set_or_short_or_begun(tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(process, "cores", lambda: [0, 1])
  tiny.sweep.sizes, tiny.sweep.budgets = (0, 1), (1e9, 1e14)

  def choose(c, begun=False):
    said = io.StringIO()
    cells = plan.design_cells(c, 257)
    assert not placement.choose_workers(c, tmp_path, cells, None, Display("", said), begun)
    return said.getvalue()

  for field in ("workers", "pack"):
    c = tiny.copy_and_resolve_references()
    c.sweep[field] = 2
    assert choose(c) == ""
  c = tiny.copy_and_resolve_references()
  c.sweep.budgets = (1e9, 1e10)
  assert "workers: 2, a core each (the sweep is too short" in choose(c)
  assert choose(tiny, begun=True) == ""
  assert placement.chosen_workers(tmp_path) == (True, 1)


class Compilers:
  """A pool whose workers need a given memory."""

  def __init__(self, **needs):
    self.place, self.needs = {"device": "cpu", "devices": 1, "workers": 2}, needs
    self.compiled = []

  def setting(self):
    return dict(self.place)

  def run(self, tasks):
    self.compiled = sorted(task.shape[1] for task in tasks if not task.done())
    for task in tasks:
      if not task.done():
        task.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(task.path, {"status": "done", "microbatches": 1, **self.needs})
    return {}


def test_sizes_are_compiled_again_on_other_devices_and_options(tiny, tmp_path):
  tiny.sweep.sizes, tiny.sweep.budgets, tiny.sweep.pack = (0, 1), (1e9, 1e10), 2
  cells = plan.design_cells(tiny, 257)
  memory = {"compiled": 9, "evaluating": 9, "predicted": 9, "available": 1000}
  pool = Compilers(devices=1, accelerator=False, **memory)

  def look():
    display = Display("", io.StringIO())
    placements = placement.compile_sizes(tiny, tmp_path, cells, pool, display)
    return {placed.pack for placed in placements.values()}, pool.compiled

  assert look() == ({2}, [0, 1])
  assert look() == ({2}, [])
  pool.place["devices"] = pool.needs["devices"] = 2  # whose runs are never packed
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


def test_the_planner_packs_as_many_as_fit(tiny):
  record = {"devices": 1, "accelerator": True, "compiled": 10, "evaluating": 12, "available": 1000}
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
    tiny.sweep.pack = n
    assert placement.pack_size(tiny, 0, record | change) == expected


def test_more_than_fit_are_refused_before_anything_is_trained(tiny):
  record = {"devices": 1, "accelerator": True, "compiled": 10 << 20, "evaluating": 12 << 20}
  tiny.sweep.pack = 8
  assert placement.pack_size(tiny, 5, record | {"available": 108 << 20}) == 8
  with pytest.raises(ValueError, match="sweep.pack=8: 8 runs of size 5 .* 12 MiB .* 107 .* most 4"):
    placement.pack_size(tiny, 5, record | {"available": 107 << 20})


def test_what_fits_a_larger_size_fits_a_smaller_one():
  whole, half = placement.Placement(1, 8), placement.Placement(2, 1)
  found = placement.implied({3: whole, 8: half}, (2, 3, 5, 8, 9))
  assert found == {2: whole, 5: half}  # 9 is yet to be looked at
