"""Which numbers a field of the schema may hold: one table, looked at before anything is spent."""

import math
from collections.abc import Callable

from ml_collections import ConfigDict

from configs.errors import ConfigError

Bound = tuple[Callable[[float], bool], str]  # whether it holds, and what a number must do

COUNT: Bound = (lambda x: 1 <= x < math.inf, "be at least 1")
NOT_NEGATIVE: Bound = (lambda x: 0 <= x < math.inf, "not be negative")
POSITIVE: Bound = (lambda x: 0 < x < math.inf, "be positive")
BELOW_ONE: Bound = (lambda x: 0 <= x < 1, "lie in [0, 1)")
PERCENT: Bound = (lambda x: 0 < x < 100, "lie in (0, 100)")
SEED: Bound = (lambda x: 0 <= x < 2**32, "lie in [0, 2^32)")

BOUNDS: dict[str, dict[Bound, tuple[str, ...]]] = {
  "": {SEED: ("seed",)},
  "model": {
    NOT_NEGATIVE: (
      *("width", "depth", "encoder_depth", "heads", "kv_heads", "head_width", "mlp_width"),
      *("token_types", "logits_at_once", "norm_eps"),
    ),
    POSITIVE: ("mlp_ratio", "rotary_base", "init_std", "mup_base_width"),
    BELOW_ONE: ("dropout",),
  },
  "data": {
    COUNT: ("seq_len", "batch_size", "markov_tokens"),
    (lambda x: x >= 2, "be at least 2"): ("markov_symbols",),
    POSITIVE: ("max_epochs",),
    PERCENT: ("validation_percent",),
  },
  "optim": {
    NOT_NEGATIVE: (
      *("lr", "warmup_tokens", "weight_decay", "clip_norm", "final_lr_fraction", "z_loss"),
    ),
    POSITIVE: ("lr_ref", "lr_ref_params", "eps"),
    (math.isfinite, "be a number"): ("lr_exponent",),
    BELOW_ONE: ("b1", "b2"),
    (lambda x: 0 < x <= 1, "lie in (0, 1]"): ("cooldown_fraction",),
  },
  "sharding": {COUNT: ("microbatches",), NOT_NEGATIVE: ("shard_factor", "device_memory")},
  "train": {
    COUNT: ("tokens", "log_every_steps", "eval_tokens", "eval_batch_size"),
    NOT_NEGATIVE: ("eval_every_steps", "checkpoint_every_seconds", "stop_at_step"),
  },
}


def check(config: ConfigDict) -> None:
  """Raises ConfigError where a number of a config lies where none may lie."""
  for section, bounds in BOUNDS.items():
    fields = config[section] if section else config
    for (holds, need), names in bounds.items():
      for name in names:
        if not holds(fields[name]):
          field = f"{section}.{name}".lstrip(".")
          raise ConfigError(f"{field}={fields[name]}: must {need}")
