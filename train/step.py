"""The pure functions that are compiled: initialise, train one step, evaluate one batch."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from ml_collections import ConfigDict, FrozenConfigDict

from model import sharding, transformer
from train import optim
from train.objectives import losses, registry
from train.objectives.losses import Batch
from train.objectives.registry import Lengths


class TrainState(NamedTuple):
  """All that a step changes."""

  step: jax.Array  # updates done, int32 scalar
  params: Any  # nested dicts of the model's weights, in `model.weights`
  master: Any  # the same in float32, which the optimizer updates; (): `params` are float32
  opt_state: Any  # optax state, float32


class Program(NamedTuple):
  """Compiled functions of one model shape, objective, optimizer and layout."""

  state: TrainState  # shapes and types of the state, and where it lies
  init: Any  # seed -> TrainState
  step: Any  # (state, batch, lr, seed of the dropout) -> (state, metrics); the state is donated
  together: Any  # the step of W runs: its arguments all [W, ...] -> (states, W metrics)
  stack: Any  # W states, one after the other -> states [W, ...]
  take: Any  # (states [W, ...], slot) -> TrainState
  gradients: Any  # (params, batch) -> their gradients, summed over the batch, as they are laid out
  evaluate: Any  # (params, batch) -> (nll_B, weight_B)
  place: Callable[[dict[str, np.ndarray]], Batch]  # this host's rows of a batch -> the batch
  batch: jax.sharding.NamedSharding  # where a batch lies


# The fields of config.optim that are compiled in. The learning rate and the schedule are not: the
# rate is an argument of the step.
STATIC = ("b1", "b2", "eps", "weight_decay", "clip_norm", "z_loss")

# By backend. On a CPU the random draws take as long to compile as half a training step; at LLVM's
# first level half of that, with the same bits.
INIT_OPTIONS = {"cpu": {"xla_backend_optimization_level": 1}}

# Of the other programs. Before 0.11 jax's XLA finds no tiles for a Triton product of an odd number
# of rows, such as span's targets, and gives up.
OPTIONS: dict[str, dict] = (
  {"gpu": {"xla_gpu_enable_triton_gemm": False}} if jax.__version_info__ < (0, 11) else {}
)


def program(
  config: ConfigDict, vocab_size: int, devices: Sequence[jax.Device] | None = None
) -> Program:
  """Returns the functions for a resolved config; equal shapes share them within a process.

  Args:
    config: the run's.
    vocab_size: V of the tokenizer.
    devices: what they are made for, also such as this machine has not (`scaling.targets.catalog`);
      None: all of this machine's.

  Raises:
    UserError: the devices do not divide as `config.sharding` asks.
  """
  return _program(
    FrozenConfigDict(config.model),
    FrozenConfigDict({name: config.optim[name] for name in STATIC}),
    FrozenConfigDict(config.sharding),
    registry.vocab_size(config, vocab_size),
    registry.lengths(config),
    registry.segments(config),
    tuple(jax.devices() if devices is None else devices),
  )


@lru_cache(maxsize=64)
def _program(
  model_config: FrozenConfigDict,
  optim_config: FrozenConfigDict,
  sharding_config: FrozenConfigDict,
  vocab_size: int,
  lengths: Lengths,
  segments: str,
  devices: tuple[jax.Device, ...],
) -> Program:
  optimizer = optim.optimizer(optim_config, optim.matrix_rate(model_config))
  z_loss, microbatches = optim_config.z_loss, sharding_config.microbatches
  weights_dtype = jnp.dtype(model_config.weights)
  mixed = weights_dtype != jnp.float32

  def build(seed, gather=None):
    rngs = nnx.Rngs(jax.random.key(seed))
    return transformer.build(model_config, vocab_size, lengths.target, rngs, lengths.source, gather)

  def init(seed: jax.Array) -> TrainState:
    params = nnx.to_pure_dict(nnx.state(build(seed)))
    opt_state = optimizer.init(params)
    return TrainState(
      jnp.zeros((), jnp.int32), cast(params, weights_dtype), params if mixed else (), opt_state
    )

  abstract = jax.eval_shape(init, 0)
  mesh = sharding.mesh(sharding_config, devices)
  layout = sharding.layout(sharding_config, abstract.params, mesh)
  graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(0, layout.gather())))

  def of_state(param_trees: Callable[[str], Any], other: Any) -> TrainState:
    """Returns a tree like the state's: what `param_trees` says, and `other` where it is scalar."""
    opt_state = optax.tree_utils.tree_map_params(
      optimizer,
      lambda _, spec: spec,
      abstract.opt_state,
      param_trees("optimizer"),
      transform_non_params=lambda _: other,
    )
    master = param_trees("optimizer") if mixed else ()
    return TrainState(other, param_trees("params"), master, opt_state)

  # ---- On each device, on what it holds ----

  def loss_sum(params, batch: Batch, keys_B: jax.Array | None) -> tuple[jax.Array, tuple]:
    """Returns what is minimised, and the (sum, weight) of the loss alone."""
    model = nnx.merge(graphdef, layout.gather_rest(params))
    nll_BT, log_z_BT = losses.token_losses(model, batch, segments, keys_B)
    loss, weight = losses.sums(nll_BT, batch["weights_BT"])
    if z_loss:
      loss_z, _ = losses.sums(jnp.square(log_z_BT), batch["weights_BT"])
      return loss + z_loss * loss_z, (loss, weight)
    return loss, (loss, weight)

  def gradients(params, batch: Batch, keys_B: jax.Array | None = None) -> tuple[Any, tuple]:
    """Returns the sums over the whole batch of gradients (as laid out) and of (loss, weight).

    Gradients have the weights' dtype, as a device sends them; over microbatches they are summed in
    float32.
    """

    def one(part):
      (_, sums), grads = jax.value_and_grad(loss_sum, has_aux=True)(params, *part)
      return (layout.reduce(grads) if layout.reduces_early else grads), sums

    if microbatches == 1:
      grads, sums = one((batch, keys_B))
    else:
      parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), (batch, keys_B))
      zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.float32),
        jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts)),
      )
      # XLA's TPU compiler fails where it would sum bfloat16 shards before it scatters them.
      apart = jax.lax.optimization_barrier if mixed and layout.platform == "tpu" else lambda x: x
      grads, sums = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, apart(one(part))), None), zero, parts
      )[0]
    grads = grads if layout.reduces_early else layout.reduce(grads)
    return layout.total(grads, "replica"), layout.total(sums, *sharding.BATCH)

  def step(
    state: TrainState, batch: Batch, lr: jax.Array, seed: jax.Array
  ) -> tuple[TrainState, dict]:
    keys_B = None
    if model_config.dropout:
      rows = batch["inputs_BT"].shape[0]
      row_B = jax.lax.axis_index(sharding.BATCH) * rows + jnp.arange(rows)
      key = jax.random.fold_in(jax.random.key(seed), state.step)
      keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(row_B)
    grads, (loss, weight) = gradients(state.params, batch, keys_B)
    grads = cast(layout.own(grads, "gradients"), jnp.float32)
    weight_or_1 = jnp.maximum(weight, 1.0)  # a batch may have nothing to predict
    grads = jax.tree.map(lambda g: g / weight_or_1, grads)
    norm = jnp.sqrt(layout.square_sum(grads))
    if optim_config.clip_norm:
      grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, optim_config.clip_norm / norm), grads)
    weights = state.master if mixed else layout.own(state.params, "params")
    direction, opt_state = optimizer.update(grads, state.opt_state, weights)
    weights = jax.tree.map(lambda w, d: w - lr * d, weights, direction)
    params = layout.publish(cast(weights, weights_dtype))
    metrics = {"loss_sum": loss, "weight": weight, "grad_norm": norm}
    return TrainState(state.step + 1, params, weights if mixed else (), opt_state), metrics

  def evaluate(params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(graphdef, layout.gather_rest(params))
    nll_BT, _ = losses.token_losses(model, batch, segments)
    weights_BT = batch["weights_BT"]
    return jnp.sum(nll_BT * weights_BT, axis=1), jnp.sum(weights_BT, axis=1)

  # ---- On all of them ----

  specs, shardings = of_state(layout.specs, P()), of_state(layout.shardings, layout.replicated)

  options = OPTIONS.get(layout.platform)
  exact = layout.platform != "cpu" and model_config.dtype == "float32"

  def on_all(function, in_specs, out_specs):
    def exactly(*args):
      # By default accelerators round a product's float32 operands to fewer bits.
      with jax.default_matmul_precision("float32" if exact else None):
        return function(*args)

    return jax.shard_map(
      exactly,
      mesh=layout.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      axis_names=set(sharding.BATCH),  # the tensor axis is the compiler's to handle
      check_vma=False,
    )

  rows, grad_specs = P(sharding.BATCH), layout.specs("gradients")
  on_batch = on_all(step, (specs, rows, P(), P()), (specs, P()))

  def together(states: TrainState, batches: Batch, lr_W: jax.Array, seed_W: jax.Array):
    states, metrics = jax.vmap(on_batch)(states, batches, lr_W, seed_W)
    return states, [jax.tree.map(lambda x, w=w: x[w], metrics) for w in range(lr_W.size)]

  return Program(
    jax.tree.map(
      lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), abstract, shardings
    ),
    jax.jit(init, out_shardings=shardings, compiler_options=INIT_OPTIONS.get(layout.platform)),
    jax.jit(
      on_batch,
      out_shardings=(shardings, layout.replicated),
      donate_argnums=0,
      compiler_options=options,
    ),
    jax.jit(together, donate_argnums=0, compiler_options=options),
    jax.jit(lambda *states: jax.tree.map(lambda *x: jnp.stack(x), *states)),
    jax.jit(lambda states, slot: jax.tree.map(lambda x: x[slot], states), out_shardings=shardings),
    jax.jit(
      on_all(lambda params, batch: gradients(params, batch)[0], (specs.params, rows), grad_specs),
      compiler_options=options,
    ),
    jax.jit(
      on_all(evaluate, (specs.params, rows), rows),
      out_shardings=layout.replicated,
      compiler_options=options,
    ),
    layout.place,
    layout.batch,
  )


def cast(tree: Any, dtype: DTypeLike) -> Any:
  """Returns a tree's arrays in another dtype."""
  return jax.tree.map(lambda x: x.astype(dtype), tree)
