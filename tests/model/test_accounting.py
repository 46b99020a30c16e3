"""Parameters by hand and by group; FLOPs by hand, by the program's products, and by XLA."""

import inspect
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from models import products

from configs import base, ladders
from model import accounting, transformer

V, T, S = 257, 128, 160
FAMILIES = tuple(base.FAMILIES)
LAYER = {"norm": "layer", "biases": True}
BERT = LAYER | {"norm_position": "post", "embedding_norm": True, "positions": "learned"}
SWITCHES = [
  {},
  {"positions": "learned", "qk_norm": False, "biases": True},
  {"positions": "sinusoidal", "norm": "layer", "mlp_ratio": 3.0, "mlp": "gelu_exact"},
  {"positions": "relative", "relative_buckets": 12, "mlp": "relu", "mlp_width": 37},
  {"positions": "none", "token_types": 3, "head_transform": True},
  {"norm_position": "post", "embedding_norm": True, "head_bias": True},
  {"width": 40, "heads": 4, "kv_heads": 2, "mlp": "geglu"} | LAYER,
  {"width": 32, "heads": 6, "kv_heads": 1, "head_width": 10, "biases": True},
  BERT | {"token_types": 2, "head_transform": True, "head_bias": True, "tied": True},
  {"encoder_depth": 5, "depth": 2},
  {"ladder": "standard", "size": 2},
]


def model_config(**changes):
  c = base.get_config()
  c.model.update(changes)
  return ladders.resolve(c).model


def lengths(config, seq_len=T, source_len=S):
  """The lengths that a model of this family takes: T and S."""
  return seq_len, source_len if config.family == "encoder_decoder" else 0


def abstract(config, seq_len=T, source_len=0):
  """(graphdef, parameters) of a model that is never allocated."""
  return nnx.split(
    nnx.eval_shape(lambda: transformer.Transformer(config, V, seq_len, nnx.Rngs(0), source_len))
  )


def test_groups_sum_to_the_parameters_of_the_model():
  config = model_config(family="encoder_decoder", depth=2, encoder_depth=5, **BERT)
  groups = accounting.param_groups(config, V, T, S)
  leaves = jax.tree.leaves(abstract(config, T, S)[1])
  assert groups.pop("total") == sum(groups.values()) == sum(leaf.size for leaf in leaves)


def test_what_is_looked_up_and_what_is_multiplied():
  """A hand count of BERT's parts: width 4, 3 token types, 7 positions, V = 257."""
  config = model_config(
    family="encoder",
    **{"width": 4, "depth": 1, "heads": 2, "mlp": "gelu", "norm": "layer", "biases": True},
    **{"norm_position": "post", "embedding_norm": True, "positions": "learned", "token_types": 3},
    **{"qk_norm": False, "tied": True, "head_transform": True, "head_bias": True},
  )
  norm = 2 * 4
  assert accounting.param_groups(config, V, 7) == {
    "embedding": 0,
    "positions": (7 + 3) * 4,
    "body": norm + 4 * (4 * 4 + 4) + norm + (4 * 16 + 16) + (16 * 4 + 4) + norm,
    "head": (4 * 4 + 4) + norm + V * 4 + V,
    "total": 40 + 8 + 80 + 8 + 80 + 68 + 8 + 20 + 8 + 1028 + 257,
  }


@pytest.mark.smoke
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


@pytest.mark.smoke
def test_flops_by_hand():
  config = model_config(width=8, depth=3, heads=2, mlp="gelu")
  block = 5 * 2 * 12 * 8 * 8 + 4 * 8 * (1 + 2 + 3 + 4 + 5)  # matrices; keys seen by the 5 tokens
  assert accounting.forward_flops_per_sequence(config, 10, 5) == 3 * block + 5 * 2 * 10 * 8
  assert accounting.train_flops_per_sequence(config, 10, 5) == 3 * (3 * block + 5 * 2 * 10 * 8)


@pytest.mark.smoke
def test_flops_of_an_encoder_decoder_by_hand():
  """Width 8, 2 heads, of keys and values 1; 1 block in the encoder, 2 in the decoder; T=3, S=5."""
  config = model_config(
    family="encoder_decoder",
    **{"width": 8, "depth": 2, "encoder_depth": 1, "heads": 2, "kv_heads": 1, "mlp": "gelu"},
  )
  query_out, key_value, mlp, pair = 2 * 2 * 8 * 8, 2 * 2 * 8 * 4, 2 * 2 * 8 * 32, 4 * 8
  encoder = 5 * (query_out + key_value + mlp) + pair * 5 * 5
  own = 3 * (query_out + key_value + mlp) + pair * (1 + 2 + 3)
  cross = 3 * query_out + 5 * key_value + pair * 3 * 5
  head = 3 * 2 * 10 * 8
  exact = accounting.forward_flops_per_sequence(config, 10, 3, 5)
  assert exact == encoder + 2 * (own + cross) + head


def programs(config, seq_len, source_len):
  """(forward, gradient, arguments) of a model that is never allocated; B = 1."""
  graphdef, params = abstract(config, seq_len, source_len)
  tokens_BT = jax.ShapeDtypeStruct((1, seq_len), jnp.int32)
  tokens_BS = jax.ShapeDtypeStruct((1, source_len), jnp.int32)

  def forward(params, tokens_BT, tokens_BS):
    source = transformer.Source(tokens_BS) if source_len else None
    return nnx.merge(graphdef, params)(tokens_BT, source=source)

  gradient = jax.grad(lambda *x: jnp.sum(forward(*x)))
  return forward, gradient, (params, tokens_BT, tokens_BS)


def unseen(config, seq_len):
  """FLOPs of the scores that are computed and masked: the model is charged the causal part."""
  if config.family == "encoder":
    return 0
  pairs = seq_len * (seq_len - 1) // 2
  return config.depth * 4 * config.heads * config.head_width * pairs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_flops_equal_the_products_of_the_program(family, changes):
  config = model_config(family=family, **changes)
  shape = lengths(config, 12, 20)
  forward, gradient, arguments = programs(config, *shape)
  masked = unseen(config, 12)
  exact = accounting.forward_flops_per_sequence(config, V, *shape) + masked
  assert products(jax.make_jaxpr(forward)(*arguments).jaxpr) == exact
  exact = accounting.train_flops_per_sequence(config, V, *shape) + 3 * masked
  assert products(jax.make_jaxpr(gradient)(*arguments).jaxpr) == exact


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_flops_equal_xlas_own_count(family, mlp):
  """On an unrolled model, wide enough that what is not a matrix product is below 1 %."""
  config = model_config(family=family, width=768, depth=2, heads=2, mlp=mlp, scan=False)
  shape = lengths(config, 64, 96)
  forward, gradient, arguments = programs(config, *shape)
  for function, passes in ((forward, 1), (gradient, 3)):
    xla = jax.jit(function).lower(*arguments).cost_analysis()["flops"]
    charged = accounting.forward_flops_per_sequence(config, V, *shape)
    exact = passes * (charged + unseen(config, 64))
    assert exact <= xla <= 1.01 * exact


def test_lengths_that_do_not_fit_the_family_are_refused():
  both = model_config(family="encoder_decoder")
  with pytest.raises(ValueError, match="^model.family='encoder_decoder': source_len=0; [^\n]+$"):
    accounting.param_groups(both, V, T)
  with pytest.raises(ValueError, match="^model.family='decoder': source_len=5; [^\n]+$"):
    accounting.forward_flops_per_sequence(model_config(), V, T, 5)


@pytest.mark.parametrize(
  ("changes", "line"),
  [
    ({"width": 30, "heads": 4}, "model.heads=4: does not divide the width 30"),
    ({"width": 30, "heads": 2}, "model.head_width=15: heads are of an even width"),
    ({"heads": 4, "kv_heads": 3}, "model.kv_heads=3: the 4 heads must divide evenly"),
    (
      {"positions": "relative", "relative_buckets": 2},
      "model.relative_buckets=2: must be at least",
    ),
    ({"positions": "relative", "relative_distance": 16}, "model.relative_buckets=32: must be at"),
    (
      {"width": 15, "head_width": 4, "heads": 3, "positions": "sinusoidal"},
      "model.width=15: sinus",
    ),
    ({"size": 99}, "model.size=99: ladder 'small' has 0 to 26"),
  ],
)
def test_shapes_that_do_not_fit_are_refused(changes, line):
  with pytest.raises(ValueError, match=f"^{line}"):
    model_config(**changes)
