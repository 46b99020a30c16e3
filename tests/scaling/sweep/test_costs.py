"""Where a sweep's time goes: parts that add up to the whole, over all its starts."""

import json

import pytest
from synthetic import build, markdown

from scaling.sweep import costs


class Hands:
  """A clock that is set by hand."""

  def __init__(self):
    self.seconds = 100.0

  def __call__(self):
    return self.seconds


WALL = {"start": 2.0, "data": 1.0, "preflight": 5.0, "run": 40.0, "fit": 3.0, "report": 4.0}
TIMES = {"start": 1, "compile": 2, "data": 3, "train": 50, "evaluate": 4, "checkpoint": 6}


def test_two_workers_seconds_are_halves_and_the_rest_is_idle():
  records = [
    {"seconds": 70.0, "times": TIMES},  # 4 s that its times leave out
    {"seconds": 6.0},  # of an older record
    {"status": "planned"},
  ]
  parts = costs.split(WALL, 80.0, records)
  assert sum(parts.values()) == pytest.approx(55.0)
  assert parts["train"] == 25.0
  assert parts["compile"] == 1.0
  assert parts["start"] == 2.0 + 0.5
  assert parts["data"] == 1.0 + 1.5
  assert parts["unsplit"] == (4.0 + 6.0) / 2
  assert parts["idle"] == pytest.approx(40.0 - (66 + 10) / 2)
  assert parts["fit"] == 3.0


def test_the_number_of_workers_is_their_mean_over_the_starts():
  """10 s with two workers and 30 s with one: 50 worker-seconds of 40 s."""
  parts = costs.split({"run": 40.0}, 50.0, [{"seconds": 50.0, "times": {"train": 50.0}}])
  assert parts["train"] == pytest.approx(40.0)
  assert parts["idle"] == pytest.approx(0.0)


def test_the_clock_goes_on_where_an_earlier_start_stopped(tmp_path):
  now = Hands()
  clock = costs.SweepClock(tmp_path, began=97.0, now=now)  # the process is 3 s old
  clock("run", workers=2)
  now.seconds += 10
  clock("records")
  now.seconds += 1000  # killed in this part: it is lost
  clock = costs.SweepClock(tmp_path, now=now)
  now.seconds += 1
  clock("run", workers=1)
  now.seconds += 30
  clock("fit")
  now.seconds += 5
  whole = clock.finish([{"seconds": 44.0, "times": {"train": 44.0}}])
  assert whole == pytest.approx(3 + 10 + 1 + 30 + 5)
  kept = json.loads((tmp_path / "costs.json").read_text())
  assert kept["wall"] == {"start": 4.0, "run": 40.0, "fit": 5.0}
  assert kept["worker_seconds"] == 50.0
  assert kept["parts"]["train"] == pytest.approx(44.0 * 40 / 50)
  assert kept["parts"]["idle"] == pytest.approx(6.0 * 40 / 50)


def test_a_clock_that_ticks_loses_seconds_when_it_is_killed(tmp_path):
  now = Hands()
  clock = costs.SweepClock(tmp_path, now=now)
  clock("run", workers=2)
  for _ in range(123):
    now.seconds += 0.5
    clock.tick()
  written = (tmp_path / "costs.json").stat().st_mtime_ns
  clock.tick()
  assert (tmp_path / "costs.json").stat().st_mtime_ns == written
  clock = costs.SweepClock(tmp_path, now=now)  # another start, after a SIGKILL
  clock("fit")
  clock.finish([{"seconds": 118.0, "times": {"train": 118.0}}])
  kept = json.loads((tmp_path / "costs.json").read_text())
  assert 61.5 - costs.TICK_SECONDS < kept["wall"]["run"] <= 61.5
  assert kept["worker_seconds"] == pytest.approx(2 * kept["wall"]["run"])
  assert kept["parts"]["train"] == pytest.approx(59.0)
  assert 0.0 <= kept["parts"]["idle"] <= 2.5


def test_the_report_shows_each_part_and_its_share(tmp_path):
  folder = build(tmp_path)
  (folder / "costs.json").write_text(
    json.dumps({"parts": costs.split(WALL, 80.0, [{"seconds": 66.0, "times": TIMES}])})
  )
  section = markdown(folder).partition("## Where the time went")[2].partition("\n## ")[0]
  assert "| train | 25.0 | 45.5% |" in section
  assert "| all | 55.0 | 100.0% |" in section
  assert "unsplit" not in section  # nothing was
  assert "All but training took 54.5%" in section
