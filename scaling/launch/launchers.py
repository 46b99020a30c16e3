"""The launchers, by the name that `config.sweep.launcher` gives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from scaling.launch.base import Launcher
from scaling.launch.command import Command
from scaling.launch.local import Pool
from scaling.progress import Display

Stop = Callable[[], bool]
Tick = Callable[[], None]


def local(
  options: ConfigDict, workdir: Path, each_core: bool, display: Display, stop: Stop, tick: Tick
) -> Launcher:
  """Starts processes on this machine, on a core each or on all cores."""
  return Pool(workdir, options.workers, display, stop, tick, each_core)


def command(
  options: ConfigDict, workdir: Path, each_core: bool, display: Display, stop: Stop, tick: Tick
) -> Launcher:
  """Prepares to start `sweep.command` for each pack of runs."""
  del each_core
  return Command(workdir, options.command, options.workers, display, stop, tick)


LAUNCHERS = {"local": local, "command": command}


@contextmanager
def workers(
  options: ConfigDict, workdir: Path, each_core: bool, display: Display, stop: Stop, *ticks: Tick
) -> Iterator[Launcher]:
  """Starts the workers of a sweep, which come up while the text is prepared; ends them after.

  Each of `ticks` is called now and then while they train.
  """

  def tick() -> None:
    for each in ticks:
      each()

  pool = LAUNCHERS[options.launcher](options, workdir, each_core, display, stop, tick)
  try:
    yield pool
  finally:
    pool.close()
