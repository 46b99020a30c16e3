"""A worker: one process that trains packs of tasks, and says in events how far they are.

`python -m scaling.launch.worker TASK_FILE` trains a pack (`Pack.describe`), and appends a line
per event to events.jsonl beside it. It ends with 0 where all runs are done, 2 where the user
must mend what they failed by, 1 where they failed otherwise, 130 where they were interrupted.

`--serve CORE` ("any": on all cores) trains the packs of a local launcher one after another: it
reads a message per line from standard input, and writes events to standard output. When its
launcher dies the input ends, and so does the worker.
"""

import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO

from ml_collections import ConfigDict

from configs import errors
from train.system import files, process

Send = Callable[[dict], None]


def run_file(path: Path) -> int:
  """Trains, or compiles, the tasks of a file; returns the exit code."""
  process.use_huge_pages()
  process.keep_freed_pages()
  process.use_xla_flags()
  should_stop = process.StopSignal().install()
  message = files.read_json(path)
  if message is None:
    print(f"{path}: no such file; name a task.json", file=sys.stderr)
    return 2
  codes = {0}
  with path.with_name("events.jsonl").open("a", buffering=1) as file:

    def send(event: dict) -> None:
      if event.get("finished") == "interrupted":
        codes.add(130)
      elif event.get("finished") == "failed":
        codes.add(2 if event["failure"]["kind"] == "user" else 1)
      _write(file, event)

    with _reported(send):
      process.use_compile_cache()
      if message["preflight"]:
        compile_runs(message, send)
      else:
        for task in message["tasks"]:
          wait_for(Path(task["folder"]), should_stop)
        if should_stop():
          return 130
        train(message, send, should_stop)
  return 1 if 1 in codes else max(codes)


def wait_for(folder: Path, should_stop: Callable[[], bool]) -> None:
  """Waits for a worker that a killed launcher has left in a run's folder."""
  files.make_run_folder(folder)
  while not should_stop():
    with contextlib.suppress(files.FolderInUseError), files.owned(folder, wait_seconds=1.0):
      return


@contextlib.contextmanager
def _reported(send: Send) -> Iterator[None]:
  """Sends a bug of no run: what a run raises is its outcome."""
  try:
    yield
  except Exception as error:
    if errors.kind(error) == "bug":
      send({"bug": traceback.format_exc()})
    raise


def serve(core: str) -> None:
  """Serves messages until the input ends."""
  send = partial(_write, os.fdopen(os.dup(1), "w", buffering=1))
  os.dup2(2, 1)  # what libraries print goes to the log
  if core != "any":
    process.pin(int(core))
  process.keep_freed_pages()
  should_stop = process.StopSignal().install()
  messages: SimpleQueue[dict] = SimpleQueue()
  threading.Thread(target=_listen, args=(messages, should_stop), daemon=True).start()
  with _reported(send):
    answer(messages, send, should_stop)


def answer(messages: SimpleQueue, send: Send, should_stop: process.StopSignal) -> None:
  """Answers messages until one asks to stop."""
  import jax  # takes seconds; the listener is already there

  from train import aot, pack

  process.use_compile_cache()
  send({"ready": {"device": jax.devices()[0].device_kind, "devices": len(jax.devices())}})
  ahead = threading.Thread()
  while not (message := messages.get()).get("stop"):
    if ahead.ident:
      ahead.join()  # two threads must not build one program
    if "rate" in message:
      config = ConfigDict(message["rate"])
      send({"rate": pack.rate(config, message["slots"], message["seconds"])})
    elif message["preflight"]:
      compile_runs(message, send)
    else:
      if following := message["next"]:
        arguments = ConfigDict(following["config"]), following["slots"]
        ahead = threading.Thread(target=aot.compile_ahead, args=arguments, daemon=True)
        ahead.start()
      train(message, send, should_stop)
      if should_stop():
        return


def compile_runs(message: dict, send: Send) -> None:
  """Compiles the runs of a message side by side, and records what each needs of its device."""
  from train import aot

  names, runs = _runs(message)
  with ThreadPoolExecutor(len(process.cores())) as threads:
    pending = [threads.submit(aot.record_needs, *run, message["preflight"]) for run in runs]
    for i, future in enumerate(pending):
      try:
        outcome: dict | Exception = future.result()
      except Exception as error:
        outcome = error
      _end(send, names, i, outcome)


def train(message: dict, send: Send, should_stop: process.StopSignal) -> None:
  """Trains the runs of a message together."""
  from train import pack

  names, runs = _runs(message)
  pack.train(
    runs,
    should_stop,
    partial(_report, send, names),
    partial(_end, send, names),
    lambda text: send({"message": text}),
    message["slots"],
  )


def _runs(message: dict) -> tuple[list[str], list[tuple[ConfigDict, Path]]]:
  tasks = message["tasks"]
  runs = [(ConfigDict(task["config"]).lock(), Path(task["folder"])) for task in tasks]
  for _, folder in runs:
    files.make_run_folder(folder)
  return [task["id"] for task in tasks], runs


def _report(send: Send, names: list[str], i: int, progress: dict) -> None:
  send({"id": names[i], **progress})


def _end(send: Send, names: list[str], i: int, outcome: dict | Exception) -> None:
  """Sends how a run has ended; the traceback of a bug goes along, and into the log."""
  if isinstance(outcome, process.Interrupted):
    event: dict = {"finished": "interrupted"}
  elif isinstance(outcome, Exception):
    first_line = (str(outcome).splitlines() or [""])[0]
    kind = errors.kind(outcome)
    text = "".join(traceback.format_exception(outcome)) if kind == "bug" else ""
    print(f"{names[i]}: {text or first_line}", file=sys.stderr, flush=True)
    failure = {"error": f"{type(outcome).__name__}: {first_line}", "kind": kind, "traceback": text}
    event = {"finished": "failed", "failure": failure}
  else:
    event = {"finished": outcome["status"], "loss": outcome.get("loss")}
  send({"id": names[i], **event})


def _write(events: TextIO, event: dict) -> None:
  events.write(json.dumps(event) + "\n")


def _listen(messages: SimpleQueue, should_stop: process.StopSignal) -> None:
  for line in sys.stdin:
    message = json.loads(line)
    if message.get("stop"):
      should_stop.set()
    messages.put(message)
  os._exit(0)  # the launcher is gone


if __name__ == "__main__":
  if sys.argv[1] == "--serve":
    serve(sys.argv[2])
  else:
    sys.exit(run_file(Path(sys.argv[1])))
