"""Files that survive a kill: atomic JSON, append-only rows, and one owner per folder."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, UsageError


class FolderInUseError(UsageError):
  """Another process works in this folder."""


def write_json(path: Path, value: Any) -> None:
  """Writes JSON so that `path` holds either the old content or the new, whole."""
  write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
  """Writes text so that `path` holds either the old content or the new, whole."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  with temporary.open("w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def read_json(path: Path) -> Any:
  """Reads a file's JSON; None where there is no such file.

  Raises:
    ConfigError: the file is not JSON.
  """
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ConfigError(f"{path}: not JSON ({error}); remove it to have it made again") from None


def read_rows(path: Path) -> list[dict]:
  """Reads the rows of a .jsonl file; a last line that a kill cut short does not count."""
  if not path.exists():
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows


def make_folder(path: Path) -> None:
  """Makes a folder and checks that it can be written to.

  Raises:
    ConfigError: it cannot.
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".probe.{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise ConfigError(
      f"workdir={path}: cannot write there ({error.strerror}); name a folder that you own"
    ) from None


@contextmanager
def owned(folder: Path, wait_seconds: float = 0.0) -> Iterator[None]:
  """Holds the folder for this process; the kernel lets go when the process ends, however it ends.

  Raises:
    FolderInUseError: another process holds it after `wait_seconds`.
  """
  lock = folder / ".lock"
  with lock.open("a+") as file:
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
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield


def with_digests(record: dict[str, Any]) -> dict[str, Any]:
  """Adds a digest of each field and a hash of the whole, by which `fault` finds a later change."""
  record = json.loads(json.dumps(record))  # as it will be read
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
