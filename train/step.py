"""The pure functions that are compiled: initialise, train one step, evaluate one batch."""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict

from model import transformer
from train import objectives, optim
from train.objectives import Batch


class TrainState(NamedTuple):
  """All that a step changes."""

  step: jax.Array  # updates done, int32 scalar
  params: Any  # nnx.State of the model's weights, float32
  opt_state: Any  # optax state


class Program(NamedTuple):
  """Compiled functions of one model shape, objective and optimizer."""

  init: Any  # seed -> TrainState
  step: Any  # (state, batch, lr) -> (state, metrics); the state is donated
  evaluate: Any  # (params, batch) -> (nll_B, weight_B)


# The fields of config.optim that are compiled in. The learning rate and the schedule are not: the
# rate is an argument of the step.
STATIC = ("b1", "b2", "eps", "weight_decay", "clip_norm")


def program(config: ConfigDict, vocab_size: int) -> Program:
  """Returns the functions for a resolved config; equal shapes share them within a process."""
  return _program(
    FrozenConfigDict(config.model),
    FrozenConfigDict(config.data),
    FrozenConfigDict({name: config.optim[name] for name in STATIC}),
    config.objective,
    vocab_size,
  )


@lru_cache(maxsize=64)
def _program(
  model_config: FrozenConfigDict,
  data_config: FrozenConfigDict,
  optim_config: FrozenConfigDict,
  objective: str,
  vocab_size: int,
) -> Program:
  token_nll = objectives.get(objective)
  optimizer = optim.optimizer(optim_config)

  def build(seed):
    rngs = nnx.Rngs(jax.random.key(seed))
    return transformer.build(model_config, vocab_size, data_config.seq_len, rngs)

  graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(0)))

  def init(seed: jax.Array) -> TrainState:
    params = nnx.state(build(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

  def loss_sum(params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    nll_BT = token_nll(nnx.merge(graphdef, params), batch, data_config)
    return jnp.sum(nll_BT * batch["weights_BT"]), jnp.sum(batch["weights_BT"])

  def step(state: TrainState, batch: Batch, lr: jax.Array) -> tuple[TrainState, dict]:
    (loss, weight), grads = jax.value_and_grad(loss_sum, has_aux=True)(state.params, batch)
    grads = jax.tree.map(lambda g: g / weight, grads)
    direction, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, d: p - lr * d, state.params, direction)
    metrics = {"loss_sum": loss, "weight": weight, "grad_norm": optax.global_norm(grads)}
    return TrainState(state.step + 1, params, opt_state), metrics

  def evaluate(params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    nll_BT = token_nll(nnx.merge(graphdef, params), batch, data_config)
    weights_BT = batch["weights_BT"]
    return jnp.sum(nll_BT * weights_BT, axis=1), jnp.sum(weights_BT, axis=1)

  # Placed explicitly, as a restored state is: else the step would be compiled once for either.
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return Program(
    jax.jit(init, out_shardings=device), jax.jit(step, donate_argnums=0), jax.jit(evaluate)
  )
