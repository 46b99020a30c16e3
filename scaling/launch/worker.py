"""A worker: one process, on one core or all, that trains the packs it is given, one after another.

It reads a message per line from its standard input, and writes an event per line to its standard
output. When its launcher dies the input ends, and so does the worker.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO

from ml_collections import ConfigDict

from configs import errors
from train.system import process

Send = Callable[[dict], None]


def main(core: str) -> None:
  """Serves messages until the input ends."""
  send = partial(_write, os.fdopen(os.dup(1), "w", buffering=1))
  os.dup2(2, 1)  # what libraries print goes to the log
  if core != "any":
    process.pin(int(core))
  process.keep_freed_pages()
  should_stop = process.StopSignal().install()
  messages: SimpleQueue[dict] = SimpleQueue()
  threading.Thread(target=_listen, args=(messages, should_stop), daemon=True).start()
  try:
    serve(messages, send, should_stop)
  except Exception as error:  # of no run: what a run raises is its outcome
    if errors.kind(error) == "bug":
      send({"bug": traceback.format_exc()})
    raise


def serve(messages: SimpleQueue, send: Send, should_stop: process.StopSignal) -> None:
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
  """Compiles each run of a message, and records what it needs of its device."""
  from train import aot

  names, runs = _runs(message)
  for i, (config, folder) in enumerate(runs):
    try:
      outcome: dict | Exception = aot.record_needs(config, folder, message["preflight"])
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
  main(*sys.argv[1:])
