"""Files of a run's folder: whole or not at all, never through a link, one owner at a time."""

import errno
import json
import os
import subprocess
import sys

import pytest

from configs.errors import DataError, RunError, UsageError
from train.system import files


def test_a_file_is_written_whole_and_leaves_nothing_beside_it(tmp_path):
  path = tmp_path / "fit.json"
  for text in ("one", "two"):
    files.write_text(path, text)
    assert path.read_text() == text
  assert os.listdir(tmp_path) == ["fit.json"]


def test_a_planted_link_is_not_written_through(tmp_path):
  """Neither where a file is written aside, nor at the file itself, nor at the lock."""
  victim = tmp_path / "victim"
  victim.write_text("precious")
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / f".fit.json.{os.getpid()}").symlink_to(victim)
  (folder / "fit.json").symlink_to(victim)
  files.write_text(folder / "fit.json", "mine")
  assert (folder / "fit.json").read_text() == "mine"
  (folder / ".lock").symlink_to(victim)
  with pytest.raises(UsageError, match=r"its \.lock is no regular file"), files.owned(folder):
    pass
  (folder / ".lock").unlink()
  os.mkfifo(folder / ".lock")
  with pytest.raises(UsageError, match=r"its \.lock is no regular file"), files.owned(folder):
    pass
  assert victim.read_text() == "precious"


def test_a_full_disk_is_named_with_the_file_and_the_old_content_stays(tmp_path, monkeypatch):
  path = tmp_path / "fit.json"
  files.write_text(path, "old")

  def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
    files.write_text(path, "new")
  assert path.read_text() == "old"
  assert os.listdir(tmp_path) == ["fit.json"]


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  with files.owned(folder) as check:
    check()
    folder.rename(tmp_path / "moved")
    with pytest.raises(RunError, match=f"workdir={folder}: was moved or removed"):
      check()
    with pytest.raises(RunError, match=f"{folder}: is gone, and run.json cannot be written"):
      files.write_json(folder / "run.json", {})
    folder.mkdir()  # another one in its place
    with pytest.raises(RunError, match="was moved or removed"):
      check()


def test_what_killed_processes_left_is_removed_by_the_next_owner(tmp_path):
  ended = subprocess.Popen([sys.executable, "-c", ""])
  ended.wait()
  left, writing, other = (
    tmp_path / name for name in (f".run.json.{ended.pid}", f".fit.json.{os.getpid()}", ".x.bak")
  )
  for path in (left, writing, other):
    path.touch()
  with files.owned(tmp_path):
    assert not left.exists()
    assert writing.exists()
    assert other.exists()


@pytest.mark.parametrize("text", ["", "[1]", '"x"', "3", '{"a": ', '{"a": "\udcff"}', "[" * 99_999])
def test_what_is_no_object_is_an_error_of_the_file(tmp_path, text):
  path = tmp_path / "run.json"
  path.write_bytes(text.encode("utf-8", "surrogateescape"))
  with pytest.raises(DataError, match=rf"{path}: .*; put it back, or remove its folder"):
    files.read_json(path)


def test_a_missing_key_is_named_with_its_file_wherever_it_lies(tmp_path):
  path = tmp_path / "fit.json"
  files.write_json(path, {"a": {"b": 1}, "c": [{"d": 2}]})
  record = files.read_json(path)
  assert record == {"a": {"b": 1}, "c": [{"d": 2}]}
  for lookup in (
    lambda: record["x"], lambda: record["a"]["x"], lambda: record["c"][0]["x"],
    lambda: (record | {"e": 1})["x"],
  ):  # fmt: skip
    with pytest.raises(DataError, match=rf"{path}: x is missing; remove it"):
      lookup()
  assert record.get("x") is None


def test_a_row_in_the_middle_that_cannot_be_read_is_named(tmp_path):
  path = tmp_path / "metrics.jsonl"
  rows = [json.dumps({"step": i}) for i in range(3)]
  path.write_text("\n".join(rows) + '\n{"step": 4, "lo')  # cut by a kill
  assert [row["step"] for row in files.read_rows(path)] == [0, 1, 2]
  path.write_text("\n".join([rows[0], "{", rows[2]]))
  with pytest.raises(DataError, match=f"{path}: line 2 is not JSON"):
    files.read_rows(path)
