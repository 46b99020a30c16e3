"""Two runs to plan before you have the machine for them: `isoflop plan` trains nothing.

isoflop plan --config=configs/large.py:1b --devices=8 --device_memory=80GiB
isoflop plan --config=configs/large.py:70b --devices=512 --device_memory=80GiB

1b   1.0e9 parameters on 20 tokens each, float32
70b  the shape of Llama 2 70B (Touvron et al. 2023, arXiv:2307.09288) on the 1.4e12 tokens and in
     the context of Chinchilla (Hoffmann et al. 2022, arXiv:2203.15556), bfloat16: 5.9e23 FLOPs
"""

from typing import Any

from configs import base
from configs.errors import ConfigError

RUNS: dict[str, dict[str, dict[str, Any]]] = {
  "1b": {
    "model": {"width": 2048, "depth": 18, "heads": 16},
    "data": {"batch_size": 256},
    "train": {"tokens": 20_700_000_000, "eval_batch_size": 256},
  },
  "70b": {
    "model": {
      "width": 8192,
      "depth": 80,
      "heads": 64,
      "kv_heads": 8,
      "mlp_width": 28_672,
      "qk_norm": False,
      "dtype": "bfloat16",
      "weights": "bfloat16",
      "remat": "full",
    },
    "data": {"batch_size": 2048},
    "sharding": {"strategy": "zero3"},
    "train": {"tokens": 1_400_000_000_000, "eval_batch_size": 2048},
  },
}


def get_config(name: str = ""):
  """Configures one of the runs."""
  if name not in RUNS:
    known = ", ".join(RUNS)
    raise ConfigError(f"run {name!r}: unknown; write configs/large.py:NAME with one of {known}")
  c = base.get_config()
  for section, fields in RUNS[name].items():
    c[section].update(fields)
  c.data.tokenizer = "bpe:32000"
  c.data.seq_len = 2048
  return c
