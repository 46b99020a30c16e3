"""Seals the prediction of a sweep's fit, trains what is left of its held-out cells, judges.

isoflop verify --workdir=runs/quick
"""

from absl import flags

from configs import base
from scaling.arguments import WORKDIR, Flag, workdir_of

RESUMABLE = True
FLAGS: tuple[Flag, ...] = (WORKDIR,)


def run(args: flags.FlagValues) -> None:
  from scaling.progress import Display
  from scaling.report import report
  from scaling.sweep import run as sweep_run
  from scaling.sweep import store
  from train.system import process

  workdir = workdir_of(args)
  config = base.from_json(store.read_sweep(workdir)[0]["config"])
  should_stop = process.StopSignal().install()
  with Display(config.sweep.name) as display:
    sweep_run.sweep(config, workdir, display, should_stop, began=process.BEGAN)
  print(report.terminal(workdir))
