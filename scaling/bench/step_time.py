"""Prints what a step of a config takes, as JSON: a process of its own for each set of devices.

Started by `scaling.bench.growth`, also as one of several processes that train together.
"""

import json
import sys
from pathlib import Path

STEPS = 4  # in a turn: the same in all processes


def main(path: str, rounds: str, coordinator: str = "", processes: str = "0", index: str = "-1"):
  """Measures the config in a JSON file; the first process prints seconds per step."""
  from train.system import distributed, process

  process.keep_freed_pages()
  distributed.join(coordinator, int(processes), int(index))  # before jax is imported
  from statistics import median

  from ml_collections import ConfigDict

  from scaling.bench.timing import training
  from train.data import dataset

  config = ConfigDict(json.loads(Path(path).read_text()))
  take, _ = training(config, dataset.prepare(config), STEPS)
  seconds = median(take().step for _ in range(int(rounds)))
  if distributed.index_and_count()[0] == 0:
    print(json.dumps({"step_seconds": seconds}))


if __name__ == "__main__":
  main(*sys.argv[1:])
