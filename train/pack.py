"""Several runs of one compiled program, step by step together on one device.

They differ in seed, learning rate, length and where they start, and have what they would have
alone: folder, lock, records, checkpoints. A device that one small model leaves idle takes several
in hardly more time. Their numbers are those of the runs alone but for the order of the sums within
a product.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from train import loop
from train.clock import Clock
from train.step import Program, TrainState


class Stack(NamedTuple):
  """The states of runs side by side: a power of two of them, so that few widths are compiled."""

  runs: tuple[int, ...]  # whose state is in each slot; one that has ended is computed and not used
  state: TrainState  # leaves [W, ...]; of a single run: as it is alone


def train(
  runs: Sequence[tuple[ConfigDict, Path]],
  should_stop: Callable[[], bool],
  report: Callable[[int, dict], None],
  ended: Callable[[int, dict | Exception], None],
) -> None:
  """Trains runs together, each as `loop.train` would.

  Args:
    runs: config and folder of each; of one program (see `train.step.program`).
    should_stop: asked at every step; True saves all states and ends all runs.
    report: receives the number of a run and its progress.
    ended: receives the number of a run that has ended, and its record or what `loop.train` raises.
      The others go on.
  """
  clocks = [Clock() for _ in runs]
  bodies = [
    loop.run(config, folder, clock, should_stop, partial(report, i), width(len(runs)))
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
      ended(i, error)
    return None

  def hand_over(i: int, stack: Stack) -> Any:
    return bodies[i].send(taken(functions, stack, i))

  # ---- Start ----
  begun = {i: advance(i, "start", partial(next, body)) for i, body in enumerate(bodies)}
  begun = {i: first for i, first in begun.items() if first}
  if not begun:
    return
  functions = next(iter(begun.values()))[0]
  for i in [i for i, (own, _) in begun.items() if own is not functions]:
    error = ValueError(f"{runs[i][1]}: another program than the pack's; train it by itself")
    advance(i, "start", partial(bodies[i].throw, error))
    del begun[i]
  if len(jax.devices()) > 1 and len(begun) > 1:
    error = ValueError(f"sweep.pack: a pack trains on 1 device, there are {len(jax.devices())}")
    for i in begun:
      advance(i, "start", partial(bodies[i].throw, error))
    return
  stack = joined(functions, {i: state for i, (_, state) in begun.items()})
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
      return
    shared = Clock()
    try:
      with shared("train"):
        if width(len(requests)) < len(stack.runs):
          stack = narrowed(functions, stack, tuple(requests))
        stack, answers = stepped(functions, stack, requests)
    except Exception as error:
      for i in requests:
        advance(i, "train", partial(bodies[i].throw, error))
      return
    for i in requests:
      clocks[i].add(shared, 1 / len(requests))


def width(count: int) -> int:
  """Returns the slots for so many runs: the smallest power of two that holds them."""
  return 1 << (count - 1).bit_length()


def joined(functions: Program, states: Mapping[int, TrainState]) -> Stack:
  """Returns the stack of states, by run; empty slots repeat the first."""
  runs = _filled(tuple(states))
  first = states[runs[0]]
  return Stack(runs, first if len(runs) == 1 else functions.stack(*(states[i] for i in runs)))


def narrowed(functions: Program, stack: Stack, alive: tuple[int, ...]) -> Stack:
  """Returns the stack of those alone that are alive, of two and more."""
  runs = _filled(alive)
  if len(runs) == 1:
    return Stack(runs, taken(functions, stack, runs[0]))
  slots = np.array([stack.runs.index(i) for i in runs], np.int32)
  return Stack(runs, functions.choose(stack.state, slots))


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
    state, metrics = functions.step(stack.state, functions.place(batches[0]), lrs[0], seeds[0])
    return Stack(stack.runs, state), {stack.runs[0]: metrics}
  stacked = {name: np.stack([batch[name] for batch in batches]) for name in spare.batch}
  state, metrics = functions.together(stack.state, stacked, np.stack(lrs), np.stack(seeds))
  return Stack(stack.runs, state), {i: metrics[stack.runs.index(i)] for i in requests}


def _filled(runs: tuple[int, ...]) -> tuple[int, ...]:
  return runs + runs[:1] * (width(len(runs)) - len(runs))
