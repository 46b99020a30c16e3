"""One device against eight: every strategy trains the same model, and keeps what it promises."""

import functools
import math

import jax
import numpy as np
import pytest
from eight_devices import trained
from flax import nnx

from configs import base, ladders
from model import sharding, transformer

CASES = {
  "ddp": "strategy=ddp",
  "zero1": "strategy=zero1",
  "zero2": "strategy=zero2,microbatches=2",
  "zero3": "strategy=zero3",
  "fsdp": "strategy=fsdp,remat=full,microbatches=2",
  "hybrid": "strategy=hybrid,shard_factor=4",
}
FAMILIES = tuple(base.FAMILIES)


@pytest.fixture(scope="module")
def one():
  """By family: what one device found, each asked once."""
  return functools.cache(lambda family: trained(1, family, {"one": "strategy=zero3"})["one"])


def train_as(one, runs):
  """Sums in another order: log2(terms) roundings each, in every one of 20 steps."""
  terms = 16 * 16 * 64
  bound = 20 * math.log2(terms) * np.finfo(np.float32).eps
  assert one["losses"][-1] < one["losses"][0] - 0.3
  for name, run in runs.items():
    for what in ("losses", "norms", "evaluated"):
      np.testing.assert_allclose(run[what], one[what], rtol=bound, err_msg=name)
    assert run["weights"] == one["weights"]


def test_zero3_trains_as_one_device_does(one):
  runs = trained(8, "decoder", {"zero3": CASES["zero3"]})
  train_as(one("decoder"), runs)
  check_bytes(runs["zero3"], (4, 4, 8), SHARES["zero3"])


ENDS = {name: CASES[name] for name in ("ddp", "zero3")}  # what keeps most and least whole
COVERING = {"decoder": CASES, "encoder_decoder": ENDS}  # the others are in tests/release


@pytest.fixture(scope="module", params=COVERING)
def runs(request, one):
  """By case: strategies on eight devices, and the same model on one."""
  return {"one": one(request.param)} | trained(8, request.param, COVERING[request.param])


@pytest.mark.slow
def test_every_strategy_trains_as_one_device_does(runs):
  train_as(runs["one"], {name: run for name, run in runs.items() if name != "one"})


@pytest.mark.slow
def test_strategies_equal_each_other(runs):
  """The same sums in the same order, wherever the results are kept."""
  for name in {"zero1", "zero3", "hybrid"} & runs.keys():  # other programs: a rounding apart
    np.testing.assert_allclose(runs[name]["losses"], runs["ddp"]["losses"], rtol=1e-6)


SHARES = {  # by what the bytes of weights, gradients and optimizer are divided
  "ddp": (1, 1, 1), "zero1": (1, 1, 8), "zero2": (1, 8, 8), "zero3": (8, 8, 8), "hybrid": (4, 4, 4)
}  # fmt: skip


def check_bytes(run, per_param, shares):
  for what, size, share in zip(
    ("params", "gradients", "optimizer"), per_param, shares, strict=True
  ):
    expected = run["n_params"] * size / share
    assert run["bytes"][what] == pytest.approx(expected, rel=0.01), (run["case"], what)


@pytest.mark.slow
def test_bytes_held_are_those_of_the_formulas(runs):
  """float32: 4 bytes of weights, 4 of gradients and 8 of Adam a parameter."""
  for name in SHARES.keys() & runs.keys():
    check_bytes(runs[name], (4, 4, 8), SHARES[name])


@pytest.mark.slow
def test_the_compiled_program_communicates_as_the_strategy_promises(runs):
  for name, run in runs.items():
    sent = run["collectives"]
    assert sent["all-to-all"] == sent["collective-permute"] == 0, name
    assert (sent["reduce-scatter"] > 0) == (name in ("zero2", "zero3", "fsdp", "hybrid")), name
    assert (sent["all-gather"] > 0) == (name not in ("one", "ddp")), name
    assert (sent["all-reduce"] > 0) == (name != "one"), name
  # In shards, the backward pass gathers the blocks again instead of keeping them whole.
  assert runs["zero3"]["collectives"]["all-gather"] > runs["zero3"]["collectives"]["reduce-scatter"]


@pytest.fixture(scope="module")
def mixed():
  """By case: weights in bfloat16 and their float32 copy, on eight devices."""
  cases = {name: CASES[name].replace(",microbatches=2", "") for name in SHARES}
  extra = ",dtype=bfloat16,weights=bfloat16"
  cases = {name: case + extra for name, case in cases.items()}
  wide = {"wide": "strategy=zero3,dtype=bfloat16"}
  cases["accumulated"] = cases["zero2"] + ",microbatches=2"
  return trained(8, "decoder", cases | wide)


@pytest.mark.slow
def test_mixed_precision_holds_what_the_formulas_say(mixed):
  """2 bytes of weights, 2 of gradients and 12 of optimizer: 4 + 12/n, 2 + 14/n, 16/n in all."""
  for name, shares in SHARES.items():
    check_bytes(mixed[name], (2, 2, 12), shares)
  check_bytes(mixed["accumulated"], (2, 4, 12), (1, 8, 8))  # microbatches are summed in float32
  totals = {name: sum(mixed[name]["bytes"].values()) / mixed[name]["n_params"] for name in SHARES}
  for name, expected in (("zero1", 4 + 12 / 8), ("zero2", 2 + 14 / 8), ("zero3", 16 / 8)):
    assert totals[name] == pytest.approx(expected, rel=0.01), name


@pytest.mark.slow
def test_mixed_precision_trains_as_float32_weights_do(mixed):
  """Products round the weights to bfloat16 anyway; left are embeddings, norms and gradients.

  Each of their entries is rounded by at most 2^-9 of itself. The loss of a step moves by that share
  of what moves it: of itself, at most, once for the weights and once for the gradients.
  """
  wide = mixed["wide"]["losses"]
  assert wide[-1] < wide[0] - 0.3
  for name in (*SHARES, "accumulated"):
    np.testing.assert_allclose(mixed[name]["losses"], wide, rtol=2 * 2**-9 * 2, err_msg=name)
  for name in ("zero1", "zero3"):  # the same sums, rounded at the same places
    np.testing.assert_allclose(mixed[name]["losses"], mixed["ddp"]["losses"], rtol=1e-6)


@pytest.mark.slow
def test_a_checkpoint_is_restored_bit_for_bit_on_any_devices_and_strategy(tmp_path):
  where = f",checkpoints={tmp_path / 'run'}"
  saved = trained(8, "decoder", {"zero3": CASES["zero3"] + where})["zero3"]
  assert saved["step"] == 3
  four = {"hybrid": "strategy=hybrid,shard_factor=2" + where, "ddp": CASES["ddp"] + where}
  restored = trained(4, "decoder", four) | trained(1, "decoder", {"one": CASES["zero1"] + where})
  for name, run in restored.items():
    assert (run["step"], run["bits"]) == (3, saved["bits"]), name
  held = [run["held"] for run in (saved, restored["hybrid"], restored["ddp"], restored["one"])]
  assert held[0] < held[1] / 3 < held[2] / 5 == held[3] / 5


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_a_tensor_axis_computes_the_same(one, strategy):
  cases = {"tensor": f"strategy={strategy},tensor=2"}
  run = trained(8, "decoder", cases)["tensor"]
  bound = 20 * math.log2(16 * 16 * 64) * np.finfo(np.float32).eps
  np.testing.assert_allclose(run["losses"], one("decoder")["losses"], rtol=bound)
  assert run["bytes"]["params"] < 0.7 * 4 * run["n_params"] / (4 if strategy == "zero3" else 1)


# ---------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_its_row_in_the_table(family):
  c = base.get_config()
  changes = {"biases": True, "norm": "layer", "positions": "relative", "head_bias": True}
  c.model.update({"family": family, "head_transform": True, "token_types": 2} | changes)
  config = ladders.resolve(c).model
  state = nnx.state(nnx.eval_shape(lambda: transformer.Transformer(config, 64, 8, nnx.Rngs(0), 8)))
  for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state)):
    axes = sharding.logical_axes(path, leaf.ndim)
    name = jax.tree_util.keystr(path)
    assert len(axes) == leaf.ndim, name
    assert axes.count("layer") == ("block" in name), name
    size = dict(zip(axes, leaf.shape, strict=True))
    assert size.get("embed", config.width) == config.width, name
    assert size.get("vocab", 64) == 64, name


def resolved(**fields):
  c = base.get_config()
  c.sharding.update(fields)
  return c.sharding


@pytest.mark.parametrize(
  ("fields", "shape"),
  [
    ({}, (1, 8, 1)),
    ({"strategy": "zero3", "tensor": 2}, (1, 4, 2)),
    ({"strategy": "hybrid", "shard_factor": 2}, (4, 2, 1)),
    ({"strategy": "hybrid", "shard_factor": 2, "tensor": 2}, (2, 2, 2)),
  ],
)
def test_the_mesh_uses_every_device(fields, shape):
  assert sharding.mesh_shape(resolved(**fields), 8) == shape


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"tensor": 3}, r"sharding.tensor=3: must divide the 8 devices; one of \[1, 2, 4, 8\]"),
    ({"strategy": "hybrid"}, r"sharding.shard_factor=0: .* one of \[1, 2, 4, 8\]"),
    ({"strategy": "hybrid", "shard_factor": 3}, r"shard_factor=3: must divide the 8 devices"),
    ({"strategy": "zero1", "shard_factor": 4}, "leave it at 0, or choose .*'hybrid'"),
  ],
)
def test_a_mesh_that_cannot_be_is_refused(fields, message):
  with pytest.raises(ValueError, match=message) as error:
    sharding.mesh_shape(resolved(**fields), 8)
  assert "\n" not in str(error.value)


def test_batches_that_do_not_divide_are_refused_with_what_would_do():
  c = base.get_config()
  c.data.batch_size = 12
  with pytest.raises(ValueError, match=r"data.batch_size=12: must be a multiple of 8 .*; 16 would"):
    sharding.check_batches(c, 8)
  c.sharding.microbatches = 5
  with pytest.raises(ValueError, match=r"must be a multiple of 5 .*microbatches=5\); 15 would do"):
    sharding.check_batches(c, 1)
  c.data.batch_size, c.train.eval_batch_size = 15, 33
  sharding.check_batches(c, 1)
  c.sharding.microbatches, c.data.batch_size = 1, 16
  with pytest.raises(ValueError, match=r"train.eval_batch_size=33: .*; 40 would do"):
    sharding.check_batches(c, 8)
  c.train.eval_batch_size, c.sharding.tensor = 32, 2
  sharding.check_batches(c, 8, local_devices=4)
  with pytest.raises(ValueError, match="sharding.tensor=2: must divide the 1 devices of each pro"):
    sharding.check_batches(c, 8, local_devices=1)
