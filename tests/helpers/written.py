"""A sweep whose runs are written and not trained: they end as a test says, on a known law."""

import io
import json

from ml_collections import ConfigDict
from synthetic import TRUTH

from scaling.launch.launchers import LAUNCHERS
from scaling.launch.queue import Failure, Queue
from scaling.laws import chinchilla
from scaling.progress import Display
from scaling.report import report
from scaling.sweep import placement, store
from scaling.sweep import run as sweeps
from train import record
from train.data import dataset

LAW = TRUTH._replace(A=80.0)  # of which tests' sizes hold the optimum, at their budgets
PLACEMENT = placement.Placement(1, 1)
KILLED = Failure("its worker died (signal 9)")


class Pool:
  """Ends runs as `fates` says, by a part of their folders; the others have the loss of a law."""

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
        fate = next((fate for part, fate in self.fates.items() if part in str(task.folder)), "done")
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
      cell = cells[task.id]
      loss = float(chinchilla.loss(LAW, cell.N, cell.D)) + abs(cell.seed - 1) * 1e-3
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
    monkeypatch.setattr(report, name, lambda *_, **__: None)
  said, pools = io.StringIO(), []
  monkeypatch.setitem(LAUNCHERS, "local", lambda *a: pools.append(Pool(*a)) or pools[-1])
  error = None
  try:
    sweeps.sweep(config, workdir, Display("", said), lambda: False)
  except (Exception, KeyboardInterrupt) as raised:
    error = raised
  assert len(pools) <= 1
  return said.getvalue(), pools[0].ran if pools else [], error
