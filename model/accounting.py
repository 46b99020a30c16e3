"""What a model costs, by arithmetic on its resolved config: parameters and FLOPs. No arrays.

Parameters come in four groups that sum to the total: `embedding` and `positions` (also those of a
relative bias, and token types) are looked up, `body` and `head` are multiplied for every token. A
tied matrix is both looked up and multiplied; it is counted once, in `head`.

FLOPs are those of every matrix product: a multiply-add is 2, and the backward pass costs twice the
forward pass. Left out, because they are not products and vanish as the width grows: norms,
softmax, activation functions, rotary rotation, residual sums, look-ups (even where a backend
carries out a look-up's gradient as a product), the optimizer, and what rematerialisation repeats.

In all functions, `model_config` is `config.model`, resolved (`configs.ladders.resolve`);
`vocab_size` is V, special tokens included; `seq_len` is T and `source_len` S, the tokens of an
encoder-decoder's encoder (0 in the other families). Each raises ConfigError where S is missing, or
given to a family that has no use for it.
"""

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from configs.errors import ConfigError

GROUPS = ("embedding", "positions", "body", "head")
CONVENTIONS = {"body_head": ("body", "head"), "body": ("body",), "total": GROUPS}
GATED = ("geglu", "swiglu")

Matrices = list[tuple[int, int]]  # (fan in, fan out) of dense layers


class Stack(NamedTuple):
  """One stack of blocks, and what it sees."""

  name: str  # encoder | decoder
  depth: int
  length: int  # tokens that pass through it
  pairs: float  # (query, key) pairs of its self-attention
  memory: int  # tokens that its cross-attention sees; 0: it has none


def group(path: str) -> str:
  """Returns the group of the parameter at `path`, such as "decoder/block/mlp/up/kernel".

  All norms of the residual stream belong to the body. A tied embedding is "embedding" here: by its
  path it cannot be told apart (`param_groups` counts it as head).
  """
  parts = path.split("/")
  if parts[0] in ("embedding", "head"):
    return parts[0]
  looked_up = parts[0] == "token_types" or parts[1] in ("positions", "relative")
  return "positions" if looked_up else "body"


def head_turns(tokens: int, vocab_size: int, logits_at_once: int) -> int:
  """Returns in how many parts the loss of so many tokens is taken, by `model.logits_at_once`."""
  return -(-tokens * vocab_size // logits_at_once) if logits_at_once else 1


def mlp_width(model_config: ConfigDict) -> int:
  """Returns F, the hidden width of the feed-forward layer.

  A gated MLP has three matrices instead of two, hence 2/3 of the width that `mlp_ratio` gives
  (Shazeer 2020, arXiv:2002.05202), rounded to a multiple of 8.
  """
  c = model_config
  width = c.mlp_ratio * c.width
  return c.mlp_width or (8 * round(width / 12) if _gated(c) else round(width))


def shapes(
  model_config: ConfigDict, vocab_size: int, seq_len: int, source_len: int = 0
) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every parameter by its path, such as "decoder/block/mlp/up/kernel".

  Stacked blocks have a leading axis of their depth.
  """
  c = model_config
  d, k, f, queries = c.width, c.head_width, mlp_width(c), c.heads * c.head_width

  def norm(width: int) -> dict:
    return {"scale": (width,)} | ({"bias": (width,)} if c.norm == "layer" and c.biases else {})

  def dense(fan_in: int, fan_out: int) -> dict:
    return {"kernel": (fan_in, fan_out)} | ({"bias": (fan_out,)} if c.biases else {})

  attention = {
    "query": dense(d, queries),
    "key": dense(d, c.kv_heads * k),
    "value": dense(d, c.kv_heads * k),
    "out": dense(queries, d),
  } | ({"query_norm": norm(k), "key_norm": norm(k)} if c.qk_norm else {})
  mlp = {"up": dense(d, f), "down": dense(f, d)} | ({"gate": dense(d, f)} if _gated(c) else {})
  block = {"attention_norm": norm(d), "attention": attention, "mlp_norm": norm(d), "mlp": mlp}
  cross = {"cross_norm": norm(d), "cross_attention": attention}
  tree: dict = {"embedding": {"table": (vocab_size, d)}, "head": {}}
  for stack in stacks(c, seq_len, source_len):
    blocks = _flat(block | (cross if stack.memory else {}))
    tree[stack.name] = {"block": {path: (stack.depth, *shape) for path, shape in blocks.items()}}
    if c.positions == "learned":
      tree[stack.name]["positions"] = {"table": (stack.length, d)}
    if c.positions == "relative":
      tree[stack.name]["relative"] = {"table": (c.relative_buckets, c.heads)}
    if c.norm_position == "pre":
      tree[stack.name]["final_norm"] = norm(d)
  if c.token_types:
    tree["token_types"] = {"table": (c.token_types, d)}
  if c.embedding_norm:
    tree["embedding_norm"] = norm(d)
  if c.head_transform:
    tree["head"] = {"transform": dense(d, d), "norm": norm(d)}
  if not c.tied:
    tree["head"]["kernel"] = (d, vocab_size)
  if c.head_bias:
    tree["head"]["bias"] = (vocab_size,)
  return _flat(tree)


def param_groups(
  model_config: ConfigDict, vocab_size: int, seq_len: int, source_len: int = 0
) -> dict[str, int]:
  """Returns the number of parameters by group, and their sum under "total"."""
  groups = dict.fromkeys(GROUPS, 0)
  for path, shape in shapes(model_config, vocab_size, seq_len, source_len).items():
    groups[group(path)] += math.prod(shape)
  if model_config.tied:
    groups["head"] += groups["embedding"]
    groups["embedding"] = 0
  return groups | {"total": sum(groups.values())}


def n_params(groups: dict[str, int], convention: str) -> int:
  """Returns N as `convention` counts it: body_head (every multiplied weight), body, or total.

  Raises:
    ConfigError: there is no such convention.
  """
  if convention not in CONVENTIONS:
    raise ConfigError(f"fit.params={convention!r}: unknown; choose one of {sorted(CONVENTIONS)}")
  return sum(groups[name] for name in CONVENTIONS[convention])


def forward_flops_per_sequence(
  model_config: ConfigDict, vocab_size: int, seq_len: int, source_len: int = 0
) -> float:
  """Returns the FLOPs of one sequence's forward pass.

  A decoder's token attends to itself and to what precedes it: self-attention is charged its causal
  half, also where a backend computes and masks the full square, and also where a prefix is visible
  as a whole. An encoder is charged the square, cross-attention T x S, and its keys and values once
  for each token of the source, in each block. The head is charged for all T tokens.
  """
  c = model_config
  pair = 2 * 2 * c.heads * c.head_width  # a score, and a weighted value
  flops = seq_len * (_product(_transform(c)) + _product([(c.width, vocab_size)]))
  for stack in stacks(c, seq_len, source_len):
    dense = _product(_queries(c) + _keys(c) + _mlp(c))
    block = stack.length * dense + pair * stack.pairs
    if stack.memory:
      block += stack.length * _product(_queries(c)) + stack.memory * _product(_keys(c))
      block += pair * stack.length * stack.memory
    flops += stack.depth * block
  return float(flops)


def train_flops_per_sequence(
  model_config: ConfigDict, vocab_size: int, seq_len: int, source_len: int = 0
) -> float:
  """Returns the training FLOPs of one sequence: forward, and twice that for the backward pass."""
  return 3 * forward_flops_per_sequence(model_config, vocab_size, seq_len, source_len)


def petaflop_s_days(flops: float) -> float:
  """Returns FLOPs in petaflop/s-days (1e15 x 86,400)."""
  return flops / 8.64e19


def stacks(model_config: ConfigDict, seq_len: int, source_len: int) -> list[Stack]:
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
      Stack("encoder", c.encoder_depth, source_len, source_len**2, memory=0),
      Stack("decoder", c.depth, seq_len, causal, memory=source_len),
    ]
  pairs = causal if c.family == "decoder" else seq_len**2
  return [Stack(c.family, c.depth, seq_len, pairs, memory=0)]


def _flat(tree: dict) -> dict[str, tuple[int, ...]]:
  """Returns the leaves of nested dictionaries by their path."""
  leaves: dict[str, tuple[int, ...]] = {}
  for name, branch in tree.items():
    below = _flat(branch) if isinstance(branch, dict) else {"": branch}
    leaves |= {f"{name}/{path}".rstrip("/"): leaf for path, leaf in below.items()}
  return leaves


def _gated(model_config: ConfigDict) -> bool:
  return model_config.mlp in GATED


def _queries(model_config: ConfigDict) -> Matrices:
  """The dense layers of an attention that see the tokens that ask: query and out."""
  d, width = model_config.width, model_config.heads * model_config.head_width
  return [(d, width), (width, d)]


def _keys(model_config: ConfigDict) -> Matrices:
  """Those that see the tokens that are asked: key and value."""
  return [(model_config.width, model_config.kv_heads * model_config.head_width)] * 2


def _mlp(model_config: ConfigDict) -> Matrices:
  d, f = model_config.width, mlp_width(model_config)
  return [(d, f)] * (2 if _gated(model_config) else 1) + [(f, d)]


def _transform(model_config: ConfigDict) -> Matrices:
  return [(model_config.width, model_config.width)] * int(model_config.head_transform)


def _product(matrices: Matrices) -> int:
  """FLOPs of one token's products with these matrices."""
  return sum(2 * fan_in * fan_out for fan_in, fan_out in matrices)
