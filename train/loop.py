"""One training run, from a config to a number. Reads from top to bottom."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import ladders
from train import checkpoint, data, files, optim, record
from train.record import Size
from train.step import Program, TrainState, program

PROGRESS_SECONDS = 0.5


class Interrupted(Exception):  # noqa: N818 -- not an error
  """The run was asked to stop; its state is saved and the same command goes on."""


def train(
  config: ConfigDict,
  workdir: str | Path,
  should_stop: Callable[[], bool] = lambda: False,
  report: Callable[[dict], None] = lambda event: None,
) -> dict:
  """Trains one model and returns its record, which is also `workdir/run.json`.

  Where it starts, the first that holds: a record that is done is returned as it is; the run's own
  newest sound checkpoint; the checkpoint of `train.branch_from` at the step where this run's cooldown
  begins; initialisation from the seed.

  Args:
    config: as `configs.base.get_config()`; width, depth and heads may be left to the ladder.
    workdir: the run's folder: run.json, metrics.jsonl, checkpoints/.
    should_stop: asked at every step; True saves the state and ends the run.
    report: receives the progress, at most every half second.

  Raises:
    ValueError: the config cannot be trained; nothing was spent.
    Interrupted: `should_stop` said so; the state is saved.
  """
  workdir = Path(workdir)
  # ---- Resolve and check, before any compute ----
  config = ladders.resolve(config)
  tokens = data.prepare(config)
  record.check(config, tokens)
  files.make_folder(workdir)
  with files.owned(workdir, wait_seconds=5.0):
    head = record.describe(config, tokens, jax.devices()[0].device_kind)
    done = files.read_json(workdir / "run.json")
    if done and done["status"] in ("done", "diverged"):
      record.refuse_other(done, head, workdir)
      return done
    folder = workdir / "checkpoints"
    with checkpoint.opened(folder, config.train.keep_steps) as checkpoints:
      return _train(config, tokens, workdir, checkpoints, head, should_stop, report)


def _train(
  config: ConfigDict,
  tokens: data.TokenData,
  workdir: Path,
  checkpoints: checkpoint.Checkpoints,
  head: dict,
  should_stop: Callable[[], bool],
  report: Callable[[dict], None],
) -> dict:
  began = time.perf_counter()
  size = record.size_of(config, tokens.vocab_size)
  base_lr = optim.base_learning_rate(config.optim, size.n_params)
  last_step = min(config.train.stop_at_step or size.steps, size.steps)

  # ---- Start: resume, branch, or from scratch ----
  functions = program(config, tokens.vocab_size)
  state = functions.init(np.uint32(config.seed))
  first_step, state = start(config, checkpoints, state, size)
  files.write_json(workdir / "run.json", head | {"status": "running"})
  rows = files.RowWriter(workdir / "metrics.jsonl", keep_until_step=first_step)

  # ---- Train: dispatch step t, then look at what was logged before it ----
  pending: list[tuple[int, list[dict]]] = []
  interval: list[dict] = []
  diverged = False
  saved_at = reported_at = time.perf_counter()
  step, seen_loss = first_step, math.nan
  compile_seconds = 0.0
  batches = data.train_batches(tokens, config, start_step=first_step)
  for step, batch in _until(last_step, first_step, batches):
    lr = optim.learning_rate(config.optim, base_lr, step, size.steps, size.tokens_per_step)
    if step == first_step:
      compiling = time.perf_counter()
    state, metrics = functions.step(state, batch, np.float32(lr))
    if step == first_step:
      compile_seconds = time.perf_counter() - compiling
    done_steps = step + 1
    interval.append(metrics)

    keep = done_steps in config.train.keep_steps
    if done_steps % config.train.log_every_steps == 0 or keep or done_steps == last_step:
      pending.append((done_steps, interval))
      interval = []
      while len(pending) > (0 if keep or done_steps == last_step else 1):
        seen_loss = _log(rows, config, size, base_lr, *pending.pop(0))
        diverged |= not math.isfinite(seen_loss)
    if diverged:
      break

    now = time.perf_counter()
    if now - reported_at > PROGRESS_SECONDS:
      report(_progress(done_steps, last_step, first_step, seen_loss, now - began))
      reported_at = now
    stop = should_stop() and done_steps < last_step
    if stop:
      while pending:
        _log(rows, config, size, base_lr, *pending.pop(0))
      if interval:
        _log(rows, config, size, base_lr, done_steps, interval)
    if keep or stop or now - saved_at > config.train.checkpoint_every_seconds:
      checkpoints.save(done_steps, state)
      saved_at = now
    if stop:
      rows.close()
      checkpoints.wait()
      raise Interrupted(f"stopped at step {done_steps} of {last_step}")
    every = config.train.eval_every_steps
    if every and done_steps % every == 0 and done_steps < last_step:
      rows.write({"step": done_steps, **evaluate(functions, state, tokens, config)})
  batches.close()

  # ---- Evaluate and record ----
  result: dict[str, Any] = {"status": "diverged" if diverged else "done"}
  if not diverged:
    result |= evaluate(functions, state, tokens, config)
    if not math.isfinite(result["loss"]):
      result = {"status": "diverged"}
    else:
      row = {"step": last_step, "tokens": last_step * size.tokens_per_step}
      rows.write(row | {"flops": row["tokens"] * size.flops_per_token, "eval_loss": result["loss"]})
    checkpoints.save(last_step, state)
    checkpoints.wait()
  rows.close()
  result |= {"first_step": first_step, "compile_seconds": round(compile_seconds, 3)}
  result["seconds"] = round(time.perf_counter() - began, 3)
  files.write_json(workdir / "run.json", head | result)
  return head | result


def start(
  config: ConfigDict, checkpoints: checkpoint.Checkpoints, state: TrainState, size: Size
) -> tuple[int, TrainState]:
  """Returns (steps done, state) to go on from: own checkpoint, branch, or the given state.

  Raises:
    ValueError: `train.branch_from` has no sound checkpoint at the branch step.
  """
  resumed = checkpoints.restore_latest(state)
  if resumed:
    return resumed
  if not config.train.branch_from:
    return 0, state
  folder = Path(config.train.branch_from)
  step = optim.cooldown_start(config.optim, size.steps)
  if not folder.is_dir():
    raise ValueError(f"train.branch_from={folder}: no such folder; name a run's checkpoints/")
  with checkpoint.opened(folder, read_only=True) as trunk:
    if step not in trunk.steps():
      raise ValueError(
        f"train.branch_from={folder}: this cooldown begins at step {step}, which is not kept there; "
        f"kept steps: {trunk.steps()}"
      )
    try:
      return step, trunk.restore(step, state)
    except checkpoint.DamagedCheckpointError as error:
      raise ValueError(f"train.branch_from={folder}: {error}; train the trunk again") from None


def evaluate(
  functions: Program, state: TrainState, tokens: data.TokenData, config: ConfigDict
) -> dict[str, float]:
  """Returns the validation loss on the fixed held-out tokens.

  Returns:
    loss [nats per token], its standard error (over sequences), bits_per_byte, eval_tokens.
  """
  nll, weight, n_bytes = [], [], 0
  for batch in data.validation_batches(tokens, config):
    nll_B, weight_B = functions.evaluate(state.params, batch)
    nll.append(nll_B)
    weight.append(weight_B)
    n_bytes += int(np.sum(tokens.token_bytes_V[batch["targets_BT"]] * batch["weights_BT"]))
  nll_S = np.concatenate([np.asarray(x, np.float64) for x in nll])
  weight_S = np.concatenate([np.asarray(x, np.float64) for x in weight])
  nll_S, weight_S = nll_S[weight_S > 0], weight_S[weight_S > 0]
  loss = nll_S.sum() / weight_S.sum()
  n = len(nll_S)
  variance = np.sum((nll_S - loss * weight_S) ** 2) * n / max(1, n - 1)
  return {
    "loss": float(loss),
    "loss_stderr": float(np.sqrt(variance) / weight_S.sum()),
    "bits_per_byte": float(nll_S.sum() / math.log(2) / max(1, n_bytes)),
    "eval_tokens": int(weight_S.sum()),
  }


def _until(last: int, first: int, batches: Iterator) -> Iterator[tuple[int, dict]]:
  """Yields (step, batch) for the steps from `first` to before `last`."""
  for step in range(first, last):
    yield step, next(batches)


def _log(
  rows: files.RowWriter,
  config: ConfigDict,
  size: Size,
  base_lr: float,
  step: int,
  interval: list[dict],
) -> float:
  """Writes the row of the interval that ends with `step`; returns its training loss."""
  fetched = jax.device_get(interval)
  loss = float(sum(m["loss_sum"] for m in fetched) / sum(m["weight"] for m in fetched))
  tokens = step * size.tokens_per_step
  rows.write(
    {
      "step": step,
      "tokens": tokens,
      "flops": tokens * size.flops_per_token,
      "lr": optim.learning_rate(config.optim, base_lr, step - 1, size.steps, size.tokens_per_step),
      "train_loss": loss,
      "grad_norm": float(fetched[-1]["grad_norm"]),
    }
  )
  return loss


def _progress(step: int, last: int, first: int, loss: float, seconds: float) -> dict:
  rate = (step - first) / max(seconds, 1e-9)
  return {"step": step, "steps": last, "loss": loss, "seconds_left": (last - step) / max(rate, 1e-9)}
