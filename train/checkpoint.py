"""Checkpoints: the only file that imports orbax.

A checkpoint is a step's whole `TrainState` and a checksum of every array. Orbax commits a step by a
rename, so a kill during a save leaves the step before. It does not notice a flipped bit in what it
reads back; the checksums do.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging as absl_logging
from flax import traverse_util
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from configs.errors import DataError, RunError
from train.system import distributed

# Orbax asks for it twice a save, to log a rate; tensorstore 0.1.86 never frees what it returns.
tensorstore.experimental_collect_matching_metrics = lambda *_: []
MIN_FREE_BYTES = 64 * 2**20
DESCRIPTORS = Path("/proc/self/fd")  # of Linux: each is the folder or file that it was opened for
ON_DEVICE = 2**20  # elements from which on a checksum is worth a compilation


class DamagedCheckpointError(DataError):
  """What was read back is not what was saved."""


# What storage layers say of the machine, not of what is stored.
_OF_THE_MACHINE = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED")


def _is_damage(error: Exception) -> bool:
  """Returns whether an error of reading lies in what is read, and not in who reads it."""
  if isinstance(error, OSError):
    return isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError))
  of_the_machine = any(code in str(error) for code in _OF_THE_MACHINE)
  return not isinstance(error, MemoryError) and not of_the_machine


def _checksums(tree: Any) -> dict[str, int]:
  """Returns a checksum of every leaf, by path: the same however the leaf lies on its devices.

  It is the sum, modulo 2^32, of a hash of each element's bits and place, over one copy of each
  shard. The hash is one-to-one in the bits: any one that flips changes the sum.
  """
  paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
  sums = np.array([_sum(leaf) for leaf in leaves], np.uint32)
  if jax.process_count() > 1:
    sums = multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32)
  names = (jax.tree_util.keystr(path, simple=True, separator="/") for path in paths)
  return {name: int(total) for name, total in zip(names, sums, strict=True)}


def _sum(leaf: Any) -> int:
  """Returns this host's part of a leaf's checksum."""
  if not isinstance(leaf, jax.Array):
    return int(_hashes(np, np.ravel(leaf), np.arange(np.size(leaf), dtype=np.uint32)))
  if leaf.size > ON_DEVICE:
    total = int(_hashes_on_device(leaf))  # over all hosts
    return total if jax.process_index() == 0 else 0
  places = np.arange(leaf.size, dtype=np.uint32).reshape(leaf.shape)
  shards = (shard for shard in leaf.addressable_shards if shard.replica_id == 0)
  parts = [_hashes(np, np.ravel(shard.data), np.ravel(places[shard.index])) for shard in shards]
  return int(np.sum(parts, dtype=np.uint32))


def _hashes(module: Any, x: Any, places: Any) -> Any:
  """Returns the sum of the hashes (mixed as MurmurHash3's finaliser does) of numpy's or jax's x."""
  h = x.view(f"uint{8 * x.dtype.itemsize}").astype(np.uint32) ^ places * np.uint32(0x9E3779B1)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
  return module.sum(h ^ (h >> np.uint32(16)), dtype=np.uint32)


@jax.jit
def _hashes_on_device(x: jax.Array) -> jax.Array:
  return _hashes(jnp, x, jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape))


def _parts(state: Any) -> dict[str, Any]:
  """Returns a state's parts by name, without those that hold nothing: as they stand on disk."""
  return {name: part for name, part in state._asdict().items() if jax.tree.leaves(part)}


class Checkpoints:
  """The checkpoints of one run, in `folder`; closed at the end of a with-block."""

  def __init__(self, folder: Path, keep_steps: Sequence[int] = (), read_only: bool = False):
    """Opens a folder; keeps the latest checkpoint and for good those of `keep_steps`."""
    self.folder = self._place = Path(folder).absolute()
    self._exits = ExitStack()
    if not read_only and DESCRIPTORS.is_dir():
      # Orbax makes folders as it writes, and so would make again one that was moved meanwhile: it
      # gets the folder itself, whose save then ends where it is.
      self.folder.mkdir(parents=True, exist_ok=True)
      descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
      self._exits.callback(os.close, descriptor)
      self._place = DESCRIPTORS / str(descriptor)
    absl_logging.set_verbosity(absl_logging.FATAL)  # orbax logs what it raises, and that it reads
    kept = [preservation_policy.LatestN(1), preservation_policy.CustomSteps(tuple(keep_steps))]
    options = ocp.CheckpointManagerOptions(
      preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
      create=not read_only,
      cleanup_tmp_directories=not read_only,  # what a killed save left; a run's folder is its own
      read_only=read_only,
    )
    self._manager = ocp.CheckpointManager(self._place, options=options)

  def steps(self) -> list[int]:
    """Returns the steps that there are, in order."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: Any) -> None:
    """Starts to save `state` as `step`; the next save, or the end, waits for it.

    Raises:
      RunError: the disk is nearly full.
    """
    if step in self._manager.all_steps():
      return
    need = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + MIN_FREE_BYTES
    free = shutil.disk_usage(self.folder).free
    if free < need:
      raise RunError(f"{self.folder}: {free >> 20} MiB free, a checkpoint needs {need >> 20} MiB")
    parts = _parts(state)
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(parts), checksums=ocp.args.JsonSave(_checksums(parts))
    )
    with self._saving():
      if not self._manager.save(step, args=args, force=True):
        raise OSError(f"step {step} was not saved; later steps: {self.steps()}")

  @contextmanager
  def _saving(self) -> Iterator[None]:
    """Makes one error of what orbax and its storage raise on a full disk, or in a moved folder."""
    try:
      yield
    except Exception as error:
      refused = any(code in str(error) for code in ("NOT_FOUND", *_OF_THE_MACHINE[:2]))
      if isinstance(error, OSError) or (isinstance(error, ValueError) and refused):
        raise RunError(
          f"{self.folder}: a save failed, and the one before it stays: {self._said(error)}"
        ) from error
      raise

  def _said(self, error: Exception) -> str:
    """Returns an error's first line, which names the folder as it was named to us."""
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return first_line.replace(str(self._place), str(self.folder))

  def restore(self, step: int, like: Any) -> Any:
    """Returns the state of `step`; `like` gives its shapes and types, and where each array lies.

    Raises:
      DamagedCheckpointError: it is not whole, or an array differs from what was saved.
      DataError: it is the state of another program.
      Exception: memory, permission or storage did not suffice to read it; it may be sound.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _parts(like))
    return like._replace(**self._read(step, ocp.args.StandardRestore(abstract))[0])

  def restore_weights(self, step: int, place: Callable[[Any], Any]) -> tuple[Any, str]:
    """Returns the weights alone of `step`, as nested dicts, and a hash of all of them.

    They are those that its optimizer updated: in float32, if the checkpoint has both.

    `place`, given nested dicts of shapes and types, says where each lies.

    Raises:
      As `restore` does.
    """
    stored = ocp.PyTreeCheckpointHandler().metadata(self.folder / str(step) / "state").tree
    trained = "master" if "master" in stored else "trainable"
    abstract = {
      name: place(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored[name]))
      for name in ("frozen", trained)
      if name in stored
    }
    options = {"restore_args": ocp.checkpoint_utils.construct_restore_args(abstract)}
    args = ocp.args.PyTreeRestore(abstract, partial_restore=True, **options)
    parts, checksums = self._read(step, args)
    flat: dict[str, Any] = {}
    for part in parts.values():
      flat |= traverse_util.flatten_dict(part, sep="/")
    sums = sorted((path.partition("/")[2], checksums[path]) for path in checksums)
    digest = hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]
    return traverse_util.unflatten_dict(flat, sep="/"), digest

  def _read(self, step: int, state: Any) -> tuple[dict, dict[str, int]]:
    """Reads parts of a step's state; returns them, and their checksums."""
    args = ocp.args.Composite(state=state, checksums=ocp.args.JsonRestore())
    try:
      restored = self._manager.restore(step, args=args)
    except Exception as error:  # orbax raises whatever its storage layers raise
      first_line = self._said(error)
      if "tree structures do not match" in first_line:  # it is sound
        raise DataError(
          f"{self.folder}/{step}: another program's state, not of this model and optimizer; name "
          "another folder, or go on with the version that wrote it"
        ) from None
      if not _is_damage(error):
        raise
      raise DamagedCheckpointError(
        f"{self.folder}/{step}: {first_line}; it has to be trained again"
      ) from error
    saved, read = restored["checksums"], _checksums(restored["state"])
    if bad := [path for path in read if read[path] != saved.get(path)]:
      raise DamagedCheckpointError(
        f"{self.folder}/{step}: {bad[0]} differs from what was saved; it has to be trained again"
      )
    return restored["state"], read

  def restore_latest(self, like: Any) -> tuple[int, Any] | None:
    """Returns (step, state) of the newest sound checkpoint, or None.

    A damaged one is set aside under `damaged/`, with a warning.
    """
    for step in reversed(self.steps()):
      try:
        return step, self.restore(step, like)
      except DamagedCheckpointError as error:
        logging.warning("damaged checkpoint set aside: %s", error)
        if jax.process_index() == 0:
          aside = self.folder.parent / "damaged"
          aside.mkdir(exist_ok=True)
          shutil.rmtree(aside / str(step), ignore_errors=True)
          shutil.move(self.folder / str(step), aside / str(step))
        distributed.barrier(f"damaged {step}")
        self._manager.reload()
    return None

  def wait(self) -> None:
    """Returns when everything that was saved is on disk."""
    with self._saving():
      self._manager.wait_until_finished()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    with self._exits, self._saving():  # which it waits for
      self._manager.close()
