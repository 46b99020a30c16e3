"""Rows of a CSV, JSONL or Parquet file, one after the other; the file never lies in memory whole.

Every row comes with its place ("line 7"), by which an error can name it.
"""

import csv
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import DataError

BATCH_ROWS = 10_000  # of a Parquet file, in memory at once


class Table(NamedTuple):
  """An open file: the names of its columns, and its rows as (place, {column: value})."""

  header: list[str]
  rows: Iterator[tuple[str, dict[str, Any]]]


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Table]:
  """Opens a file of runs: .jsonl and .ndjson, .parquet, .tsv, and anything else as CSV.

  A column of a JSONL file is a key of its first row. The columns of a CSV file are parted by what
  its header has most of: commas, semicolons or tabs; spaces beside them do not count.

  Raises:
    DataError: two columns have one name, or the file cannot be read as what its name says it is;
      the message names the line.
  """
  suffix = Path(path).suffix.lower()
  try:
    if suffix == ".parquet":
      yield _named_once(path, _parquet(path))
      return
    with open(path, newline="", encoding="utf-8-sig") as file:
      if suffix in (".jsonl", ".ndjson"):
        yield _jsonl(path, file)
      else:
        between = "\t" if suffix == ".tsv" else max(",;\t", key=file.readline().count)
        file.seek(0)
        reader = csv.DictReader(file, delimiter=between, skipinitialspace=True)
        header = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        rows = ((f"line {reader.line_num}", row) for row in reader)
        yield _named_once(path, Table(header, rows))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    kind = {".parquet": "Parquet", ".jsonl": "JSONL", ".ndjson": "JSONL"}.get(suffix, "CSV")
    raise DataError(f"runs={path}: cannot be read as {kind} ({error})") from error


def _named_once(path, table: Table) -> Table:
  if twice := [name for name in table.header if name and table.header.count(name) > 1]:
    raise DataError(f"runs={path}: {table.header.count(twice[0])} columns are named {twice[0]!r}; "
                     "rename all but one")  # fmt: skip
  return table


def _jsonl(path, file) -> Table:
  def rows():
    for i, line in enumerate(file, start=1):
      if line.strip():
        try:
          row = json.loads(line)
        except json.JSONDecodeError as error:
          raise DataError(f"runs={path}, line {i}: not JSON ({error})") from None
        if not isinstance(row, dict):
          raise DataError(f"runs={path}, line {i}: not a JSON object of one run")
        yield f"line {i}", row

  every = rows()
  first = next(every, None)
  return Table(list(first[1]) if first else [], itertools.chain([first] if first else [], every))


def _parquet(path) -> Table:
  from pyarrow import ArrowInvalid, parquet  # slow to import, and few need it

  try:
    file = parquet.ParquetFile(path)
  except ArrowInvalid as error:
    raise DataError(f"runs={path}: cannot be read as Parquet ({error})") from None
  batches = file.iter_batches(batch_size=BATCH_ROWS)
  rows = (row for batch in batches for row in batch.to_pylist())
  return Table(file.schema_arrow.names, ((f"row {i}", row) for i, row in enumerate(rows, start=1)))


def cell(path: str | os.PathLike, index: int, column: str) -> tuple[str, Any]:
  """Reads the place of a row, by its index from 0, and what stands there in a column."""
  with opened(path) as table:
    place, row = next(itertools.islice(table.rows, index, None))
  return place, row.get(column)
