"""A sweep whose runs are written and not trained: they end as a test says, on a known law."""

import io
import json
import re

from ml_collections import ConfigDict
from synthetic import TRUTH

from scaling.launch.launchers import LAUNCHERS
from scaling.launch.queue import Failure, Queue
from scaling.laws import chinchilla
from scaling.progress import Display
from scaling.report import document
from scaling.sweep import placement, store
from scaling.sweep import run as sweeps
from train import record
from train.data import dataset
from train.system import files

LAW = TRUTH._replace(A=80.0)  # of which tests' sizes hold the optimum, at their budgets
PLACEMENT = placement.Placement(1, 1)
KILLED = Failure("its worker died (signal 9)")


def loss_of(cell):
  """The loss of a run of known law; its seed moves it by a little."""
  return float(chinchilla.loss(LAW, cell.N, cell.D)) + abs(cell.seed - 1) * 1e-3


def give_losses(workdir):
  """Gives the fitted cells of a sweep that trained the losses of the known law.

  Models that train for seconds determine none. Their table and their fit are made again.
  """
  for cell in store.read_sweep(workdir)[1]:
    path = workdir / "cells" / cell.id / "run.json"
    if cell.kind == "fit":
      run = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("digests", "hash")}
      files.write_json(path, files.with_digests(run | {"loss": loss_of(cell)}))
  for name in ("cells.csv", "fit.json"):
    (workdir / name).unlink()


class Pool:
  """Ends runs as `fates` says, by a pattern of their folders; the others have the loss of a law."""

  fates: dict[str, str] = {}  # noqa: RUF012

  def __init__(self, *_):
    self.ran = []  # folders, as "arm/cells/id"

  def __len__(self):
    return 1

  def close(self):
    pass

  def run(self, tasks):
    queue = Queue(tasks)
    while pack := queue.pop():
      for task in pack.tasks:
        self.ran.append("/".join(task.folder.parts[-3:]))
        fates = (fate for part, fate in self.fates.items() if re.search(part, str(task.folder)))
        fate = next(fates, "done")
        if fate == "stopped":
          raise KeyboardInterrupt
        if fate == "killed":
          queue.fail(task, KILLED)
          continue
        self.end(task, fate)
        queue.finish(task)
    return queue.failures

  def end(self, task, fate):
    """Writes the record of a run, and the checkpoints of a trunk."""
    config = ConfigDict(task.config)
    result = record.describe(config, dataset.prepare(config), "cpu") | {"status": fate}
    cells = {cell.id: cell for cell in store.read_sweep(task.folder.parents[1])[1]}
    if fate == "done" and task.id in cells:
      loss = loss_of(cells[task.id])
      result |= {"loss": loss, "loss_stderr": 0.004, "bits_per_byte": loss}
    for step in config.train.keep_steps if fate == "done" else ():
      (task.folder / "checkpoints" / str(step)).mkdir(parents=True)
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / "run.json").write_text(json.dumps(result))


def begin(config, workdir, monkeypatch, **fates):
  """Starts the sweep; returns what it said, which runs it trained, and its error, if any."""
  monkeypatch.setattr(
    placement, "compile_sizes", lambda c, w, cells, *_: {x.size: PLACEMENT for x in cells}
  )
  monkeypatch.setattr(placement, "choose_workers", lambda *_: False)
  monkeypatch.setattr(Pool, "fates", fates)
  for name in ("draw", "write"):
    monkeypatch.setattr(document, name, lambda *_, **__: None)
  said, pools = io.StringIO(), []
  monkeypatch.setitem(LAUNCHERS, "local", lambda *a: pools.append(Pool(*a)) or pools[-1])
  error = None
  try:
    sweeps.sweep(config, workdir, Display("", said), lambda: False)
  except (Exception, KeyboardInterrupt) as raised:
    error = raised
  assert len(pools) <= 1
  return said.getvalue(), pools[0].ran if pools else [], error
