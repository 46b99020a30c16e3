"""Several processes that train one model: how they join, agree, and end together.

Call `join` before jax is used; jax is imported only where it may be.
"""

import contextlib
import ctypes
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from configs.errors import ConfigError, RunError

# A process of a run on several hosts is given up when it has sent no sign of life for so long. If
# it dies in a collective the others know at once; where they wait elsewhere, only by this.
SILENT_SECONDS = 20
WAIT_SECONDS = 10.0  # after which it is said who has not come
LOST = "another process of this run is gone; start them all again, and they go on where they saved"
_LOST_CODE = 70  # with it a process has its guard say so, who then ends with 1


def join(
  coordinator: str = "", processes: int = 0, process: int = -1, limit_seconds: float = 300.0
) -> None:
  """Joins the processes of one run, where there are several; call it before jax is used.

  On Slurm and on TPU pods jax finds the others by itself; elsewhere the arguments name HOST:PORT of
  the first process, how many there are, and which this is, from 0. It waits for the others so
  long, and says after a few seconds for whom.

  Raises:
    ConfigError: the arguments do not fit together, or nothing can listen at the port.
    RunError: not all of them came.
  """
  expected = processes or _started_by_slurm()
  named: dict[str, Any] = {}
  if coordinator:
    host, _, port = coordinator.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 2**16
    if processes < 2 or not 0 <= process < processes or not host or not is_port:
      raise ConfigError(
        f"--coordinator={coordinator} --processes={processes} --process={process}: name HOST:PORT "
        "of the first process, how many there are (2 or more), and which this is (from 0)"
      )
    named = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
  elif processes or process >= 0:
    raise ConfigError("--coordinator is missing; name HOST:PORT of the first process")
  if several(processes):
    _leave_guard()
    if coordinator:
      _call_roll(coordinator, processes, process, limit_seconds)
    import jax

    joined = threading.Event()
    threading.Thread(target=_end_unless, args=(joined, limit_seconds), daemon=True).start()
    jax.distributed.initialize(
      **named,
      initialization_timeout=math.ceil(limit_seconds) + 60,  # at which jax aborts the process
      heartbeat_timeout_seconds=SILENT_SECONDS,
    )
    joined.set()
  import jax

  if jax.process_count() < expected:
    raise RunError(
      f"{expected} processes were started and {jax.process_count()} joined; give each its GPUs and "
      "one task per process (srun --ntasks-per-node), or pass --coordinator"
    )


def _call_roll(coordinator: str, processes: int, process: int, limit_seconds: float) -> None:
  """Waits until every process has come to the coordinator's port, which is then left to jax.

  jax would crash at a port that is in use, and cannot tell which processes have not come.
  """
  host, _, port = coordinator.rpartition(":")
  came: dict[int, socket.socket] = {}  # by process: to the first all others, to them the first

  def who_is_missing() -> str:
    with contextlib.suppress(OSError):
      connection = sockets.enter_context(server.accept()[0])
      connection.settimeout(1.0)
      came[int.from_bytes(connection.recv(4))] = connection
    names = ", ".join(str(i) for i in range(1, processes) if i not in came)
    return names and f"process {names} of {processes} at {coordinator}"

  def who_holds_us_up() -> str:
    with contextlib.suppress(OSError):
      if not came:
        address = host.strip("[]"), int(port)
        came[0] = sockets.enter_context(socket.create_connection(address, timeout=1.0))
        came[0].sendall(process.to_bytes(4))
      if came[0].recv(1):
        return ""
      raise RunError(f"process 0 at {coordinator} has given up; start all of them again")
    return f"{f'some of the {processes} processes' if came else 'process 0'} at {coordinator}"

  with contextlib.ExitStack() as sockets:
    if process:
      _wait_for(who_holds_us_up, limit_seconds)
      return
    six = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if six else socket.AF_INET
    try:
      server = socket.create_server(("", int(port)), family=family, dualstack_ipv6=six)
    except OSError as error:
      message = f"cannot listen at port {port} ({error.strerror}); name another"
      raise ConfigError(f"--coordinator={coordinator}: {message}") from None
    with server:
      server.settimeout(0.1)
      _wait_for(who_is_missing, limit_seconds)
    for connection in came.values():
      with contextlib.suppress(OSError):  # which jax will find out
        connection.sendall(b"!")


def _wait_for(awaited: Callable[[], str], limit_seconds: float) -> None:
  """Waits until nobody is awaited; says who is after `WAIT_SECONDS`.

  Raises:
    RunError: after `limit_seconds`.
  """
  began, said, limit = time.monotonic(), False, f"{limit_seconds:g} s"
  while who := awaited():
    passed = time.monotonic() - began
    if passed > limit_seconds:
      raise RunError(
        f"{who} did not come within {limit}; start all of them, or raise --join_seconds"
      )
    if passed > WAIT_SECONDS and not said:
      said = True
      print(f"waiting for {who}, for {limit} at most (--join_seconds)", file=sys.stderr, flush=True)
    time.sleep(0.05)


def _end_unless(joined: threading.Event, limit_seconds: float) -> None:
  """Ends this process where the others do not join jax in time, which would abort it."""
  try:
    _wait_for(lambda: "" if joined.is_set() else "the other processes", limit_seconds)
  except RunError as error:
    print(f"isoflop: {error}", file=sys.stderr, flush=True)
    os._exit(1)


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
  of_this_host = isinstance(error, (OSError, RunError))
  message = first_line if of_this_host else f"{LOST} ({first_line})"
  print(f"isoflop: {message}", file=sys.stderr, flush=True)
  os._exit(1 if of_this_host else _LOST_CODE)


def census() -> str:
  """Counts the processes and their devices, in a line; RunError: each has another number."""
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
