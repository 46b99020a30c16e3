"""How cost grows: with batch, model, depth, devices, processes, runs trained together, and runs.

`isoflop bench --growth` writes the curves to growth.json and draws them. A curve's slope is that of
a line in log seconds over log x: 1 is a cost in proportion, 2 a quadratic one.

Devices and processes grow weakly: n of them take n times the batch. On one machine's cores they
are simulated and share its cores, so n times the time is all that can be hoped for, and what lies
above it is the overhead of sharing.
"""

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import base, ladders
from configs.errors import RunError, UsageError
from scaling.bench import curves, steps
from scaling.bench.curves import Curve
from scaling.bench.timing import TURN_SECONDS, round_robin, training
from scaling.launch import child
from scaling.laws import chinchilla, fit
from scaling.laws.tables import runs
from scaling.report import report
from scaling.sweep import fit_files, plan, store
from train import pack, record
from train.data import dataset
from train.system import files

BATCHES = [{"data.batch_size": n} for n in (1, 2, 4, 8, 16, 32)]
SHAPE_OF_LADDER = {"model.ladder": "small", "model.width": 0, "model.depth": 0, "model.heads": 0}
SIZES = [SHAPE_OF_LADDER | {"model.size": size} for size in (2, 5, 8, 11, 14, 17)]
DEPTHS = (2, 4, 8, 16)
DEVICES, PROCESSES = (1, 2, 4, 8), (1, 2, 4)
PACKS = {"cpu": (1, 2, 4, 8)}  # which are not trained at once there, but their overhead is seen
ACCELERATOR_PACKS = (1, 4, 16, 64)
CELLS = (10, 100, 1000, 10_000)
# The law of synthetic runs, and the scatter of their log loss.
LAW = chinchilla.Chinchilla(*(np.array(v) for v in (1.2, 40.0, 127.0, 0.35, 0.37)))
SCATTER = 0.002

Result = TypeVar("Result")


class Panel(NamedTuple):
  """An axis that cost grows along: what it is, what is measured, and how."""

  x: str
  measured: str
  measure: Callable[[ConfigDict, int], list[Curve]]


def growth(
  config: ConfigDict,
  workdir: Path,
  panels: Iterable[str],
  rounds: int = 20,
  show: Callable[[Curve], None] = lambda curve: None,
) -> list[Curve]:
  """Measures the panels and returns their curves; writes growth.json, and growth.pdf and .png.

  Args:
    config: a run's; each panel changes the fields that it is about.
    workdir: a folder, made if need be.
    panels: some of `PANELS`.
    rounds: turns of each step that is timed.
    show: receives each curve once it is measured.

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
    for curve in PANELS[panel].measure(config, rounds):
      measured.append(curve)
      show(curve)
  rows = [c._asdict() | {"slope": c.slope, "last_slope": c.last_slope} for c in measured]
  files.write_json(workdir / "growth.json", steps.machine() | {"rounds": rounds, "curves": rows})
  curves.draw(measured, PANELS, workdir / "growth")
  return measured


# ------------------------------------------------------------------------------- of a training step


def _variant(config: ConfigDict, fields: dict[str, Any]) -> ConfigDict:
  """Changes fields of a config, resolves it, and has it train for one step."""
  c = config.copy_and_resolve_references()
  c.update_from_flattened_dict(fields)
  c = ladders.resolve(c)
  c.train.tokens = c.data.seq_len * c.data.batch_size
  return c


def _time_steps(
  panel: str, x: str, variants: list[dict[str, Any]], config: ConfigDict, rounds: int
) -> list[Curve]:
  """Times a step of each variant of a config, in turns; x is one of the facts of `training`."""
  turns, facts = {}, []
  for i, fields in enumerate(variants):
    c = _variant(config, fields)
    turns[str(i)], of_variant = training(c, dataset.prepare(c))
    facts.append(of_variant)
  results = round_robin(turns, rounds)
  seconds = [median(turn.step for turn in taken) for taken in results.values()]
  return [Curve(panel, "step", [of_variant[x] for of_variant in facts], seconds)]


def _time_compilation(config: ConfigDict, rounds: int) -> list[Curve]:
  """Times the compilation of models of several depths, once each."""
  curves = []
  for name, scan in (("scanned", True), ("unrolled", False)):
    seconds = []
    for depth in DEPTHS:
      c = _variant(config, {"model.scan": scan, "model.depth": depth})
      seconds.append(training(c, dataset.prepare(c))[1]["compile_seconds"])
    curves.append(Curve("depth", name, [float(depth) for depth in DEPTHS], seconds))
  return curves


def _time_weak(panel: str, counts: Iterable[int], config: ConfigDict, rounds: int) -> list[Curve]:
  """Times a step on n devices or processes, with n times the batch."""
  dataset.prepare(config)  # once, before several processes would
  seconds = []
  for n in counts:
    c = _variant(config, {"data.batch_size": n * config.data.batch_size})
    processes, devices = (n, 1) if panel == "processes" else (1, n)
    seconds.append(_step_seconds(c, rounds, processes, devices) / n)
  return [Curve(panel, f"step / {panel}", [float(n) for n in counts], seconds)]


def _step_seconds(config: ConfigDict, rounds: int, processes: int, devices: int) -> float:
  """Times a step in processes of their own, each with simulated devices."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "config.json")
    path.write_text(json.dumps(record.plain(config)))
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = child.command("scaling.bench.timing", str(path), str(rounds))
    started = [
      subprocess.Popen(
        command + ([coordinator, str(processes), str(i)] if processes > 1 else []),
        env=child.environment(JAX_NUM_CPU_DEVICES=str(devices), JAX_PLATFORMS="cpu"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i in range(processes)
    ]
    outputs = [process.communicate() for process in started]
  if any(process.returncode for process in started):
    last = (outputs[0][1].strip().splitlines() or ["no message"])[-1]
    raise RunError(f"{processes} processes with {devices} devices each: {last}")
  return float(outputs[0][0].splitlines()[-1])


def _time_packs(config: ConfigDict, rounds: int) -> list[Curve]:
  """Times steps of runs that are trained together: their cells per hour go as 1 / seconds."""
  config = _variant(config, {})
  counts = PACKS.get(jax.default_backend(), ACCELERATOR_PACKS)
  turns = {str(n): partial(pack.rate, config, n, TURN_SECONDS) for n in counts}
  rates = round_robin(turns, rounds)
  seconds = [median(1 / rate for rate in rates[str(n)]) for n in counts]
  return [Curve("pack", "step / runs", [float(n) for n in counts], seconds)]


# ---------------------------------------------------------------- of a sweep's work beside training


def synthetic_sweep(n: int) -> ConfigDict:
  """Returns the config of a sweep of n cells: up to 20 sizes, and budgets over four decades."""
  sizes = max(3, min(20, round(n**0.5)))
  config = base.get_config()
  config.sweep.sizes = tuple(range(1, sizes + 1))
  config.sweep.budgets = tuple(np.geomspace(1e10, 1e14, -(-n // sizes)).tolist())
  return config


def write_synthetic_runs(workdir: Path, cells: list[plan.Cell]) -> None:
  """Writes the records of cells as if each had trained to the loss of `LAW`, with scatter."""
  noise = np.random.default_rng(0).normal(scale=SCATTER, size=len(cells))
  for cell, error in zip(cells, noise, strict=True):
    loss = float(chinchilla.loss(LAW, cell.N, cell.D) * np.exp(error))
    run = {"loss": loss, "loss_stderr": 0.004, "bits_per_byte": loss, "seconds": 1}
    folder = store.folder(workdir, cell)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "done"} | run))


def sweep_work(workdir: Path, config: ConfigDict) -> dict[str, float]:
  """Does a sweep's work beside training, on synthetic runs; returns the seconds of each part."""
  seconds = {}

  def timed(part: str, function: Callable[..., Result], *args: Any) -> Result:
    began = time.perf_counter()
    result = function(*args)
    seconds[part] = time.perf_counter() - began
    return result

  cells = timed("plan", plan.fit_cells, config, 257)
  write_synthetic_runs(workdir, cells)
  head = {"name": "synthetic", "config": record.plain(config), "config_diff": {}}
  timed("write sweep.json", store.write_sweep, workdir, head, cells)
  timed(
    "run.json to cells.csv",
    lambda: store.write_table(workdir, store.rows(workdir, cells, "clm")),
  )
  table = timed("read cells.csv", runs.read_runs, workdir)
  timed(f"fit, {config.fit.bootstraps} resamples", fit.fit_runs, table, config.fit)
  timed("all of fit.json", fit_files.write_fit, workdir, config.fit)
  timed("figures, report", report.write, workdir)
  return seconds


def _time_sweep(config: ConfigDict, rounds: int) -> list[Curve]:
  """Times once what a sweep does beside training, on synthetic runs that are all done."""
  counts: list[float] = []
  seconds: dict[str, list[float]] = {}
  for n in CELLS:
    with tempfile.TemporaryDirectory() as folder:
      for part, taken in sweep_work(Path(folder), synthetic_sweep(n)).items():
        seconds.setdefault(part, []).append(taken)
      counts.append(float(len(store.read_sweep(Path(folder))[1])))
  return [Curve("cells", part, counts, taken) for part, taken in seconds.items()]


PANELS = {
  "batch": Panel(
    "tokens per step", "a step", partial(_time_steps, "batch", "tokens_per_step", BATCHES)
  ),
  "size": Panel("parameters N", "a step", partial(_time_steps, "size", "N", SIZES)),
  "depth": Panel("layers", "compilation", _time_compilation),
  "devices": Panel("devices", "a step, per device", partial(_time_weak, "devices", DEVICES)),
  "processes": Panel(
    "processes", "a step, per process", partial(_time_weak, "processes", PROCESSES)
  ),
  "pack": Panel("runs together", "a step, per run", _time_packs),
  "cells": Panel("finished runs", "work beside training", _time_sweep),
}
