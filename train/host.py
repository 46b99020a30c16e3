"""What a process sets up before it trains: allocator, cores, compile cache, signals."""

import ctypes
import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path

# glibc's mallopt parameters (malloc.h).
_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD = -8, -4, -1


def keep_freed_pages() -> bool:
  """Has the C allocator keep the pages of freed arrays; returns whether that was possible.

  By default glibc maps each large temporary and unmaps it again, so that every step faults all its
  pages in anew: about half of a small model's step. Harmless elsewhere: without glibc it does
  nothing. Call it before the first large allocation.
  """
  if not sys.platform.startswith("linux"):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
  return all(mallopt(*setting) == 1 for setting in settings)


def cores() -> list[int]:
  """Returns the cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def pin(core: int) -> None:
  """Binds this process to one core; XLA then computes in one thread. Call before importing jax."""
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {core})


def cache_folder(configured: str = "") -> Path:
  """Returns the folder of caches: `configured`, else $ISOFLOP_CACHE, else ~/.cache/isoflop."""
  return Path(configured or os.environ.get("ISOFLOP_CACHE") or "~/.cache/isoflop").expanduser()


class StopSignal:
  """Set by Ctrl-C or SIGTERM: a run saves its state and ends. A second one ends it at once."""

  def __init__(self) -> None:
    self._event = threading.Event()
    self.number = 0

  def install(self) -> "StopSignal":
    """Takes over SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
      signal.signal(number, self._receive)
    return self

  def _receive(self, number: int, _frame: object) -> None:
    if self._event.is_set():
      os._exit(128 + number)
    self.number = number
    self._event.set()

  def set(self) -> None:
    """Asks for the stop from within the process."""
    self._event.set()

  def __call__(self) -> bool:
    """Returns whether the stop was asked for."""
    return self._event.is_set()


def has_accelerator() -> bool:
  """Returns whether jax would train on a GPU or TPU here; does not import jax."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms:
    return platforms.split(",")[0] != "cpu"
  plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
  devices = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio")
  installed = any(importlib.util.find_spec(plugin) for plugin in plugins)
  return installed and any(Path(device).exists() for device in devices)


def use_compile_cache(configured: str = "") -> None:
  """Keeps compiled programs on disk, so that the next process does not compile them again."""
  import jax

  jax.config.update("jax_compilation_cache_dir", str(cache_folder(configured) / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
