"""Several runs of one compiled program, step by step together on one device.

They differ in seed, learning rate, length and where they start, and have what they would have
alone: folder, lock, records, checkpoints. A device that one small model leaves idle takes several
in hardly more time. Their numbers are those of the runs alone but for the order of the sums within
a product, which depends on the number of slots and on nothing else: not on who is in the others.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import ladders
from configs.errors import ConfigError, UsageError
from train import loop
from train.data import dataset
from train.data.batches import train_batches
from train.step import Program, TrainState, program
from train.system.clock import Clock


class Stack(NamedTuple):
  """The states of runs side by side, in a number of slots that stays."""

  runs: tuple[int, ...]  # whose state is in each slot; one that has ended is computed and not used
  state: TrainState  # leaves [W, ...]; of a single slot: as it is alone


def train(
  runs: Sequence[tuple[ConfigDict, Path]],
  should_stop: Callable[[], bool],
  report: Callable[[int, dict], None],
  ended: Callable[[int, dict | Exception], None],
  say: Callable[[str], None] = lambda text: None,
  slots: int = 0,
) -> None:
  """Trains runs together, each as `loop.train` would.

  Those for which the device has not enough memory go on from their checkpoints in half the slots,
  the first half of them before the second; what does not fit in a single slot has failed.

  Args:
    runs: config and folder of each; of one program (see `train.step.program`).
    should_stop: asked at every step; True saves all states and ends all runs.
    report: receives the number of a run and its progress.
    ended: receives the number of a run that has ended, and its record or what `loop.train` raises.
      The others go on.
    say: receives a line when memory does not suffice.
    slots: a power of two, not below the number of runs; 0: the smallest. A run that is interrupted
      has the same bits as one that is not if it goes on in as many.
  """
  slots = slots or width(len(runs))
  short = _together(runs, slots, should_stop, report, ended)
  half = slots // 2
  if short:
    say(f"out of memory with {slots} runs together ({runs[short[0]][1].name}): now {half}")
  for part in filter(None, (short[:half], short[half:])):
    train(
      [runs[i] for i in part],
      should_stop,
      _renumbered(report, part),
      _renumbered(ended, part),
      say,
      half,
    )


def _renumbered(tell: Callable[[int, Any], None], part: list[int]) -> Callable[[int, Any], None]:
  return lambda i, what: tell(part[i], what)


def _together(
  runs: Sequence[tuple[ConfigDict, Path]],
  slots: int,
  should_stop: Callable[[], bool],
  report: Callable[[int, dict], None],
  ended: Callable[[int, dict | Exception], None],
) -> list[int]:
  """Trains runs in so many slots; returns those for which memory did not suffice."""
  short: list[int] = []
  clocks = [Clock() for _ in runs]
  bodies = [
    loop.run(config, folder, clock, should_stop, partial(report, i), slots)
    for i, ((config, folder), clock) in enumerate(zip(runs, clocks, strict=True))
  ]

  def advance(i: int, phase: str, resume: Callable[[], Any]) -> Any:
    """Returns what a run asks for next; None: it has ended."""
    try:
      with clocks[i](phase):
        return resume()
    except StopIteration as end:
      ended(i, end.value)
    except Exception as error:
      if slots > 1 and exhausted(error):
        short.append(i)
      else:
        ended(i, error)
    return None

  def fail(members: Iterable[int], error: Exception) -> None:
    for i in members:
      advance(i, "start", partial(bodies[i].throw, error))

  def hand_over(i: int, stack: Stack) -> Any:
    return bodies[i].send(taken(functions, stack, i))

  # ---- Start ----
  begun = {i: advance(i, "start", partial(next, body)) for i, body in enumerate(bodies)}
  begun = {i: first for i, first in begun.items() if first}
  if not begun:
    return short
  functions = next(iter(begun.values()))[0]
  for i in [i for i, (own, _) in begun.items() if own is not functions]:
    error = UsageError(f"{runs[i][1]}: another program than the pack's; train it by itself")
    fail([i], error)
    del begun[i]
  if len(jax.devices()) > 1 and slots > 1:
    message = f"sweep.pack: a pack trains on 1 device, there are {len(jax.devices())}"
    fail(begun, ConfigError(message))
    return short
  try:
    stack = joined(functions, {i: state for i, (_, state) in begun.items()}, slots)
  except Exception as error:
    fail(begun, error)
    return sorted(short)
  answers: dict[int, Any] = dict.fromkeys(begun)
  del begun

  # ---- Train: collect what each run asks for, then a step for all ----
  while True:
    requests = {}
    for i, answer in answers.items():
      request = advance(i, "train", partial(bodies[i].send, answer))
      while request is loop.STATE:
        request = advance(i, "train", partial(hand_over, i, stack))
      if request:
        requests[i] = request
    if not requests:
      return sorted(short)
    shared = Clock()
    try:
      with shared("train"):
        stack, answers = stepped(functions, stack, requests)
    except Exception as error:
      fail(requests, error)
      return sorted(short)
    for i in requests:
      clocks[i].add(shared, 1 / len(requests))


def rate(config: ConfigDict, slots: int, seconds: float) -> float:
  """Returns the steps that so many runs together take in a second, measured for so long.

  Args:
    config: of any of them, unresolved.
    slots: how many, a power of two.
    seconds: for how long, compilation not counted; 0: one step of each run.
  """
  config = ladders.resolve(config)
  tokens = dataset.prepare(config)
  functions = program(config, tokens.vocab_size)
  with closing(train_batches(tokens, config)) as batches:
    seed, still = np.uint32(config.seed), np.float32(0)  # the weights stay; as much arithmetic
    states = {i: functions.init(seed) for i in range(slots)}
    stack, count = joined(functions, states, slots), 0
    del states
    while True:
      rows = [next(batches) for _ in range(slots)]
      placed = rows if slots > 1 else [functions.place(rows[0])]
      requests = {i: loop.Step(batch, still, seed) for i, batch in enumerate(placed)}
      stack, metrics = stepped(functions, stack, requests)
      jax.block_until_ready(metrics)
      if not count:
        began = time.perf_counter()
      elif (passed := time.perf_counter() - began) >= seconds:
        return count * slots / passed
      count += 1


def compile_ahead(config: ConfigDict, slots: int) -> None:
  """Compiles the step of so many runs into the cache on disk; trains nothing.

  Args:
    config: of any of them, unresolved.
    slots: how many, a power of two.
  """
  config = ladders.resolve(config)
  tokens = dataset.prepare(config)
  functions = program(config, tokens.vocab_size)
  with closing(train_batches(tokens, config)) as batches:
    batch = next(batches)
  lr, seed = np.float32(0), np.uint32(0)
  if slots == 1:
    functions.step.lower(functions.state, functions.place(batch), lr, seed).compile()
    return
  one = [functions.state] * slots
  states = jax.tree.map(
    lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
    jax.eval_shape(functions.stack, *one),
    functions.stack.lower(*one).compile().output_shardings,
  )
  batches_W = {name: np.stack([rows] * slots) for name, rows in batch.items()}
  functions.pack_step.lower(
    states, batches_W, *(np.stack([x] * slots) for x in (lr, seed))
  ).compile()


def width(count: int) -> int:
  """Returns the slots for so many runs: the smallest power of two that holds them."""
  return 1 << (count - 1).bit_length()


def exhausted(error: Exception) -> bool:
  """Returns whether the device had not enough memory."""
  return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def joined(functions: Program, states: Mapping[int, TrainState], slots: int) -> Stack:
  """Returns the stack of states, by run; empty slots repeat the first."""
  runs = (*states, *list(states)[:1] * (slots - len(states)))
  first = states[runs[0]]
  return Stack(runs, first if slots == 1 else functions.stack(*(states[i] for i in runs)))


def taken(functions: Program, stack: Stack, run: int) -> TrainState:
  """Returns the state of a run; of a single one, what its next step takes."""
  if len(stack.runs) == 1:
    return stack.state
  return functions.take(stack.state, np.int32(stack.runs.index(run)))


def stepped(
  functions: Program, stack: Stack, requests: Mapping[int, loop.Step]
) -> tuple[Stack, dict[int, dict]]:
  """Returns the stack after a step, and the metrics of the runs that asked for it."""
  spare = next(iter(requests.values()))
  batches, lrs, seeds = zip(*(requests.get(i, spare) for i in stack.runs), strict=True)
  if len(stack.runs) == 1:
    state, metrics = functions.step(stack.state, batches[0], lrs[0], seeds[0])
    return Stack(stack.runs, state), {stack.runs[0]: metrics}
  stacked = {name: np.stack([batch[name] for batch in batches]) for name in spare.batch}
  state, metrics = functions.pack_step(stack.state, stacked, np.stack(lrs), np.stack(seeds))
  return Stack(stack.runs, state), {i: metrics[stack.runs.index(i)] for i in requests}
