"""How long a training step takes: timed in a process like a worker's, or by a device's peak.

The processor's time of a step is taken, not the wall's: what else runs on the machine hardly
changes it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from configs.errors import UsageError
from scaling.launch import child
from scaling.targets import catalog
from train.system import process

TIMED_SECONDS = 0.5  # by each clock, for each of two sizes
MOST_FLOPS = 2e10  # of a step that is timed on a CPU; larger ones are reckoned from it


class StepTime(NamedTuple):
  """The time of a step, as a line in its FLOPs."""

  overhead: float  # beside the FLOPs [s]
  flops_per_second: float
  busy: float  # the wall's time over the processor's: above 1 where other work runs here, too

  def seconds(self, step_flops: float) -> float:
    """Returns the time of a step on a machine that does nothing else [s]."""
    return self.overhead + step_flops / self.flops_per_second


def of_device(name: str, mfu: float, dtype: str) -> StepTime:
  """Takes a device's peak, of which training reaches the share `mfu`.

  Raises:
    UserError: there is no such device, or its peak for such products is not known.
  """
  chip = catalog.parse(name).chip
  if dtype not in chip.peaks:
    raise UsageError(f"--device={name}: no peak of {dtype} products is known; set model.dtype")
  return StepTime(0.0, mfu * chip.peaks[dtype], 1.0)


def measure(configs: Mapping[float, ConfigDict]) -> StepTime | None:
  """Times steps of the smallest and of the largest config, by the FLOPs of their steps.

  None: all of them are too large for this machine.
  """
  accelerator = process.has_accelerator()
  timed = sorted(flops for flops in configs if accelerator or flops <= MOST_FLOPS)
  if not timed:
    return None
  timed = sorted({timed[0], timed[-1]})
  core = "any" if accelerator else str(process.cores()[-1])
  message = json.dumps([configs[flops].to_dict() for flops in timed])
  command = child.command("scaling.sweep.step_time", core)
  pipe = subprocess.PIPE
  ended = subprocess.run(
    command, input=message, stdout=pipe, text=True, env=child.worker_environment(1), check=True
  )
  seconds, busy = json.loads(ended.stdout.splitlines()[-1])
  return line(timed, seconds, busy)


def line(flops: list[float], seconds: list[float], busy: float) -> StepTime:
  """Draws the line through the times of one or two steps; through 0 where it would fall."""
  overhead = 0.0
  if len(flops) > 1:
    slope = (seconds[-1] - seconds[0]) / (flops[-1] - flops[0])
    overhead = max(0.0, seconds[0] - slope * flops[0]) if slope > 0 else 0.0
  rate = flops[-1] / max(seconds[-1] - overhead, 1e-9)
  return StepTime(overhead, rate, max(1.0, busy))


def main(core: str) -> None:
  """Times steps of the configs on standard input; prints their seconds, and how busy it is."""
  if core != "any":
    process.pin(int(core))
  process.keep_freed_pages()
  process.use_compile_cache()
  from train import pack

  clocks = (time.perf_counter, time.perf_counter if core == "any" else time.process_time)
  wall: list[float] = []
  own: list[float] = []
  for tree in json.load(sys.stdin):
    for clock, times in zip(clocks, (wall, own), strict=True):
      times.append(1 / pack.rate(ConfigDict(tree), 1, TIMED_SECONDS, clock))
  print(json.dumps((own, sum(wall) / sum(own))))


if __name__ == "__main__":
  main(sys.argv[1])
