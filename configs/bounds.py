"""What the value of a field may be: names from a list, or numbers from a range."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from configs.errors import ConfigError


class Field(NamedTuple):
  """A default, and which values may stand in its place."""

  default: Any
  choices: tuple[str, ...] = ()  # (): any value that `holds`
  holds: Callable[[Any], bool] = bool
  need: str = ""  # what a value that does not hold must do

  def check(self, name: str, value: Any) -> None:
    """Raises ConfigError where the field of that name may not have a value."""
    if self.choices and value not in self.choices:
      known = ", ".join(self.choices)
      raise ConfigError(f"{name}={value!r}: unknown; choose one of {known}")
    if not self.choices and not self.holds(value):
      raise ConfigError(f"{name}={value}: must {self.need}")


class Mapping(NamedTuple):
  """A field of names that the user chooses, each with a value; {} by default, and never locked."""

  of: str  # what a name has: "text", or "fields" of the schema

  def check_key(self, name: str, key: str) -> None:
    """Raises ConfigError where a key cannot be written as a flag."""
    if not (key.isidentifier() and key.isascii()):
      raise ConfigError(f"{name}.{key}: {key!r} must consist of letters, digits and _")

  def check(self, name: str, values: Any) -> None:
    """Raises ConfigError where a key of the field cannot be used, or has another kind of value."""
    for key, value in values.items():
      self.check_key(name, key)
      if (self.of == "text") != isinstance(value, str):
        raise ConfigError(f"{name}.{key}={value!r}: must be {self.of}")


def one_of(*choices: str) -> Field:
  """Makes a field of the names it may have; the first is its default."""
  return Field(choices[0], choices)


def _numbers(holds: Callable[[Any], bool], need: str) -> Callable[[float], Field]:
  return lambda default: Field(default, holds=holds, need=need)


number = _numbers(math.isfinite, "be a number")
at_least_0 = _numbers(lambda x: 0 <= x < math.inf, "not be negative")
at_least_1 = _numbers(lambda x: 1 <= x < math.inf, "be at least 1")
positive = _numbers(lambda x: 0 < x < math.inf, "be positive")
between_0_and_1 = _numbers(lambda x: 0 < x < 1, "lie in (0, 1)")
below_1 = _numbers(lambda x: 0 <= x < 1, "lie in [0, 1)")
up_to_1 = _numbers(lambda x: 0 < x <= 1, "lie in (0, 1]")
share = _numbers(lambda x: 0 <= x <= 1, "lie in [0, 1]")
byte_symbols = _numbers(lambda x: 2 <= x <= 256, "be 2 to 256, as a symbol is a byte")
percent = _numbers(lambda x: 0 < x < 100, "lie in (0, 100)")
seed = _numbers(lambda x: 0 <= x < 2**32, "lie in [0, 2^32)")
