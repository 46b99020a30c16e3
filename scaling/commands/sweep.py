"""Plans, probes, trains, fits, seals a prediction, trains it, reports; continues where it stopped.

isoflop sweep --config=configs/sweeps/quick.py --workdir=runs/quick
"""

from absl import flags

from scaling.arguments import WORKDIR, Flag, workdir_of

CONFIG = "configs/sweeps/quick.py"
RESUMABLE = True
FLAGS: tuple[Flag, ...] = (
  WORKDIR,
  ("adaptive", False, "Spends config.sweep.adaptive_flops on the cells that tell most."),
)


def run(args: flags.FlagValues) -> None:
  from scaling.progress import Display
  from scaling.report import document
  from scaling.sweep import run as sweep_run
  from train.system import process

  workdir = workdir_of(args)
  should_stop = process.StopSignal().install()
  with Display(args.config.sweep.name) as display:
    sweep_run.sweep(args.config, workdir, display, should_stop, args.adaptive, process.BEGAN)
  print(document.terminal(workdir))
