"""What a process sets up before it trains: allocator, cores, XLA's flags and cache, signals."""

import ctypes
import importlib.util
import os
import re
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

# When the command began, by `time.perf_counter`, but for 0.2 s before this is imported. The age of
# the process would not do: a shell that has installed all this can become the command.
BEGAN = time.perf_counter()
_SHOW_WARNING = warnings.showwarning

# XLA's flags on an accelerator, not set by the user. XLA ends a process that has a flag
# it does not know: these are in jaxlib 0.10.2 and 0.12.0. Flags that a GPU must first be seen
# to gain from (larger collectives, Triton for every product, double-buffered loops) are left to the
# user.
XLA_FLAGS = {
  # A collective is sent while products are computed: by default it is waited for. NVIDIA's images
  # of jax set it too (docs.nvidia.com/jax-toolbox/environment-variables).
  "xla_gpu_enable_latency_hiding_scheduler": "true",
}

# glibc's mallopt parameters (malloc.h).
_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD = -8, -4, -1


class Interrupted(Exception):  # noqa: N818 -- not an error
  """The run was asked to stop; its state is saved and the same command goes on."""


def keep_freed_pages() -> bool:
  """Makes the C allocator keep the pages of freed arrays; returns whether that was possible.

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


def use_huge_pages() -> None:
  """Starts this process again, once, with the C allocator's memory in huge pages.

  They take 6 % off a step of 2,048 tokens (D=128 and 256, two Zen 4 cores). glibc reads the setting
  from the environment only, before a process begins; those that this one starts inherit it. Call it
  before anything is imported that takes long. Without glibc it changes nothing.
  """
  if sys.platform.startswith("linux") and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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


class StopSignal(threading.Event):
  """Set by Ctrl-C or SIGTERM: a run saves its state and ends. A second one ends it at once."""

  def install(self) -> "StopSignal":
    """Takes over SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
      signal.signal(number, self._receive)
    return self

  def _receive(self, number: int, _frame: object) -> None:
    if self.is_set():
      os._exit(128 + number)
    self.set()

  def __call__(self) -> bool:
    """Returns whether the stop was requested."""
    return self.is_set()


def has_accelerator() -> bool:
  """Returns whether jax would train on a GPU or TPU here; does not import jax."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms:
    return platforms.split(",")[0] != "cpu"
  plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
  devices = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio")
  installed = any(importlib.util.find_spec(plugin) for plugin in plugins)
  return installed and any(Path(device).exists() for device in devices)


def use_xla_flags() -> None:
  """Adds XLA_FLAGS to the environment, for this process and those it starts.

  Without an accelerator it does nothing. Call it before jax is imported.
  """
  if has_accelerator():
    flags = os.environ.get("XLA_FLAGS", "").split()
    named = {flag.lstrip("-").partition("=")[0] for flag in flags}
    flags += [f"--{name}={value}" for name, value in XLA_FLAGS.items() if name not in named]
    os.environ["XLA_FLAGS"] = " ".join(flags)


def use_compile_cache() -> None:
  """Keeps compiled programs on disk, so that the next process does not compile them again.

  jax writes them in place, warns whenever it reads one that a kill cut short, and lets it stand:
  what it warns of is removed.
  """
  import jax

  warnings.showwarning = _show_warning
  jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _show_warning(
  message: Any, category: type, filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
  if name := re.match(r"Error reading persistent compilation .* for '(.+?)'", str(message)):
    for path in (cache_folder() / "xla").glob(f"{name[1]}-*"):
      path.unlink(missing_ok=True)
  else:
    _SHOW_WARNING(message, category, filename, lineno, file, line)
