"""Fields of a config.json of the transformers library, read by type and within bounds."""

from collections.abc import Mapping
from typing import Any

from configs.errors import ConfigError

REQUIRED = object()  # in place of a default

KINDS = {bool: "true or false", int: "a count from 1 to {most}", float: "a number", str: "a name"}
MOST = 2**28  # of a count that could be meant
MOST_LAYERS = 2**12


def typed(theirs: Mapping, field: str, kind: type, default: Any, most: int = MOST) -> Any:
  """Reads a field of theirs, of a kind, within bounds; the default where it is absent or null."""
  value = theirs.get(field)
  if value is None and default is REQUIRED:
    raise ConfigError(f"{field}: missing; a config.json of this model_type names it")
  if value is None:
    return default
  right = isinstance(value, (int, float) if kind is float else kind)
  right &= isinstance(value, bool) == (kind is bool)
  if right and kind is int:
    right = 1 <= value <= most
  if right and kind is float:
    right = -1e30 < value < 1e30  # and no NaN
  if not right:
    need = KINDS[kind].format(most=f"{most:,}")
    raise ConfigError(f"{field}={str(value)[:60]!r}: must be {need}")
  return value


def token_id(theirs: Mapping, field: str, vocab_size: int) -> int | None:
  """Reads a token id, of several the first; None where there is none."""
  value = theirs.get(field)
  ids = value if isinstance(value, list) else [value]
  for index in ids:
    if type(index) is int and 0 <= index < vocab_size:
      return index
    if index is not None:
      break
  if ids in ([], [None]):
    return None
  raise ConfigError(
    f"{field}={str(value)[:60]}: must be a token id, 0 to {vocab_size - 1:,}, or a list of them"
  )


def refuse(field: str, value: Any, only: Any) -> None:
  """Raises ConfigError where a field of theirs has another value than the only one of ours."""
  if value != only:
    raise ConfigError(f"{field}={value!r}: not supported; our model has {only!r} only")
