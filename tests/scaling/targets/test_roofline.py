"""The least time of a program on a target, by hand; and what targets are called."""

import importlib.util

import pytest

from scaling.targets import catalog, roofline
from scaling.targets.executed import Work

H100, V5E = catalog.parse("h100:8"), catalog.parse("v5e:2x4")
PEAK, HBM, LINK = 989e12, 3350e9, 450e9


def compute(seconds, nbytes=0.0):
  return Work("c", "compute", {"bfloat16": seconds * PEAK}, nbytes * HBM)


def gather(seconds, is_async=False, name="g"):
  """An all-gather among 8 GPUs that takes so long."""
  group = tuple(range(8))
  return Work(name, "all-gather", payload=seconds * LINK * 8 / 7, group=group, is_async=is_async)


def done(name="g"):
  return Work(name, "done")


@pytest.mark.parametrize(
  ("works", "total", "waiting"),
  [
    ([compute(3), compute(0, 2)], 5, 0),  # one after the other
    ([compute(3, 2)], 3, 0),  # the longer of the two
    ([compute(2, 3)], 3, 0),
    ([gather(2), compute(3)], 5, 2),  # waited for at once
    ([gather(2, True), compute(3), done()], 3, 0),  # hidden
    ([gather(5, True), compute(3), done()], 5, 2),  # hidden in part
    ([gather(2, True), done(), compute(3)], 5, 2),
    ([gather(2, True), gather(2, True, "h"), compute(3), done(), done("h")], 4, 1),  # one link
    ([gather(2, True), gather(2, True, "h"), done("h"), done()], 4, 4),
    ([Work("l", "loop", trips=4, body=(gather(2, True), compute(1), done()))], 8, 4),
    ([gather(9, True), Work("l", "loop", trips=4, body=(compute(2),)), done()], 9, 1),
    ([gather(2, True)], 2, 0),  # never awaited, and yet sent
  ],
)
def test_a_programs_least_time(works, total, waiting):
  times = roofline.times(tuple(works), H100)
  assert (times.total, times.waiting) == pytest.approx((total, waiting))


@pytest.mark.parametrize(
  ("compute_bytes", "total"),
  [(0, 3), (2, 4), (3, 5)],  # a copy of 2 s goes on where the memory is free
)
def test_copies_share_the_memory(compute_bytes, total):
  copy = Work("p", "copy", nbytes=2 * HBM, is_async=True)
  works = (copy, compute(3, compute_bytes), done("p"))
  assert roofline.times(works, H100).total == pytest.approx(total)


def test_the_slowest_are_those_of_all_trips():
  works = (compute(3), Work("l", "loop", trips=4, body=(compute(0.5, 1), gather(0.1))))
  found = roofline.slowest(works, H100, 2)
  assert [(one["seconds"], one["times"], one["bound"]) for one in found] == [
    (pytest.approx(4), 4, "memory"),
    (pytest.approx(3), 1, "products"),
  ]


def test_the_operands_decide_the_peak():
  for peak, seconds in H100.chip.peaks.items():
    work = Work("c", "compute", {peak: 1e15})
    assert roofline.times((work,), H100).total == pytest.approx(1e15 / seconds)


@pytest.mark.parametrize(
  ("target", "kind", "group", "seconds"),
  [
    ("h100:8", "all-gather", range(8), 7 / 8 / 450e9),
    ("h100:8", "all-reduce", range(8), 2 * 7 / 8 / 450e9),
    ("h100:8", "reduce-scatter", range(4), 3 / 4 / 450e9),
    ("h100:8", "collective-permute", range(2), 1 / 450e9),
    ("h100:8", "all-reduce", range(1), 0.0),
    # Between 4 hosts, each with 8 adapters of 50 GB/s.
    ("h100:4x8", "all-gather", range(32), 3 / 4 / (8 * 50e9)),
    ("h100:4x8", "all-reduce", (0, 8, 16, 24), 2 * 3 / 4 / 50e9),
    ("h100:4x8", "all-reduce", range(8), 2 * 7 / 8 / 450e9),
    # A line has one link to each side, a closed ring two.
    ("v5e:1x4", "all-gather", range(4), 3 / 4 / 50e9),
    ("v5e:2x4", "all-gather", range(8), 7 / 8 / (2 * 50e9)),
    ("v5e:8x16", "all-gather", range(128), 127 / 128 / (3 * 50e9)),
    ("v5e:16x16", "all-reduce", range(256), 2 * 255 / 256 / (4 * 50e9)),
    ("v5p:4x4x4", "all-gather", range(64), 63 / 64 / (6 * 100e9)),
    ("v5p:2x2x4", "all-gather", range(16), 15 / 16 / (3 * 100e9)),
  ],
)
def test_rings_of_a_byte(target, kind, group, seconds):
  assert catalog.parse(target).seconds(kind, 1.0, tuple(group)) == pytest.approx(seconds)


@pytest.mark.parametrize(
  ("name", "devices", "dims"),
  [
    ("h100", 1, (1, 1)),
    ("b200:8", 8, (1, 8)),
    ("a100:2x8", 16, (2, 8)),
    ("v5e", 1, (1, 1)),
    ("v5e:16x16", 256, (16, 16)),
    ("v5p:2x2x1", 4, (2, 2, 1)),
    ("v4:4x4x4", 64, (4, 4, 4)),
  ],
)
def test_targets_by_name(name, devices, dims):
  target = catalog.parse(name)
  assert (target.devices, target.dims) == (devices, dims)


@pytest.mark.parametrize(
  ("name", "line"),
  [
    ("h10", "target='h10': unknown; did you mean 'h100'?"),
    ("H100", "did you mean 'h100'?"),
    ("tpu", "choose one of"),
    ("h100:0", "target='h100:0': write h100:8, or h100:2x8 for two hosts"),
    ("h100:2x2x2", "write h100:8"),
    ("v5e:8", "target='v5e:8': write v5e:2x4"),
    ("v5p:2x2", "write v5p:2x2x4"),
    ("v5e:2x", "write v5e:2x4"),
  ],
)
def test_names_that_are_none(name, line):
  with pytest.raises(ValueError, match="^target=") as caught:
    catalog.parse(name)
  assert line in str(caught.value)


def test_a_missing_package_has_its_remedy(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  for name, extra in {"v5e:2x2": "plan-tpu", "h100": "plan-gpu"}.items():
    with pytest.raises(ValueError, match=rf"pip install 'isoflop\[{extra}\]'"):
      catalog.devices(catalog.parse(name))
