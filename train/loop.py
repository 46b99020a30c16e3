"""One training run, from a config to a number."""

import math
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import ladders
from configs.errors import ConfigError, RunError
from model import sharding
from train import aot, checkpoint, optim, record
from train.data import batches, dataset
from train.evaluate import evaluate, open_sets
from train.metrics import Metrics
from train.programs import program
from train.start import start
from train.step import TrainState
from train.system import distributed, files
from train.system.clock import Clock
from train.system.process import Interrupted

PROGRESS_SECONDS = 0.5

Inputs = tuple[Any, np.float32, np.uint32]  # of a step, beside the state: batch, lr, seed
StateOf = Callable[[], TrainState]  # a pack takes a run's state out of a stack, where it is needed


def train(
  config: ConfigDict,
  workdir: str | Path,
  should_stop: Callable[[], bool] = lambda: False,
  report: Callable[[dict], None] = lambda event: None,
) -> dict:
  """Trains one model and returns its record, which is also `workdir/run.json`.

  A record that is done is returned as it is; else the run starts where `train.start` says.

  Args:
    config: unresolved: width, depth and heads may be left to the ladder.
    workdir: the run's folder: run.json, metrics.jsonl, checkpoints/.
    should_stop: called at every step; True saves the state and ends the run (`Interrupted`).
    report: receives the progress, at most every half second.
  """
  with Run(config, workdir, should_stop, report) as run:
    if run.ended:
      return run.record
    state = run.start()
    with run.clock("train"):
      while run.going:
        state, metrics = run.program.step(state, *run.inputs())
        run.place_batch()  # of the next step, while this one runs
        run.after(metrics, lambda: state)  # noqa: B023 -- called at once
      return run.finish(lambda: state)


class Run:
  """One run. `train` drives it; `train.pack` drives several, with the same calls."""

  def __init__(self, config: ConfigDict, workdir: str | Path, should_stop, report, slots: int = 1):
    """Takes what `train` takes, and the number of slots in which runs are trained together."""
    self.config = config
    self.workdir = Path(workdir)
    self.clock = Clock()
    self.record: dict[str, Any] = {}
    self.ended = False  # whether it was done before, and `record` is final
    self._should_stop, self._report, self._slots = should_stop, report, slots
    self._running = False
    self._exits = ExitStack()

  def __enter__(self) -> Self:
    """Checks the run, before any compute, and takes its folder."""
    with self.clock("start"), ExitStack() as exits:
      # Each process of a run on many hosts writes its own records; the first one's are the run's.
      self._index, self._count = jax.process_index(), jax.process_count()
      self._folder = self.workdir / "processes" / str(self._index) if self._index else self.workdir
      begun = self._folder.is_dir()
      if not begun:  # a config that is refused leaves no new folder
        self._check()
        files.make_folder(self._folder)
      self._still_there = exits.enter_context(files.owned(self._folder, wait_seconds=5.0))
      if begun:  # it may have been in use
        self._check()
      stored = record.read(self.workdir)
      distributed.barrier("start")
      if stored and "N" in stored:  # a run that failed before it began has nothing yet
        record.check_same_run(stored, self.record, f"workdir={self.workdir}")
        done = stored["status"] == "done" and stored["steps"] == self.record["steps"]
        if done or stored["status"] == "diverged":
          self.record, self.ended = stored, True
      if not self.ended:
        folder = self.workdir / "checkpoints"
        before = (stored or {}).get("kept_steps", ())  # also by starts with other steps to keep
        kept = self.record["kept_steps"] = sorted({*self.config.train.keep_steps, *before})
        self._checkpoints = exits.enter_context(checkpoint.Checkpoints(folder, kept))
      self._exits = exits.pop_all()
    return self

  def _check(self) -> None:
    self.config = ladders.resolve(self.config)
    record.check_config(self.config)
    sharding.check_batches(self.config, len(jax.devices()), jax.local_device_count())
    self._tokens = tokens = dataset.prepare(self.config)
    record.check_run(self.config, tokens)
    batches.check_predictions(tokens, self.config)
    self._sets = open_sets(self.config, tokens)
    self.config, _ = aot.fit_to_devices(self.config, tokens.vocab_size, near=aot.NEAR)
    self.program = program(self.config, tokens.vocab_size)
    self._size = record.size_of(self.config, tokens.vocab_size)
    head = record.describe(self.config, tokens, jax.devices()[0].device_kind)
    head["data"]["evaluate"] = {name: x.tokens.fingerprint for name, x in self._sets.items()}
    head["data"]["evaluate_overlap"] = {name: x.tokens.overlap for name, x in self._sets.items()}
    self.record = head | {"devices": jax.device_count(), "pack": self._slots}
    self._last_step = self.record["steps"]

  def start(self) -> TrainState:
    """Chooses the state to go on from, and places the first batch."""
    with self.clock("start"):
      begun = start(self.config, self._checkpoints, self.program, self.record)
      self._first_step = begun.step
      if self._first_step > self._last_step:
        raise ConfigError(
          f"train.stop_at_step={self._last_step}: the run has come to step {self._first_step}"
        )
      if begun.parent:
        self.record["warm_start"] = begun.parent
      files.write_json(self._folder / "run.json", self.record | {"status": "running"})
      self._tokens.copy_tokenizer(self._folder)
      self._running = True
      self._done = self._placed = self._first_step
      path = self._folder / "metrics.jsonl"
      self._metrics = Metrics(path, self._first_step, self._last_step, self._columns)
      self._exits.callback(self._metrics.close)
      at = self._first_step, self._index, self._count
      self._batches = batches.train_batches(self._tokens, self.config, *at)
      self.place_batch()
      self._began = self._saved = self._reported = time.perf_counter()
    return begun.state

  @property
  def going(self) -> bool:
    """Whether there is a next step."""
    return self._done < self._last_step and not self._metrics.diverged

  def place_batch(self) -> None:
    """Makes the batch of the next step, if there is one; places it, but for a pack to stack."""
    if self._placed < self._last_step:
      self._placed += 1
      with self.clock("data"):
        rows = next(self._batches)
        self._batch = self.program.place(rows) if self._slots == 1 else rows

  def inputs(self) -> Inputs:
    """Returns what the next step takes."""
    return self._batch, np.float32(self._lr_of(self._done)), np.uint32(self.config.seed)

  def after(self, metrics: dict, state: StateOf) -> None:
    """Does what is due after a step: logs the interval before, evaluates, saves, stops.

    The step's metrics are still on the device; `state` gives the state after it.
    """
    self._done += 1
    done, options = self._done, self.config.train
    last, alone = done == self._last_step, self._count == 1
    self._metrics.add(metrics)
    if options.eval_every_steps and done % options.eval_every_steps == 0 and not last:
      self._log_evaluation(self._evaluate(state()))
    keep = done in options.keep_steps
    stop = alone and self._should_stop() and not last
    if not (done % options.log_every_steps == 0 or keep or stop or last):
      return
    self._metrics.end_interval(done)
    if self._metrics.diverged:
      return
    now = time.perf_counter()
    due = now - self._saved > options.checkpoint_every_seconds
    if not alone:
      stop = self._should_stop() and not last
      stop, due = distributed.any_process(stop, due and self._index == 0)
    if keep or stop or due:
      self._metrics.flush()
      self._save(state())
      self._saved = now
    if now - self._reported > PROGRESS_SECONDS and self._metrics.loss is not None:
      seconds_each = (now - self._began) / (done - self._first_step)
      left = {"seconds_left": seconds_each * (self._last_step - done)}
      self._report({"step": done, "steps": self._last_step, "loss": self._metrics.loss} | left)
      self._reported = now
    if stop:
      raise Interrupted(f"stopped at step {done} of {self._last_step}")

  def finish(self, state: StateOf) -> dict:
    """Evaluates, saves, and returns the record, which is also run.json."""
    self._metrics.flush()
    result: dict[str, Any] = {"status": "diverged"}
    if not self._metrics.diverged:
      final = state()
      evaluated = self._evaluate(final)
      if math.isfinite(evaluated["loss"]):
        result = {"status": "done", **evaluated}
        self._log_evaluation(evaluated)
        self._save(final)
        with self.clock("checkpoint"):
          self._checkpoints.wait()
    times = self.clock.times()
    result |= {"first_step": self._first_step, "seconds": round(sum(times.values()), 3)}
    self.record = files.with_digests(self.record | result | {"times": times})
    files.write_json(self._folder / "run.json", self.record)
    self._running = False
    return self.record

  def close(self, error: BaseException | None = None) -> None:
    """Leaves the folder; a run that fails has its error in run.json."""
    if isinstance(error, Exception) and not isinstance(error, Interrupted):
      if self._running:
        first_line = (str(error).splitlines() or [""])[0]
        failed = {"status": "failed", "error": f"{type(error).__name__}: {first_line}"}
        failed["traceback"] = "".join(traceback.format_exception(error))
        with suppress(OSError, RunError):  # the disk is full, or the folder was moved
          self._still_there()
          files.write_json(self._folder / "run.json", self.record | failed)
      distributed.end_if_one_of_several(error)
    try:
      self._exits.close()
    except Exception as closing:  # of a save, for which it waits
      distributed.end_if_one_of_several(closing)
      raise

  def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
    self.close(error)

  def _lr_of(self, step: int) -> float:
    base, size = self.record["lr"], self._size
    return optim.learning_rate(self.config.optim, base, step, size.steps, size.tokens_per_step)

  def _columns(self, step: int) -> dict:
    """Returns what a row of metrics.jsonl says beside what was measured."""
    tokens = step * self._size.tokens_per_step
    flops = tokens * self._size.flops_per_token
    return {"tokens": tokens, "flops": flops, "lr": self._lr_of(step - 1)}

  def _evaluate(self, state: TrainState) -> dict[str, Any]:
    with self.clock("evaluate"):
      result: dict[str, Any] = dict(evaluate(self.program, state, self._tokens, self.config))
      if self._sets:
        result["evaluations"] = {
          name: evaluate(self.program, state, x.tokens, self.config, x.evaluator)
          for name, x in self._sets.items()
        }
      return result

  def _log_evaluation(self, evaluated: dict[str, Any]) -> None:
    row = {"step": self._done, **self._columns(self._done), "eval_loss": evaluated["loss"]}
    if self._sets:
      row["evaluations"] = evaluated["evaluations"]
    self._metrics.write(row)

  def _save(self, state: TrainState) -> None:
    with self.clock("checkpoint"):
      self._still_there()
      self._checkpoints.save(self._done, state)
