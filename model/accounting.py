"""What a model costs: parameters, by the shapes of the model itself, and FLOPs, by arithmetic.

Parameters come in four groups that sum to the total: `embedding` and `positions` (also those of a
relative bias, and token types) are looked up, `body` and `head` are multiplied for every token. A
tied matrix is both looked up and multiplied; it is counted once, in `head`.

FLOPs are those of the model's matrix products, each counted once: a multiply-add is 2, and the
backward pass costs twice the forward pass. Attention counts the pairs that its mask allows in a
whole window; isolated documents and padding are not deducted. Left out, as they are not products
and vanish as the width grows: norms, softmax, activation functions, rotary rotation, residual sums,
look-ups (even where a backend carries out a look-up's gradient as a product), the optimizer. Left
out, as repetition: what rematerialisation and the loss in chunks compute again. Evaluation is not
counted. A run that trains a part of its weights (`train.trainable`) is charged the whole backward
pass.

In all functions, `model_config` is `config.model`, resolved (`configs.ladders.resolve`);
`vocab_size` is V, special tokens included; `seq_len` is T and `source_len` S, the tokens of an
encoder-decoder's encoder (0 in the other families). Each raises ConfigError where S is missing, or
given to a family that has no use for it.
"""

import functools
import math
import re
from typing import NamedTuple

from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict

from configs import base
from configs.errors import ConfigError
from model import transformer

GROUPS = ("embedding", "positions", "body", "head")
CONVENTIONS = {"body_head": ("body", "head"), "body": ("body",), "total": GROUPS}


class StackLengths(NamedTuple):
  """The tokens that one stack of blocks reads, and what they see."""

  name: str  # encoder | decoder
  depth: int
  length: int  # tokens that pass through it
  pairs: float  # (query, key) pairs of its self-attention
  memory: int  # tokens that its cross-attention sees; 0: it has none


def group(path: str) -> str:
  """Returns the group of the parameter at a path.

  All norms of the residual stream belong to the body. A tied embedding is "embedding" here: by its
  path it cannot be told apart (`param_groups` counts it as head).
  """
  parts = path.split("/")
  if parts[0] in ("embedding", "head"):
    return parts[0]
  looked_up = parts[0] == "token_types" or parts[1] in ("positions", "relative")
  return "positions" if looked_up else "body"


def shapes(
  model_config: ConfigDict, vocab_size: int, seq_len: int, source_len: int = 0
) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every parameter by its path, such as "decoder/block/mlp/up/kernel".

  Stacked blocks have a leading axis of their depth.
  """
  stacks(model_config, seq_len, source_len)  # refuses lengths that do not fit the family
  return _shapes(FrozenConfigDict(model_config), vocab_size, seq_len, source_len)


@functools.lru_cache(maxsize=1024)  # tracing a model takes some 40 ms
def _shapes(
  model_config: FrozenConfigDict, vocab_size: int, seq_len: int, source_len: int
) -> dict[str, tuple[int, ...]]:
  def build() -> transformer.Transformer:
    return transformer.Transformer(model_config, vocab_size, seq_len, nnx.Rngs(0), source_len)

  params = nnx.state(nnx.eval_shape(build), nnx.Param)
  return {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(params)}


def param_groups(
  model_config: ConfigDict, vocab_size: int, seq_len: int, source_len: int = 0
) -> dict[str, int]:
  """Counts the parameters by group, and their sum under "total"."""
  groups = dict.fromkeys(GROUPS, 0)
  for path, shape in shapes(model_config, vocab_size, seq_len, source_len).items():
    groups[group(path)] += math.prod(shape)
  if model_config.tied:
    groups["head"] += groups["embedding"]
    groups["embedding"] = 0
  return groups | {"total": sum(groups.values())}


def n_params(groups: dict[str, int], convention: str) -> int:
  """Returns N as one of CONVENTIONS counts it."""
  base.FIT["params"].check("fit.params", convention)
  return sum(groups[name] for name in CONVENTIONS[convention])


def forward_flops_per_sequence(
  model_config: ConfigDict, vocab_size: int, seq_len: int, source_len: int = 0
) -> float:
  """Counts the FLOPs of one sequence's forward pass.

  A decoder's token attends to itself and to what precedes it: self-attention is charged its causal
  half, also where a backend computes and masks the full square, and also where a prefix is visible
  as a whole. An encoder is charged the square, cross-attention T x S, and its keys and values once
  for each token of the source, in each block. The head is charged for all T tokens.
  """
  c = model_config
  flops = 2.0 * seq_len * c.width * vocab_size * c.tied
  lengths = {stack.name: stack for stack in stacks(c, seq_len, source_len)}
  for path, shape in shapes(c, vocab_size, seq_len, source_len).items():
    if path.endswith("/kernel"):
      of_memory = re.search("/cross_attention/(key|value)/", path)
      stack = lengths.get(path.split("/")[0])
      tokens = source_len if of_memory else stack.length if stack else seq_len
      flops += 2 * tokens * math.prod(shape)
  pair = 2 * 2 * c.heads * c.head_width  # a score, and a weighted value
  for stack in lengths.values():
    flops += pair * stack.depth * (stack.pairs + stack.length * stack.memory)
  return flops


def train_flops_per_sequence(
  model_config: ConfigDict, vocab_size: int, seq_len: int, source_len: int = 0
) -> float:
  """Counts the training FLOPs of one sequence: forward, and twice that for the backward pass."""
  return 3 * forward_flops_per_sequence(model_config, vocab_size, seq_len, source_len)


def stacks(model_config: ConfigDict, seq_len: int, source_len: int) -> list[StackLengths]:
  """Returns the stacks of a model, in the order in which they run."""
  c = model_config
  if (c.family == "encoder_decoder") != (source_len > 0):
    raise ConfigError(
      f"model.family={c.family!r}: source_len={source_len}; an encoder_decoder has an encoder's "
      "length, and no other family has"
    )
  causal = seq_len * (seq_len + 1) / 2
  if c.family == "encoder_decoder":
    return [
      StackLengths("encoder", c.encoder_depth, source_len, source_len**2, memory=0),
      StackLengths("decoder", c.depth, seq_len, causal, memory=source_len),
    ]
  pairs = causal if c.family == "decoder" else seq_len**2
  return [StackLengths(c.family, c.depth, seq_len, pairs, memory=0)]
