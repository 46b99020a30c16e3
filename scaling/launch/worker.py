"""A worker: one process on one core that does what it is told, one run or pack after the other.

It reads its tasks, those that are trained together in a line, from its standard input and writes
an event per line to its standard output. When its launcher dies the input ends, and so does the
worker. Started by `scaling.launch.local`.
"""

import json
import os
import sys
import threading
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from train.system import process

TAKEN = 0.75  # share of a device's memory that jax takes by default, as soon as it is used
FRACTION = "XLA_CLIENT_MEM_FRACTION"
OLD_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # its former name; jaxlib refuses both together


def environment(workers: int) -> dict[str, str]:
  """Returns the environment of so many workers.

  Several that share an accelerator get equal parts of what jax would take of its memory, unless the
  user's environment says what each of them takes: the first would leave too little to the others.
  """
  own = dict(os.environ)
  if workers > 1 and process.has_accelerator() and not {FRACTION, OLD_FRACTION} & own.keys():
    own[FRACTION] = f"{TAKEN / workers:.4f}"
  return own


def main(core: str) -> None:
  """Serves tasks until the input ends."""
  events = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # what libraries print goes to the log
  if core != "any":
    process.pin(int(core))
  process.keep_freed_pages()
  should_stop = process.StopSignal().install()
  tasks: SimpleQueue[dict] = SimpleQueue()

  def listen() -> None:
    for line in sys.stdin:
      message = json.loads(line)
      if message.get("stop"):
        should_stop.set()
      tasks.put(message)
    os._exit(0)  # the launcher is gone

  threading.Thread(target=listen, daemon=True).start()

  def send(event: dict) -> None:
    events.write(json.dumps(event) + "\n")

  # The imports take seconds; the listener is already there.
  import jax
  from ml_collections import ConfigDict

  from train import fitting, loop, pack

  process.use_compile_cache()
  send({"ready": {"device": jax.devices()[0].device_kind, "devices": len(jax.devices())}})

  def progress(names: list[str], i: int, event: dict) -> None:
    send({"id": names[i], **event})

  def ended(names: list[str], i: int, outcome: dict | Exception) -> None:
    if isinstance(outcome, loop.Interrupted):
      event: dict = {"finished": "interrupted"}
    elif isinstance(outcome, Exception):
      first_line = (str(outcome).splitlines() or [""])[0]
      event = {"finished": "failed", "error": f"{type(outcome).__name__}: {first_line}"}
    else:
      event = {"finished": outcome["status"], "loss": outcome.get("loss")}
    send({"id": names[i], **event})

  ahead = threading.Thread()
  while True:
    message = tasks.get()
    if message.get("stop"):
      return
    if ahead.ident:
      ahead.join()  # two threads must not build one program
    if "rate" in message:
      config = ConfigDict(message["rate"])
      send({"rate": pack.rate(config, message["slots"], message["seconds"])})
      continue
    names = [task["id"] for task in message["tasks"]]
    runs = [(ConfigDict(task["config"]).lock(), Path(task["folder"])) for task in message["tasks"]]
    if sharing := message["preflight"]:
      for i, (config, folder) in enumerate(runs):
        try:
          ended(names, i, fitting.record(config, folder, sharing))
        except Exception as error:
          ended(names, i, error)
    else:
      if following := message.get("next"):
        arguments = ConfigDict(following["config"]), following["slots"]
        ahead = threading.Thread(target=pack.compile_ahead, args=arguments, daemon=True)
        ahead.start()
      own = partial(progress, names), partial(ended, names)
      pack.train(runs, should_stop, *own, lambda text: send({"said": text}), message["slots"])
      if should_stop():
        return


if __name__ == "__main__":
  main(*sys.argv[1:])
