"""Rows of a file of runs, each with its place ("line 7") for errors."""

import codecs
import csv
import gzip
import io
import json
import os
import zlib
from pathlib import Path
from typing import Any

from configs.errors import DataError

Rows = list[tuple[str, dict[str, Any]]]  # the place of each, and its values by column
BETWEEN = ",;\t|"  # what may part the columns of a CSV file


def read_rows(path: str | os.PathLike) -> tuple[list[str], Rows]:
  """Reads a file of runs, by its suffix: the names of its columns, and its rows.

  It is .parquet, .jsonl, .ndjson, .json (an array of objects), or else CSV; each may be compressed,
  as .csv.gz or .csv.zst. Text is UTF-8, or UTF-16 with a byte order mark. A column of a JSON file
  is a key of any of its rows. The columns of a CSV file are parted by what its header has most of:
  commas, semicolons, tabs or pipes; spaces beside them do not count.

  Raises:
    DataError: two columns have one name, a row has more or fewer fields than the header, or the
      file cannot be read as what its name says it is; the message names the line.
  """
  suffixes = [suffix.lower() for suffix in Path(path).suffixes]
  packed = suffixes.pop() if suffixes[-1:] in ([".gz"], [".zst"]) else ""
  kind, read = KINDS.get(suffixes[-1] if suffixes else "", ("CSV", _csv))
  try:
    header, rows = read(path, _unpack(Path(path), packed))
  except (OSError, EOFError, zlib.error, ValueError, RecursionError, csv.Error) as error:
    if isinstance(error, DataError):
      raise
    raise DataError(f"runs={path}: cannot be read as {kind} ({error})") from error
  if twice := [name for name in header if name and header.count(name) > 1]:
    raise DataError(f"runs={path}: {header.count(twice[0])} columns are named {twice[0]!r}; "
                     "rename all but one")  # fmt: skip
  return header, rows


def _unpack(path: Path, packed: str) -> bytes:
  if packed == ".zst":
    import pyarrow  # slow to import, and few need it

    return pyarrow.input_stream(str(path), compression="zstd").read()
  return gzip.decompress(path.read_bytes()) if packed else path.read_bytes()


def _text(data: bytes) -> str:
  utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  return data.decode("utf-16" if utf16 else "utf-8-sig")


def _csv(path: str | os.PathLike, data: bytes) -> tuple[list[str], Rows]:
  text = _text(data)
  between = max(BETWEEN, key=text.partition("\n")[0].count)
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, skipinitialspace=True)
  header = [name.strip() for name in next(reader, [])]
  rows = []
  for fields in filter(None, reader):
    if len(fields) != len(header):
      raise DataError(
        f"runs={path}, line {reader.line_num}: {len(fields)} fields for {len(header)} columns; "
        f"quote a field that holds {between!r}, and write decimals with a point"
      )
    rows.append((f"line {reader.line_num}", dict(zip(header, fields, strict=True))))
  return header, rows


def _jsonl(path: str | os.PathLike, data: bytes) -> tuple[list[str], Rows]:
  rows = []
  for i, line in enumerate(_text(data).splitlines(), start=1):
    if line.strip():
      try:
        row = json.loads(line)
      except ValueError as error:
        raise DataError(f"runs={path}, line {i}: not JSON ({error})") from None
      rows.append((f"line {i}", row))
  return _objects(path, rows)


def _json(path: str | os.PathLike, data: bytes) -> tuple[list[str], Rows]:
  try:
    array = json.loads(_text(data))
  except json.JSONDecodeError as error:
    remedy = "; a file with an object on each line is a .jsonl" if "Extra" in error.msg else ""
    raise DataError(f"runs={path}: not JSON ({error}){remedy}") from None
  if not isinstance(array, list):
    raise DataError(f"runs={path}: not a JSON array; write an array with an object for each run")
  return _objects(path, [(f"row {i}", row) for i, row in enumerate(array, start=1)])


def _objects(path: str | os.PathLike, rows: Rows) -> tuple[list[str], Rows]:
  for place, row in rows:
    if not isinstance(row, dict):
      raise DataError(f"runs={path}, {place}: not a JSON object of one run")
  return list(dict.fromkeys(name for _, row in rows for name in row)), rows


def _parquet(path: str | os.PathLike, data: bytes) -> tuple[list[str], Rows]:
  from pyarrow import BufferReader, parquet  # slow to import, and few need it

  table = parquet.read_table(BufferReader(data))
  rows = [(f"row {i}", row) for i, row in enumerate(table.to_pylist(), start=1)]
  return table.column_names, rows


KINDS = {
  ".parquet": ("Parquet", _parquet),
  ".jsonl": ("JSONL", _jsonl),
  ".ndjson": ("JSONL", _jsonl),
  ".json": ("JSON", _json),
}
