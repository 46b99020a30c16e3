"""What is computed: the initial state, one training step, the losses of one batch.

`train_step` and `evaluate` run on each device, on its rows of the batch and its shards of the
state. What is static in them is a `Setup`; `train.programs` compiles them for a config.
"""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx, traverse_util
from jax import Array
from jax.typing import DTypeLike
from ml_collections import FrozenConfigDict

from model import sharding
from model.sharding import Layout
from model.transformer import Transformer
from train import optim
from train.objectives import losses
from train.objectives.losses import LOSS, Batch, Sums
from train.objectives.objective import Lengths, Objective


class TrainState(NamedTuple):
  """All that a step changes."""

  step: Array  # updates done, int32 scalar
  trainable: Any  # nested dicts of weights, in `model.weights`
  frozen: Any  # likewise, those that no step changes
  master: Any  # trainable in float32, which the optimizer updates; (): they are float32
  opt_state: Any  # optax state of trainable, float32


def all_params(state: TrainState) -> Any:
  """Returns the model's weights, trainable and frozen, as the nested dicts that it takes."""
  return merge(state.trainable, state.frozen)


def merge(*trees: Any) -> Any:
  """Merges nested dicts that share no leaf."""
  flat: dict[str, Any] = {}
  for tree in trees:
    flat |= traverse_util.flatten_dict(tree, sep="/")
  return traverse_util.unflatten_dict(flat, sep="/")


@dataclass(frozen=True)
class Setup:
  """All that is static in the compiled functions; equal setups share one program."""

  model: FrozenConfigDict  # config.model
  optim: FrozenConfigDict  # of config.optim, `programs.STATIC_OPTIM`
  trainable: tuple[str, ...]  # config.train.trainable
  sharding: FrozenConfigDict  # config.sharding
  vocab_size: int  # V of the model, special ids included
  objective: Objective
  coefficients: FrozenConfigDict  # see `Objective`
  lengths: Lengths
  segments: str  # see `losses.token_losses`
  prefix: bool  # see `Transformer`
  devices: tuple[jax.Device, ...]

  def build(self, seed: Any, gather: Any = None) -> Transformer:
    """Builds the model with weights drawn from a seed; see `Transformer`."""
    lengths, rngs = self.lengths, nnx.Rngs(jax.random.key(seed))
    return Transformer(
      self.model, self.vocab_size, lengths.target, rngs, lengths.source, gather, self.prefix
    )

  @cached_property
  def layout(self) -> Layout:
    """Where the parameters, trainable and frozen, lie on the devices."""
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: self.build(0))))
    return sharding.make_layout(
      self.sharding, params, sharding.make_mesh(self.sharding, self.devices)
    )

  @cached_property
  def trained(self) -> Layout:
    """The layout of the trainable parameters, and of the trees of their shape."""
    dims = self.layout.ndims, self.layout.dims, self.layout.tensor_dims
    ndims, dims, tensor_dims = (self.split(tree)[0] for tree in dims)
    return replace(self.layout, ndims=ndims, dims=dims, tensor_dims=tensor_dims)

  def split(self, tree: Any) -> tuple[Any, Any]:
    """Splits a tree of the parameters' structure into trainable and frozen."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    trained = optim.trainable(self.trainable, flat)
    parts = ({x: flat[x] for x in flat if (x in trained) == part} for part in (True, False))
    trainable, frozen = (traverse_util.unflatten_dict(part, sep="/") for part in parts)
    return trainable, frozen

  @cached_property
  def graphdef(self) -> nnx.GraphDef:
    """The model without its weights; each block gathers its own right before their use."""
    return nnx.graphdef(nnx.eval_shape(lambda: self.build(0, self.layout.block_gathers())))

  @cached_property
  def optimizer(self) -> optax.GradientTransformation:
    """Gradients to the direction of an update, without the learning rate."""
    return optim.optimizer(self.optim, self.model, self.layout.on_whole)

  @property
  def mixed(self) -> bool:
    """Whether the optimizer updates a float32 copy of the weights."""
    return self.model.weights != "float32"


def init(setup: Setup, seed: Array) -> TrainState:
  """Draws the initial weights."""
  return init_from(setup, nnx.to_pure_dict(nnx.state(setup.build(seed))))


def init_from(setup: Setup, params: Any) -> TrainState:
  """Makes the state of step 0 from a model's weights."""
  trainable, frozen = setup.split(cast(params, jnp.float32))
  opt_state, master = setup.optimizer.init(trainable), trainable if setup.mixed else ()
  trainable, frozen = cast((trainable, frozen), setup.model.weights)
  return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, master, opt_state)


def train_step(
  setup: Setup, state: TrainState, batch: Batch, lr: Array, seed: Array
) -> tuple[TrainState, dict]:
  """Updates the state by one batch."""
  layout, rows = setup.trained, batch["inputs_BT"].shape[0]
  keys_B = dropout_keys(seed, state.step, rows) if setup.model.dropout else None
  grads, sums = sum_gradients(setup, state.trainable, state.frozen, batch, keys_B)
  grads = cast(layout.local_shard(grads, "gradients"), jnp.float32)
  weight_or_1 = jnp.maximum(sums[LOSS][1], 1.0)  # a batch may have nothing to predict
  grads = jax.tree.map(lambda g: g / weight_or_1, grads)
  norm = jnp.sqrt(layout.square_sum(grads))
  if setup.optim.clip_norm:
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, setup.optim.clip_norm / norm), grads)
  weights = state.master if setup.mixed else layout.local_shard(state.trainable, "params")
  direction, opt_state = setup.optimizer.update(grads, state.opt_state, weights)
  weights = jax.tree.map(lambda w, d: w - lr * d, weights, direction)
  trainable = layout.gather_updated(cast(weights, setup.model.weights))
  metrics = {"sums": sums, "grad_norm": norm}
  master = weights if setup.mixed else ()
  return TrainState(state.step + 1, trainable, state.frozen, master, opt_state), metrics


def sum_gradients(setup: Setup, trainable, frozen, batch: Batch, keys_B=None) -> tuple[Any, Sums]:
  """Sums gradients (as they are laid out) and the loss's entries over the whole batch.

  Gradients have the weights' dtype, as a device sends them; over microbatches they are summed in
  float32.
  """
  layout, n = setup.trained, setup.sharding.microbatches
  if n == 1:
    grads, sums = microbatch_gradients(setup, trainable, frozen, batch, keys_B)
  else:
    parts = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), (batch, keys_B))
    one = partial(microbatch_gradients, setup, trainable, frozen)
    shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    # XLA's TPU compiler fails where it would sum bfloat16 shards before it scatters them.
    barrier = setup.mixed and layout.platform == "tpu"
    apart = jax.lax.optimization_barrier if barrier else lambda x: x
    (grads, sums), _ = jax.lax.scan(
      lambda total, part: (jax.tree.map(jnp.add, total, apart(one(*part))), None), zero, parts
    )
  if "gradients" not in layout.sharded:  # else each microbatch has done so
    grads = layout.reduce_grads(grads)
  return layout.all_reduce(grads, "replica"), layout.all_reduce(sums, *sharding.BATCH)


def microbatch_gradients(setup: Setup, trainable, frozen, batch: Batch, keys_B) -> tuple[Any, Sums]:
  """Returns gradients and the loss's entries, summed over this device's rows."""
  differentiate = jax.value_and_grad(loss_sum, has_aux=True)
  (_, sums), grads = differentiate(trainable, frozen, setup, batch, keys_B)
  if "gradients" in setup.trained.sharded:
    grads = setup.trained.reduce_grads(grads)
  return grads, sums


def loss_sum(trainable, frozen, setup: Setup, batch: Batch, keys_B) -> tuple[Array, Sums]:
  """Returns what is minimised, and the sums of the loss's entries."""
  sums = losses.sums(entries(setup, merge(trainable, frozen), batch, keys_B))
  minimised, _ = sums[LOSS]
  for name, coefficient in setup.coefficients.items():
    minimised += coefficient * sums[name][0]
  return minimised, sums


def evaluate(setup: Setup, params: Any, batch: Batch) -> Sums:
  """Returns the loss's entries of each sequence: sum_B and weight_B."""
  return losses.sequence_sums(entries(setup, params, batch))


def entries(setup: Setup, params, batch: Batch, keys_B=None) -> losses.Entries:
  """Computes the entries of the objective's loss."""
  model = nnx.merge(setup.graphdef, setup.layout.gather_outside_blocks(params))
  return setup.objective.loss(model, batch, keys_B, setup.segments, setup.coefficients)


def dropout_keys(seed: Array, step: Array, rows: int) -> Array:
  """Returns keys_B by (seed, step, row of the whole batch)."""
  row_B = jax.lax.axis_index(sharding.BATCH) * rows + jnp.arange(rows)
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(row_B)


def cast(tree: Any, dtype: DTypeLike) -> Any:
  """Returns a tree's arrays in another dtype."""
  return jax.tree.map(lambda x: x.astype(dtype), tree)
