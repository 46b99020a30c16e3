"""Several processes that train one model: how they join, agree, and end together.

Call `join` before jax is used; jax is imported only where it may be.
"""

import ctypes
import os
import signal
import sys
from typing import Any

from configs.errors import ConfigError, RunError

# A process of a run on several hosts is given up when it has sent no sign of life for so long. If
# it dies in a collective the others know at once; where they wait elsewhere, only by this.
SILENT_SECONDS = 20
LOST = "another process of this run is gone; start them all again, and they go on where they saved"
_LOST_CODE = 70  # with it a process has its guard say so, who then ends with 1


def join(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
  """Joins the processes of one run, where there are several; call it before jax is used.

  On Slurm and on TPU pods jax finds the others by itself; elsewhere the arguments name HOST:PORT of
  the first process, how many there are, and which this is, from 0.

  Raises:
    ConfigError: the arguments do not fit together.
    RunError: the others did not come, or there are fewer of them than were started.
  """
  expected = processes or _started_by_slurm()
  named: dict[str, Any] = {}
  if coordinator:
    if processes < 2 or not 0 <= process < processes or ":" not in coordinator:
      raise ConfigError(
        f"--coordinator={coordinator} --processes={processes} --process={process}: name HOST:PORT "
        "of the first process, how many there are (2 or more), and which this is (from 0)"
      )
    named = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
  elif processes or process >= 0:
    raise ConfigError("--coordinator is missing; name HOST:PORT of the first process")
  if several(processes):
    _leave_guard()
    import jax

    jax.distributed.initialize(**named, heartbeat_timeout_seconds=SILENT_SECONDS)
  import jax

  if jax.process_count() < expected:
    raise RunError(
      f"{expected} processes were started and {jax.process_count()} joined; give each its GPUs and "
      "one task per process (srun --ntasks-per-node), or pass --coordinator"
    )


def several(processes: int = 0) -> bool:
  """Tells whether this is one of several processes; `processes` are those named, 0: none."""
  hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
  return (processes or _started_by_slurm()) > 1 or "," in hosts


def _started_by_slurm() -> int:
  return int(os.environ.get("SLURM_NTASKS", "1"))


def _leave_guard() -> None:
  """Goes on in a child; this process stays to print, in a line, what ended the child.

  Where the first process of a run dies, jax aborts the others from within, before any handler. Call
  it before jax is imported: threads do not survive a fork.
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


def end_if_one_of_several(error: Exception) -> None:
  """Ends this process at once, after an error, where it trains with others.

  It would wait for them while it cleans up, and they for it in the next step.
  """
  import jax

  if jax.process_count() == 1:
    return
  first_line = (str(error).splitlines() or [type(error).__name__])[0]
  of_this_host = isinstance(error, OSError)
  message = first_line if of_this_host else f"{LOST} ({first_line})"
  print(f"isoflop: {message}", file=sys.stderr, flush=True)
  os._exit(1 if of_this_host else _LOST_CODE)


def census() -> str:
  """Counts the processes and their devices, in a line.

  Raises:
    RunError: the processes have different numbers of devices.
  """
  import jax
  import numpy as np
  from jax.experimental import multihost_utils

  local = jax.local_device_count()
  counts = [local]
  if jax.process_count() > 1:
    counts = multihost_utils.process_allgather(np.array(local)).tolist()
  if len(set(counts)) > 1:
    raise RunError(f"the processes have {counts} devices; give each the same number")
  kind = jax.devices()[0].device_kind
  return f"{len(counts)} process(es) with {local} device(s) each ({kind})"


def barrier(name: str) -> None:
  """Waits until every process has come here."""
  import jax
  from jax.experimental import multihost_utils

  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def any_process(*flags: bool) -> list[bool]:
  """Returns, in every process alike, which flags are set in any of them."""
  import numpy as np
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(np.array(flags)).any(axis=0).tolist()


def sum_over_processes(count: int) -> int:
  """Sums the processes' counts, each below 2^62."""
  import jax
  import numpy as np
  from jax.experimental import multihost_utils

  if jax.process_count() == 1:
    return count
  halves = multihost_utils.process_allgather(np.array(divmod(count, 2**31), np.int32))
  return sum(int(high) * 2**31 + int(low) for high, low in halves)
