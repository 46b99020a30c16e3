"""The command of a sweep of models that train for seconds, and the table that it writes."""

import csv

from scaling.launch import child

FLAGS = (
  f"--config={child.ROOT}/configs/base.py", "--config.data.seq_len=32",
  "--config.data.batch_size=4", "--config.optim.warmup_tokens=256",
  "--config.train.eval_tokens=2048", "--config.sweep.sizes=(0,1,2)",
  "--config.sweep.budgets=(4e8,8e8,2e9)", "--config.sweep.probe_sizes=()",
  "--config.fit.bootstraps=100",
)  # fmt: skip


def command(workdir, corpus, *flags):
  source = f"--config.data.source=text:{corpus}"
  return child.command("scaling.main", "sweep", f"--workdir={workdir}", *FLAGS, source, *flags)


def table(workdir):
  """Returns cells.csv without what a clock decides."""
  with (workdir / "cells.csv").open() as file:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
