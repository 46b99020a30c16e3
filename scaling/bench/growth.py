"""How cost grows: with batch, model, depth, devices, processes, runs trained together, and runs.

What `isoflop bench --growth` measures, as growth.json; `growth_figure` draws it. A curve's
slope is that of a line in log seconds over log x: 1 is a cost in proportion, 2 a quadratic one.

Devices and processes grow weakly: n of them take n times the batch. On one machine's cores they
are simulated and share its cores, so n times the time is all that can be hoped for, and what lies
above it is the overhead of sharing.
"""

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import base, ladders
from configs.errors import RunError, UsageError
from scaling.bench import steps
from scaling.bench.timing import TURN_SECONDS, round_robin, training
from scaling.formats import si
from scaling.launch import child
from scaling.laws import chinchilla, fit, runs
from scaling.report import report
from scaling.sweep import fit_files, plan, store
from train import pack, record
from train.data import dataset
from train.system import files

PANELS = {  # name: what x is, and what is measured
  "batch": ("tokens per step", "a step"),
  "size": ("parameters N", "a step"),
  "depth": ("layers", "compilation"),
  "devices": ("devices", "a step, per device"),
  "processes": ("processes", "a step, per process"),
  "pack": ("runs together", "a step, per run"),
  "cells": ("finished runs", "a sweep's own work"),
}
BATCHES = (1, 2, 4, 8, 16, 32)  # sequences
SIZES = (2, 5, 8, 11, 14, 17)  # rungs of the small ladder
DEPTHS = (2, 4, 8, 16)
DEVICES, PROCESSES = (1, 2, 4, 8), (1, 2, 4)
PACKS = {"cpu": (1, 2, 4, 8)}  # which are not trained at once there, but their overhead is seen
ACCELERATOR_PACKS = (1, 4, 16, 64)
CELLS = (10, 100, 1000, 10_000)
LAW = chinchilla.Chinchilla(
  *(np.array(v) for v in (1.2, 40.0, 127.0, 0.35, 0.37))
)  # of synthetic runs
SCATTER = 0.002  # of their log loss


class Curve(NamedTuple):
  """What was measured: seconds at each x."""

  panel: str
  name: str
  x: list[float]
  seconds: list[float]

  @property
  def slope(self) -> float:
    """Of log seconds over log x, all points."""
    return float(np.polyfit(np.log(self.x), np.log(self.seconds), 1)[0])

  @property
  def last_slope(self) -> float:
    """Between the last two points: where a constant part weighs least."""
    return float(np.diff(np.log(self.seconds[-2:]))[0] / np.diff(np.log(self.x[-2:]))[0])


def growth(
  config: ConfigDict,
  workdir: Path,
  panels: Iterable[str],
  rounds: int = 20,
  say: Callable[[str], None] = lambda text: None,
) -> list[Curve]:
  """Measures the panels; returns their curves, which also stand in `workdir/growth.json`.

  Args:
    config: a run's; the panels change what they are about.
    workdir: a folder, made if need be.
    panels: some of `PANELS`.
    rounds: turns of each step that is timed.
    say: receives each curve as it is there.

  Raises:
    UsageError: an unknown panel, or no round.
  """
  panels = list(panels)
  if unknown := [name for name in panels if name not in PANELS]:
    raise UsageError(f"growth={unknown[0]!r}: unknown; choose from {', '.join(PANELS)}")
  if rounds < 1:
    raise UsageError(f"rounds={rounds}: must be at least 1; 20 give a steady median")
  files.make_folder(workdir)
  measured = []
  for panel in panels:
    for curve in MEASURES[panel](config, rounds):
      measured.append(curve)
      say(line(curve))
  curves = [c._asdict() | {"slope": c.slope, "last_slope": c.last_slope} for c in measured]
  found = steps.machine() | {"rounds": rounds, "curves": curves}
  files.write_json(workdir / "growth.json", found)
  return measured


def line(curve: Curve) -> str:
  """Returns a curve as people read it."""
  points = ", ".join(f"{si(x)}: {s:.4g} s" for x, s in zip(*curve[2:], strict=True))
  slopes = f"slope {curve.slope:.2f}, at the end {curve.last_slope:.2f}"
  return f"{curve.panel}, {curve.name}: {points}; {slopes}"


# -------------------------------------------------------------------------------------- a model's


def _step(config: ConfigDict) -> ConfigDict:
  """Returns a resolved config that trains for one step: its text is enough for it."""
  c = ladders.resolve(config)
  c.train.tokens = c.data.seq_len * c.data.batch_size
  return c


def _steps(configs: dict[float, ConfigDict], rounds: int) -> tuple[list[float], dict]:
  """Returns seconds per step of each config, measured by turns, and each one's facts."""
  found = {x: training(c, dataset.prepare(c)) for x, c in configs.items()}
  turns = round_robin({str(x): take for x, (take, _) in found.items()}, rounds)
  facts = {x: one for x, (_, one) in found.items()}
  return [median(turn.step for turn in turns[str(x)]) for x in configs], facts


def _batch(config: ConfigDict, rounds: int) -> Iterator[Curve]:
  configs = {}
  for n in BATCHES:
    c = config.copy_and_resolve_references()
    c.data.batch_size = n
    configs[float(n)] = _step(c)
  seconds, facts = _steps(configs, rounds)
  yield Curve("batch", "step", [facts[x]["tokens_per_step"] for x in configs], seconds)


def _size(config: ConfigDict, rounds: int) -> Iterator[Curve]:
  configs = {}
  for size in SIZES:
    c = config.copy_and_resolve_references()
    c.model.update({"ladder": "small", "size": size, "width": 0, "depth": 0, "heads": 0})
    configs[float(size)] = _step(c)
  seconds, facts = _steps(configs, rounds)
  yield Curve("size", "step", [facts[x]["N"] for x in configs], seconds)


def _depth(config: ConfigDict, rounds: int) -> Iterator[Curve]:
  for scan in (True, False):
    seconds = []
    for depth in DEPTHS:
      c = config.copy_and_resolve_references()
      c.model.update({"scan": scan, "depth": depth})
      c = _step(c)
      seconds.append(training(c, dataset.prepare(c))[1]["compile_seconds"])
    yield Curve("depth", "scanned" if scan else "unrolled", [float(d) for d in DEPTHS], seconds)


def _weak(panel: str, counts: Iterable[int]) -> Callable[[ConfigDict, int], Iterator[Curve]]:
  def measure(config: ConfigDict, rounds: int) -> Iterator[Curve]:
    dataset.prepare(config)  # once, before several processes would
    seconds = []
    for n in counts:
      c = config.copy_and_resolve_references()
      c.data.batch_size = n * config.data.batch_size
      alone = panel == "devices"
      seconds.append(_elsewhere(_step(c), rounds, *((1, n) if alone else (n, 1))) / n)
    yield Curve(panel, f"step / {panel}", [float(n) for n in counts], seconds)

  return measure


def _elsewhere(config: ConfigDict, rounds: int, processes: int, devices: int) -> float:
  """Returns seconds per step in processes of their own, each with simulated devices."""
  with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
    path = Path(folder, "config.json")
    path.write_text(json.dumps(record.plain(config)))
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    command = child.command("scaling.bench.step_time", str(path), str(rounds))
    several = [f"127.0.0.1:{port}", str(processes)]
    running = [
      subprocess.Popen(
        command + ([*several, str(i)] if processes > 1 else []),
        env=child.environment(JAX_NUM_CPU_DEVICES=str(devices), JAX_PLATFORMS="cpu"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i in range(processes)
    ]
    said = [process.communicate() for process in running]
  if any(process.returncode for process in running):
    last = (said[0][1].strip().splitlines() or ["no message"])[-1]
    raise RunError(f"{processes} processes with {devices} devices each: {last}")
  return json.loads(said[0][0].splitlines()[-1])["step_seconds"]


def _pack(config: ConfigDict, rounds: int) -> Iterator[Curve]:
  """Times steps of runs that are trained together: their cells per hour go as 1 / seconds."""
  config = _step(config)
  counts = PACKS.get(jax.default_backend(), ACCELERATOR_PACKS)
  turns = {str(n): partial(pack.rate, config, n, TURN_SECONDS) for n in counts}
  rates = round_robin(turns, rounds)
  seconds = [median(1 / rate for rate in rates[str(n)]) for n in counts]
  yield Curve("pack", "step / runs", [float(n) for n in counts], seconds)


# -------------------------------------------------------------------------------------- a sweep's


def design(n: int) -> ConfigDict:
  """Returns a sweep of n cells: up to 20 sizes, and budgets over four decades."""
  sizes = max(3, min(20, round(n**0.5)))
  config = base.get_config()
  config.sweep.sizes = tuple(range(1, sizes + 1))
  config.sweep.budgets = tuple(np.geomspace(1e10, 1e14, -(-n // sizes)).tolist())
  return config


def finish(workdir: Path, cells: list[plan.Cell]) -> None:
  """Writes the records of cells as if each had trained to the loss of `LAW`, with scatter."""
  noise = np.random.default_rng(0).normal(scale=SCATTER, size=len(cells))
  for cell, error in zip(cells, noise, strict=True):
    loss = float(chinchilla.loss(LAW, cell.N, cell.D) * np.exp(error))
    folder = store.folder(workdir, cell)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
      json.dumps(
        {"status": "done", "loss": loss, "loss_stderr": 0.004, "bits_per_byte": loss, "seconds": 1}
      )
    )


def _cells(config: ConfigDict, rounds: int) -> Iterator[Curve]:
  """Times once what a sweep does beside training, on synthetic runs that are all done."""
  seconds: dict[str, list[float]] = {}
  counts = []
  for n in CELLS:
    with tempfile.TemporaryDirectory() as folder:
      for name, taken in sweep_work(Path(folder), design(n)):
        seconds.setdefault(name, []).append(taken)
      counts.append(float(len(store.read_sweep(Path(folder))[1])))
  yield from (Curve("cells", name, counts, taken) for name, taken in seconds.items())


def sweep_work(workdir: Path, config: ConfigDict) -> Iterator[tuple[str, float]]:
  """Does a sweep's own work on synthetic runs; yields each part's name and seconds."""
  began = time.perf_counter()

  def lap() -> float:
    nonlocal began
    now = time.perf_counter()
    taken, began = now - began, now
    return taken

  cells = plan.fit_cells(config, 257)
  yield "plan", lap()
  finish(workdir, cells)
  lap()
  head = {"name": "synthetic", "config": record.plain(config), "config_diff": {}}
  store.write_sweep(workdir, head, cells)
  yield "write sweep.json", lap()
  store.write_table(workdir, store.rows(workdir, cells, "clm"))
  yield "run.json to cells.csv", lap()
  found = runs.read_runs(workdir)
  yield "read cells.csv", lap()
  fit.fit_runs(found, config.fit)
  yield f"fit, {config.fit.bootstraps} resamples", lap()
  fit_files.write_fit(workdir, config.fit)
  yield "all of fit.json", lap()
  report.write(workdir)
  yield "figures, report", lap()


MEASURES: dict[str, Callable[[ConfigDict, int], Iterator[Curve]]] = {
  "batch": _batch,
  "size": _size,
  "depth": _depth,
  "devices": _weak("devices", DEVICES),
  "processes": _weak("processes", PROCESSES),
  "pack": _pack,
  "cells": _cells,
}
