"""The commands and environments of the Python processes that this project starts."""

import os
import sys
from pathlib import Path

from train.system import process

ROOT = Path(__file__).parents[2]
MEMORY_SHARE = 0.75  # of a device's memory, which jax takes by default as soon as it is used
MEMORY_FLAG = "XLA_CLIENT_MEM_FRACTION"
OLD_MEMORY_FLAG = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # its former name; jaxlib refuses both together


def command(module: str, *arguments: str) -> list[str]:
  """Builds the command that runs one of our modules.

  -P leaves the current folder off the module path, where a user may have a train.py or a model/.
  """
  return [sys.executable, "-P", "-m", module, *arguments]


def environment(**variables: str) -> dict[str, str]:
  """Returns this process's environment, changed by `variables`, with our packages importable."""
  env = dict(os.environ)
  if (ROOT / "pyproject.toml").exists():  # a checkout, which need not be installed
    paths = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
    env["PYTHONPATH"] = os.pathsep.join(paths)
  return env | variables


def worker_environment(workers: int) -> dict[str, str]:
  """Returns the environment of one of several workers.

  Workers that share an accelerator get equal parts of what jax would take of its memory, unless the
  user's environment sets a share: the first worker would leave too little to the others.
  """
  env = environment()
  if workers > 1 and process.has_accelerator() and not {MEMORY_FLAG, OLD_MEMORY_FLAG} & env.keys():
    env[MEMORY_FLAG] = f"{MEMORY_SHARE / workers:.4f}"
  return env
