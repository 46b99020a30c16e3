"""The functions of `train.step`, compiled for a config and laid out over its devices."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict, FrozenConfigDict

from model import sharding
from model.sharding import Layout
from train import optim, step
from train.objectives import registry
from train.objectives.losses import Batch
from train.step import Setup, TrainState

# The fields of config.optim that are compiled in. The learning rate is an argument of the step, so
# that one program serves every rate and schedule.
STATIC_OPTIM = ("name", "b1", "b2", "eps", "momentum", "weight_decay", "clip_norm")

# By backend. On a CPU the random draws take as long to compile as half a training step; at LLVM's
# first level half of that, with the same bits.
INIT_OPTIONS = {"cpu": {"xla_backend_optimization_level": 1}}

# Of the other programs. Before 0.11 jax's XLA finds no tiles for a Triton product of an odd number
# of rows, such as span's targets, and gives up.
OPTIONS: dict[str, dict] = (
  {"gpu": {"xla_gpu_enable_triton_gemm": False}} if jax.__version_info__ < (0, 11) else {}
)


class Program(NamedTuple):
  """The compiled functions of one setup."""

  setup: Setup
  state: TrainState  # shapes, types and shardings of the state
  init: Any  # seed -> TrainState
  init_from: Any  # the model's weights -> TrainState at step 0
  step: Any  # (state, batch, lr, seed of the dropout) -> (state, metrics); the state is donated
  pack_step: Any  # the same for W runs: arguments [W, ...] -> (states, W metrics)
  stack: Any  # W states -> states [W, ...]
  take: Any  # (states [W, ...], slot) -> TrainState
  gradients: Any  # (params, batch) -> gradients of trainable, summed over the batch, in its layout
  evaluate: Any  # (params, batch) -> {entry of the loss: (sum_B, weight_B)}
  place: Callable[[dict[str, np.ndarray]], Batch]  # this host's rows of a batch -> the batch


def program(
  config: ConfigDict, vocab_size: int, devices: Sequence[jax.Device] | None = None
) -> Program:
  """Makes the functions of a resolved config; equal setups share them within a process.

  `vocab_size` is the tokenizer's. `devices` may be absent from this machine
  (`scaling.targets.catalog`); None: all that it has.
  """
  return _program(
    Setup(
      FrozenConfigDict(config.model),
      FrozenConfigDict({name: config.optim[name] for name in STATIC_OPTIM}),
      tuple(config.train.trainable),  # a list, where the config comes from JSON
      FrozenConfigDict(config.sharding),
      registry.vocab_size(config, vocab_size),
      registry.OBJECTIVES[config.objective],
      FrozenConfigDict(registry.coefficients(config)),
      registry.lengths(config),
      registry.segments(config),
      registry.has_prefix(config),
      tuple(jax.devices() if devices is None else devices),
    )
  )


@lru_cache(maxsize=64)
def _program(setup: Setup) -> Program:
  layout, state = setup.layout, jax.eval_shape(partial(step.init, setup), 0)
  params, specs = layout.specs("params"), state_layout(setup, state, Layout.specs, P())
  shardings = state_layout(setup, state, Layout.shardings, layout.replicated)
  rows, init_options = P(sharding.BATCH), INIT_OPTIONS.get(layout.platform)
  train_step = on_devices(setup, step.train_step, (specs, rows, P(), P()), (specs, P()))
  gradients = on_devices(setup, _gradients, (params, rows), setup.trained.specs("gradients"))
  evaluated = on_devices(setup, step.evaluate, (params, rows), rows)
  jit = partial(jax.jit, compiler_options=OPTIONS.get(layout.platform))
  return Program(
    setup=setup,
    state=jax.tree.map(
      lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), state, shardings
    ),
    init=jax.jit(partial(step.init, setup), out_shardings=shardings, compiler_options=init_options),
    init_from=jax.jit(partial(step.init_from, setup), out_shardings=shardings),
    step=jit(train_step, out_shardings=(shardings, layout.replicated), donate_argnums=0),
    pack_step=jit(partial(pack_step, train_step), donate_argnums=0),
    stack=jax.jit(lambda *states: jax.tree.map(lambda *x: jnp.stack(x), *states)),
    take=jax.jit(
      lambda states, slot: jax.tree.map(lambda x: x[slot], states), out_shardings=shardings
    ),
    gradients=jit(gradients),
    evaluate=jit(evaluated, out_shardings=layout.replicated),
    place=layout.place,
  )


def pack_step(
  train_step: Callable, states: TrainState, batches: Batch, lr_W: Array, seed_W: Array
) -> tuple[TrainState, list[dict]]:
  """Updates the states of W runs, each by its batch."""
  states, metrics = jax.vmap(train_step)(states, batches, lr_W, seed_W)
  return states, [jax.tree.map(lambda x, w=w: x[w], metrics) for w in range(lr_W.size)]


def _gradients(setup: Setup, params: Any, batch: Batch) -> Any:
  return step.sum_gradients(setup, *setup.split(params), batch)[0]


def on_devices(setup: Setup, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
  """Maps a function of (setup, local arrays) over the devices, as one of (whole arrays)."""
  # By default accelerators round a product's float32 operands to fewer bits.
  exact = setup.layout.platform != "cpu" and setup.model.dtype == "float32"

  def local(*args):
    with jax.default_matmul_precision("float32" if exact else None):
      return function(setup, *args)

  local.__name__ = function.__name__  # that of the program, in profiles
  return jax.shard_map(
    local,
    mesh=setup.layout.mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    axis_names=set(sharding.BATCH),  # the tensor axis is the compiler's to handle
    check_vma=False,
  )


def state_layout(
  setup: Setup, state: TrainState, lies: Callable[[Layout, str], Any], scalar: Any
) -> TrainState:
  """Returns a tree like the state's: where each array lies, by the kind of tree that it is in."""
  optimizer = lies(setup.trained, "optimizer")
  by_path = traverse_util.flatten_dict(optimizer, sep="/")
  opt_state = jax.tree_util.tree_map_with_path(
    lambda path, _: by_path.get(optim.parameter_of(path), scalar), state.opt_state
  )
  master = optimizer if setup.mixed else ()
  return TrainState(scalar, *setup.split(lies(setup.layout, "params")), master, opt_state)
