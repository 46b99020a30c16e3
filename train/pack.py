"""Several runs of one compiled program, step by step together on one device.

They differ in seed, learning rate, length and where they start, and have what they would have
alone: folder, lock, records, checkpoints. A device that one small model leaves idle takes several
in hardly more time. Their numbers are those of the runs alone but for the order of the sums within
a product, which depends on the number of slots and on nothing else: not on the runs in the others.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import ladders
from configs.errors import ConfigError, UsageError
from train.data import dataset
from train.data.batches import train_batches
from train.loop import Inputs, Run
from train.programs import Program, program
from train.step import TrainState
from train.system.clock import Clock


class Slots:
  """The states of runs side by side, in a number of slots that stays."""

  def __init__(self, functions: Program, states: Mapping[int, TrainState], slots: int):
    """Puts states, by run, into slots; those that are left over repeat the first."""
    self.runs = (*states, *list(states)[:1] * (slots - len(states)))
    self._functions = functions
    first = states[self.runs[0]]  # a single slot holds its state as it is alone
    self._state = first if slots == 1 else functions.stack(*(states[run] for run in self.runs))

  def take(self, run: int) -> TrainState:
    """Returns the state of a run; of a single slot, the one that its next step donates."""
    if len(self.runs) == 1:
      return self._state
    return self._functions.take(self._state, np.int32(self.runs.index(run)))

  def step(self, inputs: Mapping[int, Inputs]) -> dict[int, dict]:
    """Updates the states; returns the metrics of each run that has inputs.

    The slots of other runs are computed too, on the inputs of the first, and not used.
    """
    spare = next(iter(inputs.values()))
    batches, lrs, seeds = zip(*(inputs.get(run, spare) for run in self.runs), strict=True)
    if len(self.runs) == 1:
      self._state, metrics = self._functions.step(self._state, batches[0], lrs[0], seeds[0])
      return {self.runs[0]: metrics}
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    self._state, metrics = self._functions.pack_step(
      self._state, stacked, np.stack(lrs), np.stack(seeds)
    )
    return {run: metrics[self.runs.index(run)] for run in inputs}


def train(
  runs: Sequence[tuple[ConfigDict, Path]],
  should_stop: Callable[[], bool],
  report: Callable[[int, dict], None],
  ended: Callable[[int, dict | Exception], None],
  say: Callable[[str], None] = lambda text: None,
  slots: int = 0,
) -> None:
  """Trains runs of one program together, each as `loop.train` would.

  Those for which the device has not enough memory go on from their checkpoints in half the slots,
  the first half of them before the second; what does not fit in a single slot has failed.

  Args:
    runs: config and folder of each.
    should_stop: called at every step; True saves all states and ends all runs.
    report: receives the number of a run and its progress.
    ended: receives the number of a run that has ended, and its record or what `loop.train` raises.
    say: receives a line when memory does not suffice.
    slots: a power of two, not below the number of runs; 0: the smallest. An interrupted run has the
      bits of one that is not, if it goes on in as many.
  """
  pending = [(list(range(len(runs))), slots or width(len(runs)))]
  while pending:
    members, slots = pending.pop(0)
    pack = PackedRuns(slots, ended)
    pack.train({i: runs[i] for i in members}, should_stop, report)
    if too_large := sorted(pack.too_large):
      half, first = slots // 2, runs[too_large[0]][1].name
      say(f"out of memory with {slots} runs together ({first}): now {half}")
      pending[:0] = [(part, half) for part in (too_large[:half], too_large[half:]) if part]


class PackedRuns:
  """Runs that are trained in so many slots, each until it ends."""

  def __init__(self, slots: int, ended: Callable[[int, dict | Exception], None]):
    self.too_large: list[int] = []  # the runs for which memory did not suffice
    self._slots, self._ended = slots, ended
    self._runs: dict[int, Run] = {}  # those that have not ended

  def train(
    self,
    runs: Mapping[int, tuple[ConfigDict, Path]],
    should_stop: Callable[[], bool],
    report: Callable[[int, dict], None],
  ) -> None:
    """Trains runs, by number."""
    states: dict[int, TrainState] = {}
    for i, (config, folder) in runs.items():
      run = self._runs[i] = Run(config, folder, should_stop, partial(report, i), self._slots)
      with self._guard([i], run.clock("start")):
        run.__enter__()
        if not run.ended:
          self._check(run)
          states[i] = run.start()
      if run.ended:
        self._end(i, run.record)
    if not states:
      return
    with self._guard([*states], nullcontext()):
      stack = Slots(self._program, states, self._slots)
    del states  # a second copy
    for i in [*self._runs]:
      self._finish_if_over(i, stack)
    while self._runs:
      inputs = {i: run.inputs() for i, run in self._runs.items()}
      clock = Clock()
      with self._guard([*inputs], clock("train")):
        metrics = stack.step(inputs)
      for i, run in [*self._runs.items()]:
        run.clock.add(clock, 1 / len(inputs))
        with self._guard([i], run.clock("train")):
          run.place_batch()  # while the step runs
          run.after(metrics[i], partial(stack.take, i))
        self._finish_if_over(i, stack)

  @property
  def _program(self) -> Program:
    return next(iter(self._runs.values())).program

  def _check(self, run: Run) -> None:
    if len(jax.devices()) > 1 and self._slots > 1:
      raise ConfigError(f"sweep.pack: a pack trains on 1 device, there are {len(jax.devices())}")
    if run.program is not self._program:
      raise UsageError(f"{run.workdir}: another program than the pack's; train it by itself")

  def _finish_if_over(self, i: int, stack: Slots) -> None:
    record = None
    if i in self._runs and not self._runs[i].going:
      with self._guard([i], self._runs[i].clock("train")):
        record = self._runs[i].finish(partial(stack.take, i))
    if record:
      self._end(i, record)

  @contextmanager
  def _guard(self, members: Sequence[int], clock: AbstractContextManager) -> Iterator[None]:
    """Ends these runs where the block raises an error; charges the block's time to a clock."""
    try:
      with clock:
        yield
    except Exception as error:
      for i in members:
        self._end(i, error)

  def _end(self, i: int, outcome: dict | Exception) -> None:
    error = outcome if isinstance(outcome, Exception) else None
    try:
      self._runs.pop(i).close(error)
    except Exception as closing:
      error = outcome = closing
    if error and self._slots > 1 and exhausted(error):
      self.too_large.append(i)
    else:
      self._ended(i, outcome)


def rate(
  config: ConfigDict, slots: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> float:
  """Measures the steps that `slots` runs of an unresolved config together take in a second.

  `seconds` says for how long by the clock, compilation not counted; 0: one step of each run.
  """
  config = ladders.resolve(config)
  tokens = dataset.prepare(config)
  functions = program(config, tokens.vocab_size)
  batches = train_batches(tokens, config)
  seed, no_lr = np.uint32(config.seed), np.float32(0)  # the weights stay; as much arithmetic
  stack = Slots(functions, {i: functions.init(seed) for i in range(slots)}, slots)
  for count in itertools.count():
    rows = [next(batches) for _ in range(slots)]
    placed = rows if slots > 1 else [functions.place(rows[0])]
    jax.block_until_ready(stack.step({i: (batch, no_lr, seed) for i, batch in enumerate(placed)}))
    if not count:
      began = clock()
    elif (passed := clock() - began) >= seconds:
      return count * slots / passed
  raise AssertionError


def width(count: int) -> int:
  """Returns the slots for so many runs: the smallest power of two that holds them."""
  return 1 << (count - 1).bit_length()


def exhausted(error: Exception) -> bool:
  """Returns whether the device had not enough memory."""
  return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
