"""Trains one model; run it again to continue where it stopped.

isoflop train --config=configs/clm.py --workdir=runs/one
"""

import sys

from absl import flags

from configs.errors import RunError
from scaling.commands.arguments import WORKDIR, Flag, workdir_of

CONFIG = "configs/clm.py"
RESUMABLE = True
FLAGS: tuple[Flag, ...] = (
  WORKDIR,
  ("coordinator", "", "HOST:PORT of the first of several processes; Slurm and TPUs need none."),
  ("processes", 0, "How many processes train this model together."),
  ("process", -1, "Which of them this is, from 0."),
)


def run(args: flags.FlagValues) -> None:
  from scaling.progress import Display
  from train.system import distributed, files, process

  config, workdir = args.config, workdir_of(args)
  if workdir.is_dir() and not distributed.several(args.processes):
    with files.owned(workdir):  # that it is in use is said before jax is imported
      pass
  distributed.join(args.coordinator, args.processes, args.process)  # before jax is imported
  import jax

  from train import loop

  if jax.process_count() > 1:
    print(distributed.census(), file=sys.stderr, flush=True)
  process.use_compile_cache()
  should_stop = process.StopSignal().install()
  with Display(str(workdir)) as display:
    record = loop.train(config, workdir, should_stop, display.update_one)
  if record["status"] != "done":
    raise RunError(f"{workdir}: the run {record['status']}; see metrics.jsonl")
  print(
    f"{workdir}: loss {record['loss']:.4f} ± {record['loss_stderr']:.4f} nats per token, "
    f"{record['bits_per_byte']:.3f} bits per byte; N = {record['N']:,}, D = {record['D']:,}, "
    f"C = {record['C']:.3e} FLOPs, {record['seconds']:.1f} s"
  )
