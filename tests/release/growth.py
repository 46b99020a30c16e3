"""How cost grows: with batch, model, depth, devices, processes, runs trained together, and cells.

  python tests/release/growth.py OUTPUT.json [PANELS] [FIELD=VALUE ...]

PANELS are some of batch,size,depth,devices,processes,pack,cells (all). Prints each curve with its
slope in log seconds over log x, of all points and between the last two, and writes them.

Devices and processes grow weakly: n of them take n times the batch. On one machine's cores they
share its cores, so that n times the time is all that can be hoped for, and what lies above it is
the overhead of sharing.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import jax  # noqa: E402
import numpy as np  # noqa: E402
import synthetic  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from configs import base, clm, ladders  # noqa: E402
from scaling.bench import steps  # noqa: E402
from scaling.bench.timing import TURN_SECONDS, round_robin, training  # noqa: E402
from scaling.launch import child  # noqa: E402
from scaling.laws import fit  # noqa: E402
from scaling.laws.tables import runs  # noqa: E402
from scaling.report import document  # noqa: E402
from scaling.sweep import fit_files, plan, store  # noqa: E402
from train import pack, record  # noqa: E402
from train.data import dataset  # noqa: E402
from train.system import process  # noqa: E402

ROUNDS = 6
LADDER = {"model.ladder": "small", "model.width": 0, "model.depth": 0, "model.heads": 0}
STEPS = {  # x, and the fields of each point
  "batch": ("tokens_per_step", [{"data.batch_size": n} for n in (1, 2, 4, 8, 16, 32)]),
  "size": ("N", [LADDER | {"model.size": size} for size in (2, 5, 8, 11, 14, 17)]),
}
DEPTHS, DEVICES, PROCESSES, CELLS = (2, 4, 8, 16), (1, 2, 4, 8), (1, 2, 4), (10, 100, 1000, 10_000)
PACKS = {"cpu": (1, 2, 4, 8)}.get(jax.default_backend(), (1, 4, 16, 64))


def variant(config, fields):
  c = config.copy_and_resolve_references()
  c.update_from_flattened_dict(fields)
  c = ladders.resolve(c)
  c.train.tokens = c.data.seq_len * c.data.batch_size
  return c


def of_steps(panel, config):
  """A step of each variant, in turns."""
  x, variants = STEPS[panel]
  turns, facts = {}, {}
  for i, fields in enumerate(variants):
    c = variant(config, fields)
    turns[str(i)], facts[str(i)] = training(c, dataset.prepare(c))
  taken = round_robin(turns, ROUNDS)
  yield "step", {facts[i][x]: median(turn.step for turn in taken[i]) for i in turns}


def of_compilation(config):
  for name, scan in (("scanned", True), ("unrolled", False)):
    seconds = {}
    for depth in DEPTHS:
      c = variant(config, {"model.scan": scan, "model.depth": depth})
      seconds[depth] = training(c, dataset.prepare(c))[1]["compile_seconds"]
    yield name, seconds


def of_peers(panel, config):
  """A step on n devices or processes, with n times the batch, over n."""
  dataset.prepare(config)  # once, before several processes would
  seconds = {}
  for n in DEVICES if panel == "devices" else PROCESSES:
    c = variant(config, {"data.batch_size": n * config.data.batch_size})
    seconds[n] = step_seconds(c, *((1, n) if panel == "devices" else (n, 1))) / n
  yield f"step / {panel}", seconds


def step_seconds(config, processes, devices):
  """The seconds of a step in processes of their own, each with simulated devices."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    coordinator = f"127.0.0.1:{free.getsockname()[1]}"
  task = {"config": record.plain(config), "coordinator": coordinator, "processes": processes}
  environment = child.environment(JAX_NUM_CPU_DEVICES=str(devices), JAX_PLATFORMS="cpu")
  pipes = {"stdout": subprocess.PIPE, "text": True, "env": environment}
  commands = ([sys.executable, __file__, json.dumps(task), str(i)] for i in range(processes))
  started = [subprocess.Popen(command, **pipes) for command in commands]
  outputs = [one.communicate()[0] for one in started]
  assert not any(one.returncode for one in started), "its traceback stands above"
  return float(outputs[0].splitlines()[-1])


def one_process(task, index):
  """Times a step of a config; the first process prints it."""
  process.keep_freed_pages()
  if task["processes"] > 1:
    jax.distributed.initialize(task["coordinator"], task["processes"], index)
  config = ConfigDict(task["config"])
  take, _ = training(config, dataset.prepare(config), steps=4)  # as many in all
  seconds = median(take().step for _ in range(ROUNDS))
  if not index:
    print(seconds)


def of_packs(config):
  """A step of runs that are trained together, over their number."""
  config = variant(config, {})
  turns = {str(n): partial(pack.rate, config, n, TURN_SECONDS) for n in PACKS}
  rates = round_robin(turns, ROUNDS)
  yield "step / runs", {n: median(1 / rate for rate in rates[str(n)]) for n in PACKS}


def of_cells(_):
  """What a sweep does beside training, once, on synthetic runs that are all done."""
  parts = {}
  for n in CELLS:
    with tempfile.TemporaryDirectory() as folder:
      taken, count = sweep_work(Path(folder), sweep_of(n))
      for part, seconds in taken.items():
        parts.setdefault(part, {})[count] = seconds
  yield from parts.items()


def sweep_of(n):
  """A sweep of n cells: up to 20 sizes, and budgets over four decades."""
  sizes = max(3, min(20, round(n**0.5)))
  config = base.get_config()
  config.sweep.sizes = tuple(range(1, sizes + 1))
  config.sweep.budgets = tuple(np.geomspace(1e10, 1e14, -(-n // sizes)).tolist())
  return config


def sweep_work(workdir, config):
  """The seconds of each part of a sweep's work beside training, and its number of cells."""
  seconds = {}

  def timed(part, function, *args):
    began = time.perf_counter()
    result = function(*args)
    seconds[part] = time.perf_counter() - began
    return result

  cells = timed("plan", plan.design_cells, config, 257)
  synthetic.write_runs(workdir, cells)
  head = {"name": "synthetic", "config": record.plain(config), "config_diff": {}}
  timed("write sweep.json", store.write_sweep, workdir, head, cells)
  tabulate = lambda: store.write_table(workdir, cells, "clm")  # noqa: E731
  timed("run.json to cells.csv", tabulate)
  table = timed("read cells.csv", runs.read_runs, workdir)
  timed("fit", fit.fit_runs, table, config.fit)
  timed("all of fit.json", fit_files.write_fit, workdir, config.fit)
  timed("figures, report", document.write, workdir)
  return seconds, len(cells)


PANELS = {
  "batch": partial(of_steps, "batch"),
  "size": partial(of_steps, "size"),
  "depth": of_compilation,
  "devices": partial(of_peers, "devices"),
  "processes": partial(of_peers, "processes"),
  "pack": of_packs,
  "cells": of_cells,
}


def main(output, panels="", *fields):
  config = clm.get_config()
  for field in fields:
    base.set_field(config, *field.split("=", 1))
  curves = []
  for panel in panels.split(",") if panels else PANELS:
    for name, points in PANELS[panel](config):
      x, y = np.log([*points]), np.log([*points.values()])
      slopes = float(np.polyfit(x, y, 1)[0]), float(np.diff(y)[-1] / np.diff(x)[-1])
      head = {"panel": panel, "name": name, "slope": slopes[0], "last_slope": slopes[1]}
      curves.append(head | {"x": [*points], "seconds": [*points.values()]})
      shown = ", ".join(f"{n:,}: {seconds:.4g} s" for n, seconds in points.items())
      print(f"{panel}, {name}: {shown}; slope {slopes[0]:.2f}, at the end {slopes[1]:.2f}")
  Path(output).write_text(json.dumps(steps.machine() | {"rounds": ROUNDS, "curves": curves}))


if __name__ == "__main__":
  if sys.argv[1].startswith("{"):
    one_process(json.loads(sys.argv[1]), int(sys.argv[2]))
  else:
    main(*sys.argv[1:])
