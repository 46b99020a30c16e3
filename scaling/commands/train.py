"""Trains one model; run it again to continue where it stopped.

isoflop train --config=configs/clm.py --workdir=runs/one
"""

import sys

from absl import flags

from configs.bounds import positive
from configs.errors import RunError, UsageError
from scaling.arguments import WORKDIR, Flag, workdir_of

CONFIG = "configs/clm.py"
RESUMABLE = True
FLAGS: tuple[Flag, ...] = (
  WORKDIR,
  ("coordinator", "", "HOST:PORT of the first of several processes; Slurm and TPUs need none."),
  ("processes", 0, "How many processes train this model together."),
  ("process", -1, "Which of them this is, from 0."),
  ("join_seconds", positive(300.0), "How long it waits for the others [s]."),
)


def run(args: flags.FlagValues) -> None:
  from scaling.progress import Display
  from train.system import distributed, files, process

  config, workdir = args.config, workdir_of(args)
  if config.optim.rule:
    raise UsageError("optim.rule: a sweep's cells take their rates from it; set optim.lr here")
  if workdir.is_dir() and not distributed.several(args.processes):
    with files.owned(workdir):  # that it is in use is said before jax is imported
      pass
  named = args.coordinator, args.processes, args.process
  distributed.join(*named, args.join_seconds)  # before jax is imported
  import jax

  from train import loop

  first = jax.process_index() == 0  # alone of several it says how the run goes
  if jax.process_count() > 1:
    census = distributed.census()
    if first:
      print(census, file=sys.stderr, flush=True)
  process.use_compile_cache()
  should_stop = process.StopSignal().install()
  with Display(str(workdir)) as display:
    report = display.update_one if first else lambda progress: None
    record = loop.train(config, workdir, should_stop, report)
  if record["status"] != "done":
    raise RunError(f"{workdir}: the run {record['status']}; see metrics.jsonl")
  if not first:
    return
  print(
    f"{workdir}: loss {record['loss']:.4f} ± {record['loss_stderr']:.4f} nats per token, "
    f"{record['bits_per_byte']:.3f} bits per byte; N = {record['N']:,}, D = {record['D']:,}, "
    f"C = {record['C']:.3e} FLOPs, {record['seconds']:.1f} s "
    f"on {record.get('devices', 1)} device(s)"
  )
