"""Files that survive a kill: atomic JSON, append-only rows, and one owner per folder."""

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, DataError, RunError, UsageError


class FolderInUseError(UsageError):
  """Another process works in this folder."""


# What to do where a record is damaged; any other file is made again once it is removed.
REMEDIES = {
  "run.json": "put it back, or remove its folder to have the run trained again",
  "sweep.json": "put it back; what its cells are stands nowhere else",
  "prediction.json": (
    "the seal is damaged, and its prediction can no longer be tested: use another workdir"
  ),
  "cells.csv": "remove it, and `isoflop verify` makes it again",
  "metrics.jsonl": "put it back, or remove its folder to have the run trained again",
  "verification.json": "remove it, and `isoflop verify` makes it again",
  "fit.json": "remove it, and `isoflop fit` makes it again",
}


def damaged(path: Path, fault: str) -> DataError:
  """Makes the error of a record that cannot be used as it is."""
  remedy = REMEDIES.get(path.name, "remove it to have it made again")
  return DataError(f"{path}: {fault}; {remedy}")


class Stored(dict):
  """An object of a JSON file; a key that it lacks is an error of the file."""

  def __init__(self, pairs: Iterable[tuple[str, Any]], path: Path | None = None):
    """Takes in the object's pairs, and the file they stand in; None: of a copy."""
    super().__init__(pairs)
    self.path = path

  def __missing__(self, key: str) -> Any:
    """Raises DataError; `get` and `in` do not come here."""
    if not self.path:
      raise KeyError(key)
    raise damaged(self.path, f"{key} is missing")

  def __or__(self, other: Mapping) -> "Stored":
    """Merges as dicts do; what is missing still is of the file."""
    return Stored({**self, **other}.items(), self.path)


def write_json(path: Path, value: Any) -> None:
  """Writes JSON so that `path` holds either the old content or the new, whole."""
  write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
  """Writes text so that `path` holds either the old content or the new, whole."""
  write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
  """Writes a file so that `path` holds either the old content or the new, whole.

  Raises:
    RunError: its folder is gone.
    OSError: the machine refused; it names the file.
  """
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  with named(path):
    try:
      temporary.unlink(missing_ok=True)  # of a killed process; or a link that someone left there
      flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
      with open(os.open(temporary, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      temporary.replace(path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


@contextmanager
def named(path: Path) -> Iterator[None]:
  """Names a file in the errors of the machine when it is written."""
  try:
    yield
  except FileNotFoundError:
    message = f"{path.parent}: is gone, and {path.name} cannot be written there"
    raise RunError(f"{message}; the same command goes on with it where it is now") from None
  except OSError as error:
    raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def finite(value: Any) -> Any:
  """Replaces numbers that JSON does not know, in nested dicts, by null."""
  if isinstance(value, dict):
    return {name: finite(x) for name, x in value.items()}
  return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
  """Reads a file's JSON object; None where there is no such file.

  Raises:
    DataError: the file does not hold one, or later, when a key is looked up that it lacks.
  """
  try:
    return _object(path.read_bytes(), path)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
    raise damaged(path, f"not JSON ({error})") from None


def _object(text: bytes, path: Path) -> Stored:
  value = json.loads(text.decode(), object_pairs_hook=lambda pairs: Stored(pairs, path))
  if not isinstance(value, Stored):
    raise damaged(path, f"holds a {type(value).__name__}, not an object")
  return value


def read_record(path: Path) -> Any:
  """Reads an object that has digests, as `read_json` does; one without them is not checked.

  Raises:
    DataError: it is not as it was written.
  """
  record = read_json(path)
  if record is not None and (difference := fault(record)):
    raise damaged(path, f"{difference} since it was written")
  return record


def read_rows(path: Path) -> list[dict]:
  """Reads the rows of a .jsonl file; a last line that a kill cut short does not count.

  Raises:
    DataError: another line is not JSON, or later, when a key is looked up that a row lacks.
  """
  if not path.exists():
    return []
  rows: list[dict] = []
  lines = path.read_bytes().splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(_object(line, path))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
      if number < len(lines):
        raise damaged(path, f"line {number} is not JSON ({error})") from None
  return rows


def make_folder(path: Path) -> None:
  """Makes a folder and checks that it can be written to; ConfigError: it cannot."""
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".probe.{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise ConfigError(
      f"workdir={path}: cannot write there ({error.strerror}); name a folder that you own"
    ) from None


def make_run_folder(path: Path) -> None:
  """Makes the folder of a run of a sweep; RunError: the sweep's folder, two above, is gone."""
  with named(path.parent):
    path.parent.mkdir(exist_ok=True)
    path.mkdir(exist_ok=True)


@contextmanager
def owned(folder: Path, wait_seconds: float = 0.0) -> Iterator[Callable[[], None]]:
  """Holds the folder for this process; the kernel lets go when the process ends, however it ends.

  Yields a function that raises RunError once the folder is not at its path any more.

  Raises:
    FolderInUseError: another process holds it after `wait_seconds`.
    UsageError: its lock is no file.
  """
  lock = folder / ".lock"
  if lock.is_symlink() or (lock.exists() and not lock.is_file()):
    raise UsageError(f"workdir={folder}: its .lock is no regular file; remove it")
  with named(lock):
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
  with open(descriptor, "r+") as file:

    def check() -> None:
      with suppress(OSError):
        if os.path.samestat(lock.stat(), os.fstat(file.fileno())):
          return
      raise RunError(
        f"workdir={folder}: was moved or removed while it was in use; the same command goes on "
        "with it where it is now"
      )

    deadline = time.monotonic() + wait_seconds
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except OSError:
        if time.monotonic() >= deadline:
          file.seek(0)
          owner = file.read().strip() or "unknown"
          raise FolderInUseError(
            f"workdir={folder}: in use by process {owner}; wait for it, or name another workdir"
          ) from None
        time.sleep(0.05)
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    for path in folder.glob(".*.*"):  # what killed processes were writing
      if path.suffix[1:].isdigit() and not _lives(int(path.suffix[1:])):
        path.unlink(missing_ok=True)
    yield check


def _lives(process: int) -> bool:
  try:
    os.kill(process, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except PermissionError:
    pass
  return True


def with_digests(record: dict[str, Any]) -> dict[str, Any]:
  """Adds a digest of each field and a hash of the whole, by which `fault` finds a later change."""
  record = json.loads(json.dumps(record))  # as it will be read
  for name in ("digests", "hash"):  # of an earlier content
    record.pop(name, None)
  digests = {name: _hash(value)[:8] for name, value in _leaves(record)}
  whole = record | {"digests": digests}
  return whole | {"hash": _hash(whole)}


def fault(record: Any) -> str | None:
  """Says which field of a record is not as `with_digests` had it; "": none; None: no digests."""
  if not isinstance(record, dict) or not {"digests", "hash"} & record.keys():
    return None
  content = dict(record)
  digests, whole = content.pop("digests", None), content.pop("hash", None)
  if not isinstance(digests, dict) or whole is None:
    return f"{'hash' if whole is None else 'digests'} is missing"
  if _hash(content | {"digests": digests}) == whole:
    return ""
  now = {name: _hash(value)[:8] for name, value in _leaves(content)}
  for name in {**digests, **now}:
    if name not in now:
      return f"{name} is missing"
    if digests.get(name) != now[name]:
      return f"{name} was altered"
  return "hash was altered"


def _hash(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _leaves(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
  """Yields fields by name; those of a list's items as `cells[0].loss`."""
  for name, value in record.items():
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
      for i, item in enumerate(value):
        yield from ((f"{name}[{i}].{key}", entry) for key, entry in item.items())
    else:
      yield name, value
