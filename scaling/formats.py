"""Quantities and tables as people read them: 90.4k, 2.40e12, 79.6 GiB, aligned columns."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

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


def flops(value: float | None) -> str:
  """Formats a compute [FLOPs]: 2.40e12."""
  return number(value, ".2e").replace("e+", "e")


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


def empty_table(columns: str) -> Table:
  """Makes a table without rows: the first column aligned to the left, the others to the right."""
  table = Table(box=None, pad_edge=False, padding=(0, 1))
  for i, name in enumerate(columns.split()):
    table.add_column(name, justify="left" if i == 0 else "right")
  return table


def table_text(table: Table, width: int = 200) -> str:
  """Renders a table as lines of text."""
  stream = io.StringIO()
  Console(file=stream, width=width, highlight=False).print(table)
  return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Renders rows of text as lines, the first column aligned to the left."""
  lines = [[cell.replace("`", "") for cell in row] for row in (columns, *rows)]
  width = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = []
  for name, *values in lines:
    cells = [value.rjust(w) for value, w in zip(values, width[1:], strict=True)]
    text.append("  ".join([name.ljust(width[0]), *cells]).rstrip())
  return "\n".join(text)
