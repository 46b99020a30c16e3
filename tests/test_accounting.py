"""Counts equal the built models', FLOPs and bytes equal XLA's."""

import inspect
import math
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs import base, ladders
from model import accounting, transformer

V, T = 257, 128


def model_config(**changes):
  c = base.get_config()
  c.model.update(changes)
  return ladders.resolve(c).model


def shapes(config, seq_len=T):
  """{path: shape} of a model that is never allocated."""
  model = nnx.eval_shape(lambda: transformer.build(config, V, seq_len, nnx.Rngs(0)))
  flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
  return {"/".join(map(str, path)): leaf.shape for path, leaf in flat}


def counted(config):
  groups = dict.fromkeys(accounting.GROUPS, 0)
  for path, shape in shapes(config).items():
    groups[accounting.group(path)] += math.prod(shape)
  return groups | {"total": sum(groups.values())}


@pytest.mark.parametrize("size", ladders.SMALL)
def test_groups_equal_the_models_on_every_rung(size):
  config = model_config(size=size)
  assert accounting.param_groups(config, V, T) == counted(config)


@pytest.mark.parametrize(
  "changes",
  [
    {"positions": "learned"},
    {"biases": True},
    {"biases": True, "norm": "layer", "mlp": "swiglu"},
    {"norm": "layer", "qk_norm": False},
    {"mlp": "geglu", "width": 40, "heads": 1},
    {"mlp_ratio": 3.0},
    {"ladder": "standard", "size": 2},
  ],
)
def test_groups_equal_the_models_for_every_switch(changes):
  config = model_config(**changes)
  assert accounting.param_groups(config, V, T) == counted(config)


def test_a_tied_matrix_is_counted_once_as_head():
  config = model_config(tied=True)
  groups = accounting.param_groups(config, V, T)
  assert groups["embedding"] == 0
  assert groups["head"] == V * config.width == counted(config)["embedding"]
  assert groups["total"] == counted(config)["total"]


def test_the_ladder_states_its_parameters():
  source = inspect.getsource(ladders)
  column = {int(k): v for k, v in re.findall(r"(\d+): Rung\(.*\),  # ([\d.,]+)", source)}
  assert column.keys() == ladders.SMALL.keys()
  for size, stated in column.items():
    groups = accounting.param_groups(model_config(size=size), V, T)
    thousands = accounting.n_params(groups, "body_head") / 1e3
    digits = len(stated.partition(".")[2])
    assert abs(float(stated.replace(",", "")) - thousands) <= 0.5 * 10**-digits + 1e-9, size


def test_gated_mlps_have_the_parameters_of_plain_ones():
  plain, gated = (
    accounting.param_groups(model_config(size=16, mlp=mlp), V, T) for mlp in ("gelu", "swiglu")
  )
  assert gated["body"] == pytest.approx(plain["body"], rel=0.02)


def test_conventions():
  groups = {"embedding": 1, "positions": 2, "body": 4, "head": 8, "total": 15}
  n = {name: accounting.n_params(groups, name) for name in accounting.CONVENTIONS}
  assert n == {"body_head": 12, "body": 4, "total": 15}
  with pytest.raises(ValueError, match="fit.params='all': unknown; choose one of"):
    accounting.n_params(groups, "all")


def test_flops_by_hand():
  config = model_config(width=8, depth=3, heads=2, mlp="gelu")
  block = 2 * 12 * 8 * 8 + 4 * 8 * (1 + 2 + 3 + 4 + 5) / 5  # matrices; keys seen, averaged over T=5
  assert accounting.forward_flops_per_token(config, 10, 5) == 3 * block + 2 * 10 * 8
  assert accounting.flops_per_token(config, 10, 5) == 3 * (3 * block + 2 * 10 * 8)


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_flops_equal_xlas_own_count(mlp):
  """On an unrolled model, wide enough that what is not a matrix product is below 1 %."""
  seq_len = 64
  config = model_config(width=768, depth=2, heads=2, mlp=mlp, scan=False)
  graphdef, params = nnx.split(
    nnx.eval_shape(lambda: transformer.build(config, V, seq_len, nnx.Rngs(0)))
  )
  tokens_BT = jax.ShapeDtypeStruct((1, seq_len), jnp.int32)

  def forward(params, tokens_BT):
    return nnx.merge(graphdef, params)(tokens_BT)

  def loss(params, tokens_BT):
    return jnp.sum(forward(params, tokens_BT))

  # XLA computes the whole square of scores and weights; the model is charged the causal part.
  masked = config.depth * 4 * config.width * (seq_len - (seq_len + 1) / 2)
  for function, count, passes in (
    (forward, accounting.forward_flops_per_token, 1),
    (jax.grad(loss), accounting.flops_per_token, 3),
  ):
    xla = jax.jit(function).lower(params, tokens_BT).cost_analysis()["flops"]
    exact = seq_len * (count(config, V, seq_len) + passes * masked)
    assert exact <= xla <= 1.01 * exact


@pytest.mark.parametrize("changes", [{}, {"remat": "dots"}, {"remat": "full"}, {"mlp": "gelu"}])
@pytest.mark.parametrize(("width", "depth"), [(64, 3), (128, 4)])
def test_memory_is_near_what_xla_allocates(width, depth, changes):
  config = model_config(width=width, depth=depth, heads=width // 32, scan=True, **changes)
  graphdef, params = nnx.split(nnx.eval_shape(lambda: transformer.build(config, V, T, nnx.Rngs(0))))

  def loss(params, tokens_BT):
    logits_BTV = nnx.merge(graphdef, params)(tokens_BT)
    return -jnp.mean(jax.nn.log_softmax(logits_BTV)[..., 0])

  def step(params, tokens_BT):
    return jax.tree.map(lambda w, g: w - 1e-3 * g, params, jax.grad(loss)(params, tokens_BT))

  tokens_BT = jax.ShapeDtypeStruct((8, T), jnp.int32)
  compiled = jax.jit(step, donate_argnums=0).lower(params, tokens_BT).compile()
  allocated = compiled.memory_analysis().temp_size_in_bytes
  memory = accounting.train_memory_bytes(config, V, T, 8)
  estimated = memory["gradients"] + memory["activations"] + memory["logits"]
  assert estimated == pytest.approx(allocated, rel=0.3)


def test_adam_costs_sixteen_bytes_a_parameter():
  config = model_config()
  memory = accounting.train_memory_bytes(config, V, T, 8)
  total = accounting.param_groups(config, V, T)["total"]
  assert memory["weights"] + memory["gradients"] + memory["adam"] == 16 * total
  assert memory["total"] == sum(memory.values()) - memory["total"]


def test_petaflop_s_days():
  assert accounting.petaflop_s_days(86_400e15) == 1.0
