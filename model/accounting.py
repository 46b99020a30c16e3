"""What a model costs, by arithmetic on its resolved config: parameters, FLOPs, bytes. No arrays.

Parameters come in four groups that sum to the total: `embedding` and `positions` (also those of a
relative bias, and token types) are looked up, `body` and `head` are multiplied for every token. A
tied matrix is both looked up and multiplied; it is counted once, in `head`.

FLOPs are those of every matrix product: a multiply-add is 2, and the backward pass costs twice the
forward pass. Left out, because they are not products and vanish as the width grows: norms,
softmax, activation functions, rotary rotation, residual sums, look-ups (even where a backend
carries out a look-up's gradient as a product), the optimizer, and what rematerialisation repeats.

In all functions, `model_config` is `config.model`, resolved (`configs.ladders.resolve`);
`vocab_size` is V, special tokens included; `seq_len` is T and `source_len` S, the tokens of an
encoder-decoder's encoder (0 in the other families). Each raises ValueError where S is missing, or
given to a family that has no use for it.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

GROUPS = ("embedding", "positions", "body", "head")
CONVENTIONS = {"body_head": ("body", "head"), "body": ("body",), "total": GROUPS}
GATED = ("geglu", "swiglu")

Matrices = list[tuple[int, int]]  # (fan in, fan out) of dense layers


class Stack(NamedTuple):
  """One stack of blocks, and what it sees."""

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


def mlp_width(model_config: ConfigDict) -> int:
  """Returns F, the hidden width of the feed-forward layer.

  A gated MLP has three matrices instead of two, hence 2/3 of the width that `mlp_ratio` gives
  (Shazeer 2020, arXiv:2002.05202), rounded to a multiple of 8.
  """
  c = model_config
  width = c.mlp_ratio * c.width
  return c.mlp_width or (8 * round(width / 12) if c.mlp in GATED else round(width))


def param_groups(
  model_config: ConfigDict, vocab_size: int, seq_len: int, source_len: int = 0
) -> dict[str, int]:
  """Returns the number of parameters by group, and their sum under "total"."""
  c = model_config
  stacks = _stacks(c, seq_len, source_len)
  per_unit = 2 if c.norm == "layer" and c.biases else 1  # a gain, and perhaps a bias
  norm = per_unit * c.width
  attention = _size(c, _queries(c) + _keys(c)) + c.qk_norm * 2 * per_unit * c.head_width + norm
  block = attention + _size(c, _mlp(c)) + norm
  body = c.embedding_norm * norm
  positions = c.token_types * c.width
  for stack in stacks:
    body += stack.depth * (block + (attention if stack.memory else 0))
    body += norm if c.norm_position == "pre" else 0
    positions += {"learned": stack.length * c.width, "relative": c.relative_buckets * c.heads}.get(
      c.positions, 0
    )
  table = vocab_size * c.width
  transform = _size(c, _transform(c)) + c.head_transform * norm
  groups = {
    "embedding": 0 if c.tied else table,
    "positions": positions,
    "body": body,
    "head": table + transform + c.head_bias * vocab_size,
  }
  return groups | {"total": sum(groups.values())}


def n_params(groups: dict[str, int], convention: str) -> int:
  """Returns N as `convention` counts it: body_head (every multiplied weight), body, or total.

  Raises:
    ValueError: there is no such convention.
  """
  if convention not in CONVENTIONS:
    raise ValueError(f"fit.params={convention!r}: unknown; choose one of {sorted(CONVENTIONS)}")
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
  for stack in _stacks(c, seq_len, source_len):
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


def train_memory_bytes(
  model_config: ConfigDict, vocab_size: int, seq_len: int, batch_size: int, source_len: int = 0
) -> dict[str, int]:
  """Estimates the bytes of one training step on one device, and their sum under "total".

  `weights` (4 a parameter), `gradients` (4) and `adam` (8) are exact. `activations` (what the
  backward pass needs from the forward pass, and the working set of one block) and `logits` are an
  estimate, within 30 % of what XLA allocates on a CPU. There, rematerialisation has no effect on
  unrolled layers: without `scan`, take the figure for "none". `batch_size` is that of this device.
  """
  c = model_config
  total = param_groups(c, vocab_size, seq_len, source_len)["total"]
  kept = working = 0
  for stack in _stacks(c, seq_len, source_len):
    saved, weights = _activations(c, stack)
    kept += stack.depth * saved[c.remat]
    repeated = saved["none"] + 2 * weights - (saved["dots"] if c.remat == "dots" else 0)
    working = max(working, repeated)
  parts = {
    "weights": 4 * total,
    "gradients": 4 * total,
    "adam": 8 * total,
    "activations": 4 * batch_size * (kept + working),
    "logits": 2 * 4 * batch_size * seq_len * vocab_size,
  }
  return parts | {"total": sum(parts.values())}


def _stacks(model_config: ConfigDict, seq_len: int, source_len: int) -> list[Stack]:
  c = model_config
  if (c.family == "encoder_decoder") != (source_len > 0):
    raise ValueError(
      f"model.family={c.family!r}: source_len={source_len}; an encoder_decoder has an encoder's "
      "length, and no other family has"
    )
  causal = seq_len * (seq_len + 1) / 2
  if c.family == "encoder_decoder":
    return [
      Stack(c.encoder_depth, source_len, source_len**2, memory=0),
      Stack(c.depth, seq_len, causal, memory=source_len),
    ]
  return [Stack(c.depth, seq_len, causal if c.family == "decoder" else seq_len**2, memory=0)]


def _activations(model_config: ConfigDict, stack: Stack) -> tuple[dict[str, int], int]:
  """Returns how many numbers one block keeps for the backward pass, and its attention weights.

  For one sequence: the first by policy of rematerialisation, counted in what XLA allocates.
  """
  c = model_config
  d, f = c.width, mlp_width(c)
  queries, keys = c.heads * c.head_width, c.kv_heads * c.head_width
  attentions = 2 if stack.memory else 1
  seen = stack.length + stack.memory  # by its attentions together
  weights = c.heads * stack.length * seen
  mlp = {"relu": 2, "gelu": 4, "gelu_exact": 4, "geglu": 7, "swiglu": 5}[c.mlp] * f
  none = attentions * stack.length * (2 * d + 4 * queries) + seen * 3 * queries + weights
  dots = attentions * stack.length * (d + queries) + seen * 2 * keys
  saved = {
    "none": none + stack.length * (d + mlp),
    "dots": dots + stack.length * (d + (2 if c.mlp in GATED else 1) * f),
    "full": stack.length * d,
  }
  return saved, weights


def _queries(model_config: ConfigDict) -> Matrices:
  """The dense layers of an attention that see the tokens that ask: query and out."""
  d, width = model_config.width, model_config.heads * model_config.head_width
  return [(d, width), (width, d)]


def _keys(model_config: ConfigDict) -> Matrices:
  """Those that see the tokens that are asked: key and value."""
  return [(model_config.width, model_config.kv_heads * model_config.head_width)] * 2


def _mlp(model_config: ConfigDict) -> Matrices:
  d, f = model_config.width, mlp_width(model_config)
  return [(d, f)] * (2 if model_config.mlp in GATED else 1) + [(f, d)]


def _transform(model_config: ConfigDict) -> Matrices:
  return [(model_config.width, model_config.width)] * int(model_config.head_transform)


def _size(model_config: ConfigDict, matrices: Matrices) -> int:
  return sum(fan_in * fan_out + model_config.biases * fan_out for fan_in, fan_out in matrices)


def _product(matrices: Matrices) -> int:
  """FLOPs of one token's products with these matrices."""
  return sum(2 * fan_in * fan_out for fan_in, fan_out in matrices)
