"""One training run, from a config to a number. Reads from top to bottom.

A run is a sequence of requests: for its next step, and for its own state where it saves, evaluates
or ends. Who drives it holds the state: `train` that of one run, `train.pack` those of several.
"""

import math
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import ladders
from configs.errors import ConfigError, UsageError
from model import sharding
from train import checkpoint, fitting, optim, record
from train.data import dataset
from train.data.batches import train_batches
from train.evaluate import evaluate
from train.metrics import Metrics
from train.step import Program, TrainState, program
from train.system import files, process
from train.system.clock import Clock
from train.system.process import Interrupted

PROGRESS_SECONDS = 0.5
STATE = "state"  # the request for the run's own state; the answer is of use until the next step


class Step(NamedTuple):
  """The request for the next step; it is answered with the step's metrics."""

  batch: Any  # placed; in a pack this host's rows, to be stacked with those of others
  lr: np.float32
  seed: np.uint32


# First it gives (its Program, the TrainState that it starts from), and in the end its record.
Run = Generator[Any, Any, dict]


def train(
  config: ConfigDict,
  workdir: str | Path,
  should_stop: Callable[[], bool] = lambda: False,
  report: Callable[[dict], None] = lambda event: None,
) -> dict:
  """Trains one model and returns its record, which is also `workdir/run.json`.

  Where it starts, the first that holds: a record that is done is returned as it is; the run's own
  newest sound checkpoint; the checkpoint of `train.branch_from` at the step where this run's
  cooldown begins; initialisation from the seed.

  Args:
    config: as `configs.base.get_config()`; width, depth and heads may be left to the ladder.
    workdir: the run's folder: run.json, metrics.jsonl, checkpoints/.
    should_stop: asked at every step; True saves the state and ends the run.
    report: receives the progress, at most every half second.

  Raises:
    UserError: the config cannot be trained; nothing was spent.
    Interrupted: `should_stop` said so; the state is saved.
  """
  clock = Clock()
  body = run(config, workdir, clock, should_stop, report)
  answer = None
  try:
    with clock("start"):
      functions, state = next(body)
    with clock("train"):
      while True:
        request = body.send(answer)
        if request is STATE:
          answer = state
          continue
        try:
          state, answer = functions.step(state, *request)
        except Exception as error:
          body.throw(error)
  except StopIteration as end:
    return end.value


def run(
  config: ConfigDict,
  workdir: str | Path,
  clock: Clock,
  should_stop: Callable[[], bool],
  report: Callable[[dict], None],
  pack: int = 1,
) -> Run:
  """Returns a run that is to be driven; see `train`, and `Run`.

  Args:
    config: as for `train`, as are those not named here.
    workdir: the run's folder.
    clock: the run's; what is not charged within the run is its driver's to charge.
    should_stop: asked at every step.
    report: receives the progress.
    pack: how many runs are driven together, for the record.
  """
  # ---- Resolve and check, before any compute ----
  workdir = Path(workdir)
  config = ladders.resolve(config)
  record.check_config(config)
  sharding.check(config, len(jax.devices()), jax.local_device_count())
  tokens = dataset.prepare(config)
  record.check(config, tokens)
  config, _ = fitting.fitting(config, tokens, near=fitting.NEAR)
  functions = program(config, tokens.vocab_size)
  head = record.describe(config, tokens, jax.devices()[0].device_kind) | {"pack": pack}
  # Each process of a run on many hosts writes its own records; the first one's are the run's.
  own = workdir if process.leads() else workdir / "processes" / str(jax.process_index())
  files.make_folder(own)
  with files.owned(own, wait_seconds=5.0):
    found = files.read_json(workdir / "run.json")
    process.meet("start")
    if found and "N" in found:  # a run that failed before it began has nothing yet
      record.refuse_other(found, head, f"workdir={workdir}")
      ended = found["status"] == "done" and found["steps"] == head["steps"]
      if ended or found["status"] == "diverged":
        return found
    folder = workdir / "checkpoints"
    with checkpoint.opened(folder, config.train.keep_steps) as checkpoints, process.together():
      return (
        yield from _steps(
          config, tokens, functions, own, checkpoints, head, clock, should_stop, report, pack
        )
      )


def _steps(
  config: ConfigDict,
  tokens: dataset.TokenData,
  functions: Program,
  workdir: Path,
  checkpoints: checkpoint.Checkpoints,
  head: dict,
  clock: Clock,
  should_stop: Callable[[], bool],
  report: Callable[[dict], None],
  pack: int,
) -> Run:
  began = saved = reported = time.perf_counter()
  size = record.size_of(config, tokens.vocab_size)
  peak_lr = head["lr"]

  def lr_of(step: int) -> float:
    return optim.learning_rate(config.optim, peak_lr, step, size.steps, size.tokens_per_step)

  def columns(step: int) -> dict:
    done = step * size.tokens_per_step
    return {"tokens": done, "flops": done * size.flops_per_token, "lr": lr_of(step - 1)}

  # ---- Start: resume, branch, or from scratch ----
  first_step, state = start(config, checkpoints, functions, head)
  last_step = head["steps"]
  if first_step > last_step:
    raise ConfigError(f"train.stop_at_step={last_step}: the run has come to step {first_step}")
  files.write_json(workdir / "run.json", head | {"status": "running"})
  metrics = Metrics(workdir / "metrics.jsonl", first_step, last_step, columns)
  yield functions, state
  del state  # its driver's

  # ---- Train: dispatch a step, place the next one's batch, look at what others returned ----
  alone = jax.process_count() == 1
  batches = train_batches(tokens, config, first_step, *process.place())

  def placed() -> Any:
    with clock("data"):
      return functions.place(next(batches)) if pack == 1 else next(batches)

  batch = placed()
  for done in range(first_step + 1, last_step + 1):
    lr, seed = np.float32(lr_of(done - 1)), np.uint32(config.seed)
    metrics.add((yield Step(batch, lr, seed)))
    if done < last_step:
      batch = placed()
    every = config.train.eval_every_steps
    if every and done % every == 0 and done < last_step:
      state = yield STATE
      with clock("evaluate"):
        loss = evaluate(functions, state, tokens, config)["loss"]
      del state
      metrics.write({"step": done, **columns(done), "eval_loss": loss})
    keep = done in config.train.keep_steps
    stop = alone and should_stop() and done < last_step
    if done % config.train.log_every_steps == 0 or keep or stop or done == last_step:
      metrics.end_interval(done)
      if metrics.diverged:
        break
      now = time.perf_counter()
      due = now - saved > config.train.checkpoint_every_seconds
      if not alone:
        stop, due = process.agreed(should_stop() and done < last_step, process.leads() and due)
      if keep or stop or due:
        metrics.flush()
        state = yield STATE
        with clock("checkpoint"):
          checkpoints.save(done, state)
        del state
        saved = now
      if now - reported > PROGRESS_SECONDS and metrics.loss is not None:
        left = (now - began) / (done - first_step) * (last_step - done)
        report({"step": done, "steps": last_step, "loss": metrics.loss, "seconds_left": left})
        reported = now
    if stop:
      metrics.close()
      checkpoints.wait()
      raise Interrupted(f"stopped at step {done} of {last_step}")
  batches.close()
  metrics.flush()

  # ---- Evaluate and record ----
  result: dict[str, Any] = {"status": "diverged"}
  if not metrics.diverged:
    state = yield STATE
    with clock("evaluate"):
      evaluated = evaluate(functions, state, tokens, config)
    if math.isfinite(evaluated["loss"]):
      result = {"status": "done", **evaluated}
      row = {"step": last_step, **columns(last_step), "eval_loss": evaluated["loss"]}
      metrics.write(row)
      with clock("checkpoint"):
        checkpoints.save(last_step, state)
        checkpoints.wait()
  metrics.close()
  times = clock.times()
  result |= {"first_step": first_step, "seconds": round(sum(times.values()), 3), "times": times}
  files.write_json(workdir / "run.json", head | result)
  return head | result


def start(
  config: ConfigDict, checkpoints: checkpoint.Checkpoints, functions: Program, head: dict
) -> tuple[int, TrainState]:
  """Returns (steps done, state) to go on from: own checkpoint, branch, or initialisation.

  Raises:
    UserError: `train.branch_from` is of another run, or has no sound checkpoint at the step where
      the cooldown begins.
  """
  resumed = checkpoints.restore_latest(functions.state)
  if resumed:
    return resumed
  if not config.train.branch_from:
    return 0, functions.init(np.uint32(config.seed))
  folder = Path(config.train.branch_from)
  where = f"train.branch_from={folder}"
  trunk_record = files.read_json(folder.parent / "run.json")
  if not folder.is_dir() or trunk_record is None:
    raise UsageError(f"{where}: not a run's checkpoints/; name that folder of the trunk")
  record.refuse_other(trunk_record, head, where, branch=True)
  step = optim.cooldown_start(config.optim, head["scheduled_steps"])
  stays = record.constant_until(trunk_record)
  if step > stays:
    raise UsageError(
      f"{where}: its learning rate stays as it is until step {stays}, and this cooldown begins at "
      f"step {step}; name a trunk with optim.schedule='constant'"
    )
  with checkpoint.opened(folder, read_only=True) as trunk:
    if step not in trunk.steps():
      raise UsageError(
        f"{where}: this cooldown begins at step {step}, which is not kept there; "
        f"kept steps: {trunk.steps()}"
      )
    try:
      return step, trunk.restore(step, functions.state)
    except checkpoint.DamagedCheckpointError as error:
      raise UsageError(f"{where}: {error}; train the trunk again") from None
