"""The time of a step, from which `isoflop plan` says how long a sweep takes."""

import pytest

from configs.errors import UserError
from scaling.sweep import step_time


def test_a_line_through_two_steps_tells_overhead_and_rate():
  time = step_time.line([1e8, 1e9], [0.004 + 0.01, 0.004 + 0.1], 1.0)
  assert time.overhead == pytest.approx(0.004)
  assert time.flops_per_second == pytest.approx(1e10)
  assert time.seconds(5e8) == pytest.approx(0.054)


@pytest.mark.parametrize(
  ("flops", "seconds"), [([1e9], [0.1]), ([1e8, 1e9], [0.2, 0.1]), ([1e8, 1e9], [0.001, 0.1])]
)
def test_where_two_steps_tell_no_overhead_the_largest_tells_the_rate(flops, seconds):
  time = step_time.line(flops, seconds, 0.9)
  assert time == (0.0, pytest.approx(1e10), 1.0)


def test_a_device_is_reckoned_from_its_peak():
  time = step_time.of_device("h100", 0.4, "bfloat16")
  assert time.seconds(4e14) == pytest.approx(1.0, rel=0.02)  # of 989 TFLOP/s
  with pytest.raises(UserError, match="nope"):
    step_time.of_device("nope", 0.4, "bfloat16")


def test_steps_that_are_too_large_for_this_machine_are_not_timed(tiny):
  assert step_time.measure({1e12: tiny}) is None


@pytest.mark.slow
def test_steps_are_timed_by_the_processor(tiny):
  """A config of half as many sequences takes less of it."""
  half = tiny.copy_and_resolve_references()
  tiny.data.batch_size, half.data.batch_size = 64, 4
  time = step_time.measure({1e8: half, 16e8: tiny})
  assert 0 <= time.overhead < time.seconds(1e8) < time.seconds(16e8) < 60
  assert time.busy >= 1
