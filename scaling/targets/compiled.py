"""Compiles a run's programs for a target, in processes of their own, and says what they need.

Started as `python -m scaling.targets.compiled` it reads a task from its input and writes its rows.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.errors import UserError
from scaling.launch import child
from scaling.progress import Display
from scaling.targets import catalog, executed, roofline
from train.system import process

PROGRAMS = ("step", "evaluate", "init")
TELL_SECONDS = 2.0
SLOWEST = 20  # instructions that are kept of each program


class Task(NamedTuple):
  """Programs of one config that one process compiles, one after the other."""

  case: str  # names its rows
  config: dict[str, Any]  # resolved
  vocab_size: int  # of the tokenizer
  target: str  # its name
  slots: int = 1  # runs that are trained together
  programs: Sequence[str] = PROGRAMS


def compile_all(tasks: Sequence[Task]) -> list[dict]:
  """Compiles tasks and returns their rows, in the tasks' order: one for each program."""
  with futures.ThreadPoolExecutor(len(process.cores())) as pool, Display("compiling") as display:
    results = [pool.submit(_in_process, task) for task in tasks]
    pending = {*results}
    while pending:
      _, pending = futures.wait(pending, TELL_SECONDS, futures.FIRST_COMPLETED)
      display.show(f"{len(tasks) - len(pending)} of {len(tasks)}")
  return [row for future in results for row in future.result()]


def environment(target: catalog.Target) -> dict[str, str]:
  """Makes the environment of a process that compiles for a target, and uses no device."""
  variables = child.environment(JAX_PLATFORMS="cpu")
  if not target.tpu:
    flags = " ".join(f"--{name}={value}" for name, value in process.XLA_FLAGS.items())
    variables["XLA_FLAGS"] = f"{flags} {variables.get('XLA_FLAGS', '')}"
  return variables


def _in_process(task: Task) -> list[dict]:
  """A task's rows, from a process of its own: a compiler that fails may end it."""
  finished = subprocess.run(
    child.command("scaling.targets.compiled"),
    input=json.dumps(task._asdict()),
    env=environment(catalog.parse(task.target)),
    capture_output=True,
    text=True,
  )
  if finished.returncode == 0:
    return json.loads(finished.stdout.splitlines()[-1])
  print(finished.stderr, end="", file=sys.stderr, flush=True)
  last = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
  head = {"case": task.case, "error": f"the compiler ended: {last[:300]}"}
  return [head | {"program": name} for name in task.programs]


def rows(task: Task) -> list[dict]:
  """Compiles a task's programs and returns what each needs (see `compile_all`)."""
  import jax

  from train import aot

  target, config = catalog.parse(task.target), ConfigDict(task.config)
  causal = config.model.family == "decoder"
  answers, programs = [], None
  for name in task.programs:
    head, began = {"case": task.case, "program": name}, time.monotonic()
    try:
      if programs is None:
        devices = catalog.devices(target)
        programs = aot.lowered(config, task.vocab_size, devices, task.slots)
      compiled = programs[name].compile()
    except (UserError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
      answers.append(head | {"error": message_of(error)})
    else:
      seconds = {"compile_seconds": time.monotonic() - began}
      answers.append(head | _needs(compiled, target, causal) | seconds)
  return answers


def message_of(error: Exception) -> str:
  """Picks the line of a compiler's error that says what is wrong, and names the error's type."""
  lines = str(error).strip().splitlines() or [""]
  line = lines[-1] if "Traceback" in lines[0] else lines[0]
  return f"{type(error).__name__}: {line[:400]}"


def _needs(compiled: Any, target: catalog.Target, causal: bool) -> dict[str, Any]:
  """Measures what a compiled program (`jax.stages.Compiled`) needs of each device of a target."""
  works = executed.read(compiled.as_text(), target.tpu, causal)
  sums, times = executed.total(works), roofline.times(works, target)
  sent: dict[str, dict[str, Any]] = {}
  for work, count in executed.flat(works):
    if work.kind in executed.COLLECTIVES:
      of_kind = sent.setdefault(work.kind, {"bytes": 0, "times": 0, "async": 0, "dtypes": []})
      of_kind["bytes"] += count * work.payload
      of_kind["times"] += count
      of_kind["async"] += count * work.is_async
      of_kind["dtypes"] = sorted({*of_kind["dtypes"], work.dtype})
  memory = compiled.memory_analysis()
  parts = {
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "outputs": memory.output_size_in_bytes,
    "donated": memory.alias_size_in_bytes,
  }
  return parts | {
    "held": sum(parts.values()) - 2 * parts["donated"],
    "flops": sums["flops"],
    "bytes": sums["nbytes"],
    "collectives": sent,
    "seconds": times.total,
    "seconds_alone": times._asdict(),
    "slowest": roofline.slowest(works, target, SLOWEST),
  }


if __name__ == "__main__":
  output, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no row
  print(json.dumps(rows(Task(**json.load(sys.stdin)))), file=output)
