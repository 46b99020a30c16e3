"""Seals the prediction of a sweep's fit, trains what is left of its held-out cells, judges.

isoflop verify --workdir=runs/quick
"""

from absl import flags

from configs import base
from scaling.commands.arguments import WORKDIR, Flag, workdir_of
from scaling.commands.sweep import run_sweep

RESUMABLE = True
FLAGS: tuple[Flag, ...] = (WORKDIR,)


def run(args: flags.FlagValues) -> None:
  from scaling.sweep import store

  workdir = workdir_of(args)
  head, _ = store.read_sweep(workdir)
  run_sweep(base.from_json(head["config"]), workdir)
