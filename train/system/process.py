"""What a process sets up before it trains: allocator, cores, compile cache, signals."""

import ctypes
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import ConfigError, RunError

# When the command began, by `time.perf_counter`, but for 0.2 s before this is imported. The age of
# the process would not do: a shell that has installed all this can become the command.
BEGAN = time.perf_counter()

# A process of a run on several hosts is given up when it has sent no sign of life for so long. If
# it dies in a collective the others know at once; where they wait elsewhere, only by this.
SILENT_SECONDS = 20
LOST = "another process of this run is gone; start them all again, and they go on where they saved"
_LOST_CODE = 70  # with it a process has its guard say so, who then ends with 1

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


def join(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
  """Joins the processes of one run, where there are several; call it before jax is used.

  On Slurm and on TPU pods jax finds the others by itself; elsewhere the three arguments name them.

  Args:
    coordinator: HOST:PORT of the first process; "": there is none, or the environment knows.
    processes: how many there are.
    process: which one this is, from 0.

  Raises:
    ConfigError: the arguments do not fit together.
    RunError: the others did not come, or there are fewer of them than were started.
  """
  expected = processes or int(os.environ.get("SLURM_NTASKS", "1"))
  if coordinator:
    if processes < 2 or not 0 <= process < processes or ":" not in coordinator:
      raise ConfigError(
        f"--coordinator={coordinator} --processes={processes} --process={process}: name HOST:PORT "
        "of the first process, how many there are (2 or more), and which this is (from 0)"
      )
    _leave_guard()
    import jax

    jax.distributed.initialize(
      coordinator, processes, process, heartbeat_timeout_seconds=SILENT_SECONDS
    )
  elif processes or process >= 0:
    raise ConfigError("--coordinator is missing; name HOST:PORT of the first process")
  elif expected > 1 or "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
    _leave_guard()
    import jax

    jax.distributed.initialize(heartbeat_timeout_seconds=SILENT_SECONDS)
  import jax

  if jax.process_count() < expected:
    raise RunError(
      f"{expected} processes were started and {jax.process_count()} joined; give each its GPUs and "
      "one task per process (srun --ntasks-per-node), or pass --coordinator"
    )


def _leave_guard() -> None:
  """Goes on in a child of this process, which stays to say in a line what ended the child.

  Where the first process of a run dies, jax aborts the others from within: no handler of theirs can
  speak, or threads of jax speak after it. Call it before jax is imported: threads do not survive a
  fork.
  """
  child = os.fork()
  if child == 0:
    os.setpgid(0, 0)  # a Ctrl-C reaches the guard only, which passes it on
    if sys.platform.startswith("linux"):
      ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    return
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(child, number))
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if code in (-signal.SIGABRT, _LOST_CODE):
    print(f"isoflop: {LOST}", file=sys.stderr, flush=True)
    code = 1
  os._exit(code if code >= 0 else 128 - code)


@contextmanager
def together() -> Iterator[None]:
  """Ends this process at once where an error is raised in one of several of a run.

  Otherwise it would wait for the others while it cleans up, and they for it in the next step.
  """
  import jax

  try:
    yield
  except Interrupted:  # all of them were
    raise
  except Exception as error:
    if jax.process_count() == 1:
      raise
    first = (str(error).splitlines() or [type(error).__name__])[0]
    own = isinstance(error, OSError)
    said = first if own else f"{LOST} ({first})"
    print(f"isoflop: {said}", file=sys.stderr, flush=True)
    os._exit(1 if own else _LOST_CODE)


def census() -> str:
  """Returns who takes part, in a line: processes and their devices.

  Raises:
    RunError: the processes have different numbers of devices.
  """
  import jax
  import numpy as np
  from jax.experimental import multihost_utils

  own = jax.local_device_count()
  counts = [own]
  if jax.process_count() > 1:
    counts = multihost_utils.process_allgather(np.array(own)).tolist()
  if len(set(counts)) > 1:
    raise RunError(f"the processes have {counts} devices; give each the same number")
  kind = jax.devices()[0].device_kind
  return f"{len(counts)} process(es) with {own} device(s) each ({kind})"


def leads() -> bool:
  """Returns whether this process is the first of the run: the one that writes its records."""
  import jax

  return jax.process_index() == 0


def place() -> tuple[int, int]:
  """Returns (which process this is, how many there are)."""
  import jax

  return jax.process_index(), jax.process_count()


def meet(name: str) -> None:
  """Returns when every process has come here."""
  import jax
  from jax.experimental import multihost_utils

  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agreed(*flags: bool) -> list[bool]:
  """Returns, in every process alike, which flags any process has raised."""
  import numpy as np
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(np.array(flags)).any(axis=0).tolist()


def summed(count: int) -> int:
  """Returns the sum of all processes' counts, each below 2^62."""
  import jax
  import numpy as np
  from jax.experimental import multihost_utils

  if jax.process_count() == 1:
    return count
  halves = multihost_utils.process_allgather(np.array(divmod(count, 2**31), np.int32))
  return sum(int(high) * 2**31 + int(low) for high, low in halves)


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


def use_xla_flags() -> None:
  """Adds XLA_FLAGS to the environment, for this process and those it starts.

  Without an accelerator it does nothing. Call it before jax is imported.
  """
  if has_accelerator():
    own = os.environ.get("XLA_FLAGS", "").split()
    named = {flag.lstrip("-").partition("=")[0] for flag in own}
    added = [f"--{name}={value}" for name, value in XLA_FLAGS.items() if name not in named]
    os.environ["XLA_FLAGS"] = " ".join([*own, *added])


def use_compile_cache() -> None:
  """Keeps compiled programs on disk, so that the next process does not compile them again."""
  import jax

  jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
