"""What each device holds while it trains, by arithmetic on a config: bytes. No arrays, no devices.

Weights, gradients and optimizer states are those of the tables in `model/sharding.py`, parameter by
parameter: ZeRO's stages (Rajbhandari et al. 2020, arXiv:1910.02054, section 3), with what does not
divide left whole. Activations are counted array by array, as the training step keeps them: read
from the buffers that XLA assigns to it on a CPU. (Korthikanti et al. 2022, arXiv:2205.05198,
equation 2, count T B D (34 + 5 H T / D) bytes a block, in 16 bits and with dropout.)
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from model import accounting, ops, sharding
from model.accounting import StackLengths
from model.layers import GATED, mlp_width

# Float32 arrays of an MLP's hidden width that exist at once, where all of a block is repeated right
# before its derivative.
REPEATED = {"relu": 2, "gelu": 4, "gelu_exact": 6, "geglu": 7, "swiglu": 7}

TREES = ("params", "gradients", "optimizer")


class Sizes(NamedTuple):
  """How many numbers each device holds."""

  whole: dict[str, int]  # of each of TREES, and what an update makes beside them
  shard: dict[str, int]  # likewise, where the strategy shards it
  rest: int  # those outside the blocks, whole
  block: int  # the largest block, whole


def device_bytes(
  config: ConfigDict,
  vocab_size: int,
  seq_len: int,
  source_len: int,
  arrays: Mapping[str, tuple[int, int]],
  devices: int = 1,
  fused: bool = False,
) -> dict[str, int]:
  """Predicts the bytes that each device holds at the peak of a training step, and their "total".

  Args:
    config: resolved; `model`, `sharding` and `data.batch_size` are read.
    vocab_size: V, special tokens included.
    seq_len: T [tokens].
    source_len: S of an encoder-decoder, else 0 [tokens].
    arrays: of each trained parameter, by path: see `train.optim.arrays`.
    devices: their number.
    fused: attention never stores its weights (flash attention), and products take bfloat16 operands
      as they are: counted, and not yet measured on a GPU. False: as on a CPU, where the total is
      within 10 % of what XLA assigns (`tests/model/test_memory.py`).

  Returns:
    weights: as `sharding.strategy` keeps them.
    gradients: likewise, of trained weights; the sums in float32, where there are microbatches.
    optimizer: its state, and a float32 copy of trained weights in bfloat16.
    activations: what the backward pass needs of the forward pass, and one block at work; without
      the room that it shares with the logits.
    logits: those of a chunk (`train.objectives.losses`), with the loss and their gradient.
    passing: what the peak needs beyond these, to gather weights and to reduce gradients.
  """
  c, strategy = config.model, config.sharding.strategy
  mesh = sharding.mesh_shape(config.sharding, devices)
  microbatches = config.sharding.microbatches
  rows = config.data.batch_size / (mesh[0] * mesh[1] * microbatches)
  mixed = c.weights == "bfloat16"
  each = 2 if mixed else 4
  sharded = sharding.STRATEGIES[strategy]
  trained = tuple((path, kept + mixed, made) for path, (kept, made) in arrays.items())
  sizes = _sizes(c.to_json(), vocab_size, seq_len, source_len, mesh, trained)
  of = {tree: (sizes.shard if tree in sharded else sizes.whole)[tree] for tree in TREES}
  parts: dict[str, Any] = {
    "weights": each * of["params"],
    "gradients": (4 if microbatches > 1 else each) * of["gradients"],
    "optimizer": 4 * of["optimizer"],
  }
  kept, working = (
    rows * x for x in _activations(config, vocab_size, seq_len, source_len, mesh, fused)
  )
  logits = _logits(c, vocab_size, rows * seq_len, mesh[2], fused)
  # Beside those three trees and what is kept for the backward pass, in the phases of a step:
  block = each * sizes.block  # the weights of the block at work
  if "params" in sharded and mesh[1] > 1:
    in_blocks, at_logits = each * sizes.rest / 2 + block, each * 1.5 * sizes.rest
    reducing = parts["gradients"] * (mesh[0] > 1)
  else:  # gradients of a microbatch are whole until they are reduced
    at_logits = each * sizes.whole["gradients"] - (microbatches == 1) * parts["gradients"]
    in_blocks = at_logits + block
    reducing = max(at_logits, parts["gradients"] * (mesh[0] * mesh[1] > 1))
  updating = 4 * (sizes.shard if "optimizer" in sharded else sizes.whole)["update"]
  peak = max(kept + working + in_blocks, kept + logits + at_logits, reducing, updating)
  parts["activations"] = kept + max(0, working - logits)
  parts["logits"] = logits
  parts["passing"] = max(0, peak - parts["activations"] - logits)
  parts = {name: round(value) for name, value in parts.items()}
  return parts | {"total": sum(parts.values())}


@lru_cache(maxsize=256)
def _sizes(
  model: str, vocab_size: int, seq_len: int, source_len: int, mesh: tuple, trained: tuple
) -> Sizes:
  c = ConfigDict(json.loads(model))
  shapes = accounting.shapes(c, vocab_size, seq_len, source_len)
  imagined: Any = SimpleNamespace(shape=dict(zip(sharding.AXES, mesh, strict=True)))
  any_strategy: Any = SimpleNamespace(strategy="ddp")  # which dimensions divide is the same in all
  leaves = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
  layout = sharding.make_layout(any_strategy, leaves, imagined)
  tensor = {p: mesh[2] if layout.tensor_dims[p] >= 0 else 1 for p in shapes}
  shards = {p: mesh[1] if layout.dims[p] >= 0 else 1 for p in shapes}
  size = {p: math.prod(shape) // tensor[p] for p, shape in shapes.items()}
  blocks = {p: size[p] // shapes[p][0] for p in shapes if "/block/" in p}

  def count(numbers: dict[str, int]) -> dict[str, int]:
    return {
      "params": sum(numbers.values()),
      "gradients": sum(numbers[p] for p, _, _ in trained),
      "optimizer": sum(numbers[p] * kept for p, kept, _ in trained),
      "update": sum(numbers[p] * made for p, _, made in trained),
    }

  return Sizes(
    whole=count(size),
    shard=count({p: size[p] // shards[p] for p in shapes}),
    rest=sum(size[p] for p in shapes if p not in blocks and shards[p] > 1),
    block=max(
      sum(n for p, n in blocks.items() if p.startswith(name)) for name in ("encoder", "decoder")
    ),
  )


class BlockBytes(NamedTuple):
  """Bytes that one block's backward pass needs for one sequence, by kind."""

  stream: float  # what its layers add to, and its norms read
  operands: float  # inputs of its products with weights outside the MLP
  heads: float  # queries, keys, values, and what they attended to
  weights: float  # of attention
  hidden: float  # of the MLP, its last operand included
  products: float  # results of its products with weights, and of flash attention
  norms: float  # one array for each norm
  again: float  # operands that several products share, once more for each


def _block(c: ConfigDict, stack: StackLengths, tensor: int, fused: bool) -> BlockBytes:
  T, S, D = stack.length, stack.memory, c.width
  operand = 2 if c.dtype == "bfloat16" else 4
  if c.dtype == "bfloat16" and not fused:
    operand += 4  # a CPU widens them, all layers' at once
  queries, keys = (heads * c.head_width / tensor for heads in (c.heads, c.kv_heads))
  hidden = mlp_width(c) / tensor
  gates = 2 if c.mlp in GATED else 1
  between = _between(c)
  kept = 1 if c.mlp == "relu" else between * gates  # of each hidden number: see `layers.HIDDEN`
  attend = 2 if fused and c.dtype == "bfloat16" else 4
  block = BlockBytes(
    stream=between * T * D * (3 if S else 2),
    operands=operand * T * ((D + queries) * (2 if S else 1) + D),
    heads=0.0,
    weights=0.0 if fused else 4 * T * (T + S) * c.heads / tensor,
    hidden=T * hidden * (kept + operand),
    products=between * T * gates * hidden,
    norms=between * T * D * (3 if S else 2),
    # What lies between products in bfloat16 is their operand as it is.
    again=0.0 if between == 2 else operand * T * D * (2 + gates - 1),
  )
  for seen in (T, S) if S else (T,):
    normed = c.qk_norm * (T * queries + seen * keys)
    block = block._replace(
      heads=block.heads + between * normed + 2 * attend * (T + seen) * queries,
      products=block.products
      + between * (T * queries + 2 * seen * keys + T * D)
      + fused * T * (attend * queries + 4 * c.heads / tensor),
      norms=block.norms + between * normed,
    )
  return block


def _between(model_config: ConfigDict) -> int:
  """Returns the bytes of a number between products."""
  return 2 if model_config.activations == "bfloat16" else 4


def _activations(
  config: ConfigDict, vocab_size: int, seq_len: int, source_len: int, mesh: tuple, fused: bool
) -> tuple[float, float]:
  """Counts the bytes of one sequence: kept for the backward pass, and a block at work."""
  c, tensor = config.model, mesh[2]
  alone = mesh[0] * mesh[1] == 1
  kept = peak = 0.0
  for stack in accounting.stacks(c, seq_len, source_len):
    b = _block(c, stack, tensor, fused)
    d, f = (_between(c) * stack.length * x for x in (c.width, mlp_width(c) / tensor))
    distinct = b.stream + b.operands + b.heads
    if c.remat == "none" or not c.scan:
      kept += stack.depth * (distinct + b.weights + b.hidden)
      # XLA merges what products share, unless a device is alone.
      kept += stack.depth * (b.again if alone else 0)
      # At first all but the MLP's is read; then the MLP's derivative, or that of attention.
      read = distinct + b.again + b.weights + d
      work = read + max(3 * f, 2 * f + b.norms + d, b.weights + d)
    elif c.remat == "dots":
      kept += stack.depth * (d + b.products)
      work = distinct + 2 * d + max(2 * f, 2 * b.weights)
    else:
      kept += stack.depth * d
      work = distinct + 2 * d + b.weights + max(REPEATED[c.mlp] * f, b.weights)
    peak = max(peak, kept + work)  # the derivative of a later stack has freed what that had kept
  batch = 20 * (seq_len + source_len)  # tokens, targets, weights, segments
  return kept + batch, peak - kept


def _logits(c: ConfigDict, vocab_size: int, tokens: float, tensor: int, fused: bool) -> float:
  """Counts the bytes of the head at work on so many tokens."""
  chunks = ops.loss_chunks(math.ceil(tokens), vocab_size, c.logits_at_once)
  gradient = 2 if fused and c.dtype == "bfloat16" else 4  # bytes of each, as products read them
  at_once = (4 + gradient) * tokens / chunks * vocab_size / tensor + 3 * 4 * tokens * c.width
  # A chunk's gradient of the head, beside their sum.
  return at_once + (chunks > 1) * 4 * c.width * vocab_size / tensor
