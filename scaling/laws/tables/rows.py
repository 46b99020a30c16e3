"""Rows of a CSV, JSONL or Parquet file of runs, each with its place ("line 7") for errors."""

import csv
import json
import os
from pathlib import Path
from typing import Any

from configs.errors import DataError

Rows = list[tuple[str, dict[str, Any]]]  # the place of each, and its values by column
KINDS = {".parquet": "Parquet", ".jsonl": "JSONL", ".ndjson": "JSONL"}  # all else is CSV


def read_rows(path: str | os.PathLike) -> tuple[list[str], Rows]:
  """Reads a file of runs, by its suffix: the names of its columns, and its rows.

  A column of a JSONL file is a key of its first row. The columns of a CSV file are parted by what
  its header has most of: commas, semicolons or tabs; spaces beside them do not count.

  Raises:
    DataError: two columns have one name, or the file cannot be read as what its name says it is;
      the message names the line.
  """
  kind = KINDS.get(Path(path).suffix.lower(), "CSV")
  read = {"Parquet": _parquet, "JSONL": _jsonl, "CSV": _csv}[kind]
  try:
    header, rows = read(path)
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise DataError(f"runs={path}: cannot be read as {kind} ({error})") from error
  if twice := [name for name in header if name and header.count(name) > 1]:
    raise DataError(f"runs={path}: {header.count(twice[0])} columns are named {twice[0]!r}; "
                     "rename all but one")  # fmt: skip
  return header, rows


def _csv(path: str | os.PathLike) -> tuple[list[str], Rows]:
  with open(path, newline="", encoding="utf-8-sig") as file:
    between = max(",;\t", key=file.readline().count)
    file.seek(0)
    reader = csv.DictReader(file, delimiter=between, skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    return reader.fieldnames, [(f"line {reader.line_num}", row) for row in reader]


def _jsonl(path: str | os.PathLike) -> tuple[list[str], Rows]:
  rows = []
  for i, line in enumerate(Path(path).read_text("utf-8-sig").splitlines(), start=1):
    if line.strip():
      try:
        row = json.loads(line)
      except json.JSONDecodeError as error:
        raise DataError(f"runs={path}, line {i}: not JSON ({error})") from None
      if not isinstance(row, dict):
        raise DataError(f"runs={path}, line {i}: not a JSON object of one run")
      rows.append((f"line {i}", row))
  return list(rows[0][1]) if rows else [], rows


def _parquet(path: str | os.PathLike) -> tuple[list[str], Rows]:
  from pyarrow import ArrowInvalid, parquet  # slow to import, and few need it

  try:
    table = parquet.read_table(path)
  except ArrowInvalid as error:
    raise DataError(f"runs={path}: cannot be read as Parquet ({error})") from None
  rows = [(f"row {i}", row) for i, row in enumerate(table.to_pylist(), start=1)]
  return table.column_names, rows
