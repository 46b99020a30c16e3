"""Quantities and tables as a terminal shows them: 90.4k, 79.6 GiB, aligned columns."""

import io
import math
from typing import Any

from rich.console import Console
from rich.table import Table


def si(value: float, _: Any = None) -> str:
  """Formats a count in three digits with an SI letter: 90_432 -> "90.4k"."""
  if not math.isfinite(value):
    return "–"
  value = float(f"{value:.3g}")
  for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= scale:
      return f"{value / scale:.3g}{letter}"
  return f"{value:.3g}"


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
