"""What a model costs, by arithmetic on its resolved config: parameters, FLOPs, bytes. No arrays.

Parameters come in four groups that sum to the total: `embedding` and `positions` are looked up,
`body` and `head` are multiplied for every token. A tied matrix is both looked up and multiplied;
it is counted once, in `head`.

FLOPs are those of every matrix product: a multiply-add is 2, and the backward pass costs twice the
forward pass. Left out, because they are not products and vanish as the width grows: norms,
softmax, activation functions, rotary rotation, residual sums, look-ups (even where a backend
carries out a look-up's gradient as a product), the optimizer, and what rematerialisation repeats.
"""

from ml_collections import ConfigDict

GROUPS = ("embedding", "positions", "body", "head")
CONVENTIONS = {"body_head": ("body", "head"), "body": ("body",), "total": GROUPS}
GATED = ("geglu", "swiglu")


def group(path: str) -> str:
  """Returns the group of the parameter at `path`, such as "block/mlp/up/kernel".

  The final norm belongs to the body. A tied embedding is "embedding" here: by its path it cannot
  be told apart (`param_groups` counts it as head).
  """
  top = path.split("/")[0]
  return top if top in ("embedding", "positions", "head") else "body"


def mlp_width(model_config: ConfigDict) -> int:
  """Returns F, the hidden width of the feed-forward layer.

  A gated MLP has three matrices instead of two, hence 2/3 of the width (Shazeer 2020,
  arXiv:2002.05202), rounded to a multiple of 8.
  """
  width = model_config.mlp_ratio * model_config.width
  return 8 * round(width / 12) if model_config.mlp in GATED else round(width)


def _matrices(model_config: ConfigDict) -> list[tuple[int, int]]:
  """Returns (fan in, fan out) of every dense layer of one block."""
  d, f = model_config.width, mlp_width(model_config)
  gate = [(d, f)] if model_config.mlp in GATED else []
  return [(d, d)] * 4 + gate + [(d, f), (f, d)]


def param_groups(model_config: ConfigDict, vocab_size: int, seq_len: int) -> dict[str, int]:
  """Returns the number of parameters by group, and their sum under "total".

  Args:
    model_config: `config.model`, resolved (`configs.ladders.resolve`).
    vocab_size: V.
    seq_len: T, the number of learned positions [tokens].
  """
  c = model_config
  matrices = _matrices(c)
  biases = sum(fan_out for _, fan_out in matrices) if c.biases else 0
  per_unit = 2 if c.norm == "layer" and c.biases else 1  # a gain, and perhaps a bias
  norm = per_unit * c.width
  qk_norms = per_unit * 2 * (c.width // c.heads) if c.qk_norm else 0
  block = sum(fan_in * fan_out for fan_in, fan_out in matrices) + biases + 2 * norm + qk_norms
  groups = {
    "embedding": 0 if c.tied else vocab_size * c.width,
    "positions": seq_len * c.width if c.positions == "learned" else 0,
    "body": c.depth * block + norm,
    "head": vocab_size * c.width,
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


def forward_flops_per_token(model_config: ConfigDict, vocab_size: int, seq_len: int) -> float:
  """Returns the FLOPs of one token's forward pass, averaged over a causal sequence of `seq_len`.

  A token attends to itself and to what precedes it, (T + 1) / 2 keys on average: attention is
  charged its causal half, also where a backend computes and masks the full square.
  """
  c = model_config
  dense = sum(2 * fan_in * fan_out for fan_in, fan_out in _matrices(c))
  attention = 2 * (2 * c.width) * (seq_len + 1) / 2  # scores, and the weighted sum of values
  return float(c.depth * (dense + attention) + 2 * vocab_size * c.width)


def flops_per_token(model_config: ConfigDict, vocab_size: int, seq_len: int) -> float:
  """Returns the training FLOPs per token: forward, and twice that for the backward pass."""
  return 3.0 * forward_flops_per_token(model_config, vocab_size, seq_len)


def petaflop_s_days(flops: float) -> float:
  """Returns FLOPs in petaflop/s-days (1e15 x 86,400)."""
  return flops / 8.64e19


def train_memory_bytes(
  model_config: ConfigDict, vocab_size: int, seq_len: int, batch_size: int
) -> dict[str, int]:
  """Estimates the bytes of one training step on one device, and their sum under "total".

  `weights` (4 a parameter), `gradients` (4) and `adam` (8) are exact. `activations` (what the
  backward pass needs from the forward pass, and the working set of one block) and `logits` are an
  estimate, within 30 % of what XLA allocates on a CPU. There, rematerialisation has no effect on
  unrolled layers: without `scan`, take the figure for "none".

  Args:
    model_config: `config.model`, resolved.
    vocab_size: V.
    seq_len: T [tokens].
    batch_size: sequences per step on this device.
  """
  c = model_config
  tokens = batch_size * seq_len
  total = param_groups(c, vocab_size, seq_len)["total"]
  d, f = c.width, mlp_width(c)
  gated = c.mlp in GATED
  mlp = (5 if gated else 3) * f
  weights = c.heads * seq_len  # attention weights of one token
  saved = {
    "none": 10 * d + mlp + weights,
    "dots": 5 * d + (2 if gated else 1) * f,
    "full": d,
  }[c.remat]
  working = 10 * d + mlp + 3 * weights - (saved if c.remat == "dots" else 0)
  parts = {
    "weights": 4 * total,
    "gradients": 4 * total,
    "adam": 8 * total,
    "activations": 4 * tokens * (c.depth * saved + working),
    "logits": 2 * 4 * tokens * vocab_size,
  }
  return parts | {"total": sum(parts.values())}
