"""Plans, probes, trains, fits, seals a prediction, trains it, reports; continues where it stopped.

isoflop sweep --config=configs/sweeps/quick.py --workdir=runs/quick
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from scaling.commands.arguments import WORKDIR, Flag, workdir_of

CONFIG = "configs/sweeps/quick.py"
RESUMABLE = True
FLAGS: tuple[Flag, ...] = (
  WORKDIR,
  ("adaptive", False, "Spends config.sweep.adaptive_flops on the cells that tell most."),
)


def run(args: flags.FlagValues) -> None:
  run_sweep(args.config, workdir_of(args), args.adaptive)


def run_sweep(config: ConfigDict, workdir: Path, adaptive: bool = False) -> None:
  """Runs a sweep, or what is left of it, and prints its report."""
  from scaling.progress import Display
  from scaling.report import report
  from scaling.sweep import run
  from train.system import process

  should_stop = process.StopSignal().install()
  with Display(config.sweep.name) as display:
    run.sweep(config, workdir, display, should_stop, adaptive, process.BEGAN)
  print(report.terminal(workdir))
