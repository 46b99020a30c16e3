"""Turns of a training step and of a matrix product, taken one after the other."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from model import ops
from scaling.formats import duration
from scaling.progress import Display
from train import aot, record
from train.data import dataset
from train.data.batches import check_tokens, train_batches
from train.objectives import registry
from train.programs import program

TURN_SECONDS, TURN_STEPS = 0.25, (2, 8)  # how long a turn is, and its fewest and most steps

Result = TypeVar("Result")


class Turn(NamedTuple):
  """What a step took in one turn [s]."""

  step: float
  dispatch: float  # the host's, until the call returned; median of the turn's steps
  input: float  # the host's, to make and place a batch; median of the turn's steps


def training(
  config: ConfigDict, tokens: dataset.TokenData, steps: int = 0
) -> tuple[Callable[[], Turn], dict[str, Any]]:
  """Compiles a resolved config's step, in microbatches that fit the device.

  Returns what takes a turn, of so many steps (0: as many as take `TURN_SECONDS`), and the case's
  shape, size, FLOPs, compile time and memory.
  """
  check_tokens(config, tokens)
  program(config, tokens.vocab_size)  # and the imports of the first batch: not the compiler's time
  train_batches(tokens, config).close()
  began = time.perf_counter()
  config, needs = aot.fit_to_devices(config, tokens.vocab_size)
  compile_seconds = time.perf_counter() - began
  assert needs is not None
  functions = program(config, tokens.vocab_size)
  batches = train_batches(tokens, config, 0, jax.process_index(), jax.process_count())
  state = functions.init(np.uint32(config.seed))
  seed, lr = np.uint32(config.seed), np.float32(0)  # the weights stay, the arithmetic is the same

  def take(steps: int) -> Turn:
    nonlocal state
    dispatches, inputs = [], []
    began = now = time.perf_counter()
    for _ in range(steps):
      batch = functions.place(next(batches))
      placed = time.perf_counter()
      state, metrics = functions.step(state, batch, lr, seed)
      inputs.append(placed - now)
      now = time.perf_counter()
      dispatches.append(now - placed)
    jax.block_until_ready((state, metrics))
    seconds = (time.perf_counter() - began) / steps
    return Turn(seconds, median(dispatches), median(inputs))

  jax.block_until_ready(state)
  take(1)
  fewest, most = TURN_STEPS
  steps = steps or min(most, max(fewest, round(TURN_SECONDS / take(fewest).step)))
  m, lengths = config.model, registry.lengths(config)
  size = record.size_of(config, tokens.vocab_size)
  return lambda: take(steps), {
    "objective": config.objective,
    **{name: m[name] for name in ("family", "width", "depth", "heads", "dtype", "weights")},
    "vocab_size": registry.vocab_size(config, tokens.vocab_size),
    "source_len": lengths.source,
    "target_len": lengths.target,
    "batch_size": config.data.batch_size,
    "microbatches": config.sharding.microbatches,
    "strategy": config.sharding.strategy,
    "N": size.n_params,
    "params": size.groups["total"],
    "tokens_per_step": size.tokens_per_step,
    "flops_per_step": size.flops,
    "steps_per_turn": steps,
    "compile_seconds": compile_seconds,
    "compiled_bytes": needs.compiled,
    "config_diff": record.diff(config),
  }


def product(side: int, dtype: str) -> Callable[[], float]:
  """Compiles a square product on each device; returns what takes a turn, for its rate [FLOP/s].

  A turn is about as long as one of training: a processor can be faster for milliseconds than in any
  step. The rate is that of all devices together.
  """
  devices = len(jax.devices())
  mesh = jax.make_mesh((devices,), ("device",), axis_types=(AxisType.Auto,))
  rng = np.random.default_rng(0)

  def operand(rows: int, spec: P) -> jax.Array:
    x = rng.standard_normal((rows, side), np.float32)
    return jax.device_put(x.astype(dtype), NamedSharding(mesh, spec))

  x_ND, w_DF = operand(devices * side, P("device")), operand(side, P())
  multiply = jax.jit(lambda x_ND, w_DF: ops.matmul(x_ND, w_DF, np.dtype(dtype)))
  jax.block_until_ready(multiply(x_ND, w_DF))

  def take(repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
      y_NF = multiply(x_ND, w_DF)  # of which one is held at a time
    y_NF.block_until_ready()
    return (time.perf_counter() - began) / repeats

  repeats = max(2, round(TURN_SECONDS / take(2)))
  return lambda: devices * 2 * side**3 / take(repeats)


def round_robin(
  turns: Mapping[str, Callable[[], Result]], rounds: int, display: Display | None = None
) -> dict[str, list[Result]]:
  """Has each take one turn in every round, in their order; returns the results of each."""
  results: dict[str, list[Result]] = {name: [] for name in turns}
  began, total = time.monotonic(), rounds * len(turns)
  for i, (_, name) in enumerate(itertools.product(range(rounds), turns), start=1):
    results[name].append(turns[name]())
    if display:
      left = duration((time.monotonic() - began) / i * (total - i))
      display.show(f"{i}/{total}, {name}; {left} left")
  return results


def ratio(turns: Iterable[Turn], baseline: Iterable[Turn]) -> float:
  """Returns the median ratio of step times over paired turns."""
  return median(a.step / b.step for a, b in zip(turns, baseline, strict=True))
