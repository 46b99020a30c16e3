"""Quantities and tables as people read them: 90.4k, 2.40e12, 79.6 GiB, aligned columns."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

DASH = "–"  # stands for a value that is not known


def si(value: float | None, _: Any = None) -> str:
  """Formats a count in three digits with an SI letter: 90_432 -> "90.4k"."""
  if value is None or not math.isfinite(value):
    return DASH
  value = float(f"{value:.3g}")
  for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= scale:
      return f"{value / scale:.3g}{letter}"
  return f"{value:.3g}"


def number(value: float | None, form: str) -> str:
  """Formats a number, or a dash where there is none."""
  return DASH if value is None or not math.isfinite(value) else f"{value:{form}}"


def nats(value: float | None) -> str:
  """Formats a loss [nats per token]."""
  return number(value, ".4f")


def exponent(value: float | None) -> str:
  """Formats an exponent of a law."""
  return number(value, ".3f")


def flops(value: float | None) -> str:
  """Formats a compute [FLOPs]: 2.40e12."""
  return number(value, ".2e").replace("e+", "e")


def pf_days(flops: float) -> float:
  """Converts FLOPs into petaflop/s-days (1e15 x 86,400)."""
  return flops / 8.64e19


def ratio(value: float | None) -> str:
  """Formats tokens per parameter, and all else that is known to three digits."""
  return number(value, ".3g")


def bracket(interval: Sequence[float | None] | None, form: Callable[[Any], str] = nats) -> str:
  """Formats an interval, of which an end may be infinite (None)."""
  ends = ("∞" if end is None else form(end) for end in interval or ())
  return f"[{', '.join(ends)}]" if interval else DASH


def yes_no(value: bool | None) -> str:
  """Formats a truth value; False stands out."""
  return {True: "yes", False: "NO", None: DASH}[value]


def gib(size: float) -> str:
  """Formats a number of bytes: "79.6 GiB", "512 MiB"."""
  unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB")
  return f"{size / unit:.{0 if size >= 100 * unit else 1}f} {name}"


def duration(seconds: float) -> str:
  """Formats a time: 42 s, 3:07 min, 2:15 h."""
  if seconds < 60:
    return f"{seconds:.0f} s"
  if seconds < 3600:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
  return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d} h"


def printable(text: str) -> str:
  """Writes what a terminal would obey, as escapes and line ends, in characters it shows."""
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def headed(texts: Mapping[str, str]) -> str:
  """Puts each text, an arm's for instance, under its name, if that is not ""."""
  return "\n\n".join(f"{name}\n\n{text}" if name else text for name, text in texts.items())


def text_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Renders rows of text as lines, the first column aligned to the left; a row may end early."""
  lines = [[printable(cell) for cell in row] for row in (columns, *rows)]
  widths = [max(map(len, column)) for column in zip_longest(*lines, fillvalue="")]
  text = []
  for first, *values in lines:
    cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=False)]
    text.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
  return "\n".join(text)
