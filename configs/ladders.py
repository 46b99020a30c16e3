"""Model families: one dial (`model.size`) gives width, depth and heads.

The last column of each table is N = body + head in thousands of parameters, for the default block
(MLP ratio 4, no biases) and the byte vocabulary (V = 257): 12 L D^2 + V D, and the norms' gains.
`tests/model/test_accounting.py` checks it against the parameters of the models themselves.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import base
from configs.errors import ConfigError


class Rung(NamedTuple):
  """Shape of one model: width D, depth L, heads H."""

  width: int
  depth: int
  heads: int


# Rungs about a factor 1.3 apart in N, so that any predicted N* has a neighbour within 20 %. Depth
# and number of heads stay the same over the first dozen: a law in N is one of a family of like
# shapes, and at this scale a second head or a third layer is worth as much as twice the parameters.
SMALL = {
  #         D   L  H     N / 1e3
  0: Rung(12, 3, 2),  # 8.4
  1: Rung(16, 3, 2),  # 13.1
  2: Rung(20, 3, 2),  # 20.2
  3: Rung(24, 3, 2),  # 27.1
  4: Rung(28, 3, 2),  # 35.0
  5: Rung(32, 3, 2),  # 46.2
  6: Rung(36, 3, 2),  # 56.3
  7: Rung(40, 3, 2),  # 67.3
  8: Rung(48, 3, 2),  # 95.8
  9: Rung(56, 3, 2),  # 129
  10: Rung(64, 3, 2),  # 163
  11: Rung(72, 3, 2),  # 206
  12: Rung(80, 3, 2),  # 254
  13: Rung(96, 3, 3),  # 357
  14: Rung(96, 4, 3),  # 468
  15: Rung(112, 4, 4),  # 629
  16: Rung(128, 4, 4),  # 825
  17: Rung(144, 4, 4),  # 1,034
  18: Rung(160, 4, 5),  # 1,266
  19: Rung(160, 5, 5),  # 1,573
  20: Rung(192, 4, 6),  # 1,821
  21: Rung(192, 5, 6),  # 2,264
  22: Rung(224, 5, 7),  # 3,080
  23: Rung(256, 5, 8),  # 3,991
  24: Rung(256, 6, 8),  # 4,776
  25: Rung(320, 6, 10),  # 7,475
  26: Rung(384, 6, 12),  # 10,721
}


def standard(size: int) -> Rung:
  """Depth is the dial, width 64 per layer, heads of 64: N grows as 49,152 size^3."""
  return Rung(width=64 * size, depth=size, heads=size)


LADDERS = {"small": SMALL, "standard": {size: standard(size) for size in range(1, 65)}}


def rungs(ladder: str) -> dict[int, Rung]:
  """Returns the rungs of a ladder by size."""
  base.MODEL["ladder"].check("model.ladder", ladder)
  return LADDERS[ladder]


def resolve(config: ConfigDict) -> ConfigDict:
  """Returns a checked copy of a config whose model has its shape filled in.

  Width, depth and heads come from the ladder; then the width of a head, the heads of keys and
  values, and the depth of an encoder-decoder's encoder from those.
  """
  base.check_fields(config)
  config = config.copy_and_resolve_references()
  m = config.model
  if not (m.width and m.depth and m.heads):
    ladder = rungs(m.ladder)
    if m.size not in ladder:
      raise ConfigError(
        f"model.size={m.size}: ladder {m.ladder!r} has {min(ladder)} to {max(ladder)}"
      )
    rung = ladder[m.size]
    m.width = m.width or rung.width
    m.depth = m.depth or rung.depth
    m.heads = m.heads or rung.heads
  if not m.head_width and m.width % m.heads:
    raise ConfigError(
      f"model.heads={m.heads}: does not divide the width {m.width}; choose a divisor, or set "
      "model.head_width"
    )
  m.head_width = m.head_width or m.width // m.heads
  if m.head_width % 2:
    raise ConfigError(f"model.head_width={m.head_width}: heads are of an even width")
  if m.rotary_low >= m.rotary_high:
    raise ConfigError(
      f"model.rotary_low={m.rotary_low}: must be less than rotary_high={m.rotary_high}"
    )
  m.kv_heads = m.kv_heads or m.heads
  if m.heads % m.kv_heads:
    raise ConfigError(
      f"model.kv_heads={m.kv_heads}: the {m.heads} heads must divide evenly among them"
    )
  if m.positions == "relative" and not 4 <= m.relative_buckets < 2 * m.relative_distance:
    raise ConfigError(
      f"model.relative_buckets={m.relative_buckets}: must be at least 4, and less than twice "
      f"relative_distance={m.relative_distance}"
    )
  if m.positions == "sinusoidal" and m.width % 2:
    raise ConfigError(f"model.width={m.width}: sinusoidal positions need an even one")
  for field in ("weights", "activations"):
    if m[field] == "bfloat16" and m.dtype != "bfloat16":
      raise ConfigError(
        f"model.{field}='bfloat16': with model.dtype={m.dtype!r} products gain nothing by it; set "
        f"model.dtype='bfloat16', or leave model.{field} in float32"
      )
  if m.depth_scaling != "standard" and m.norm_position == "post":
    raise ConfigError(
      f"model.depth_scaling={m.depth_scaling!r}: is stated for pre-norm blocks; set "
      "model.norm_position='pre', or model.depth_scaling='standard'"
    )
  if m.family == "encoder_decoder":
    m.encoder_depth = m.encoder_depth or m.depth
  return config
