"""The command of a sweep of models that train for seconds, and the table that it writes."""

import csv

from scaling.launch import child

FLAGS = (
  f"--config={child.ROOT}/configs/base.py", "--config.data.seq_len=32",
  "--config.data.batch_size=4", "--config.optim.warmup_tokens=256",
  "--config.train.eval_tokens=2048", "--config.fit.bootstraps=100",
)  # fmt: skip


def flags(corpus, sizes="0,1,2", budgets="4e8,8e8,2e9", probe=""):
  """Returns the flags of the sweep; to give one of these four again would add to it."""
  design = {"sizes": sizes, "budgets": budgets, "probe_sizes": probe}
  source = f"--config.data.source=text:{corpus}"
  return (*FLAGS, source, *(f"--config.sweep.{k}=({v})" for k, v in design.items()))


def command(workdir, corpus, *more, **design):
  workdir = f"--workdir={workdir}"
  return child.command("scaling.main", "sweep", workdir, *flags(corpus, **design), *more)


def table(workdir):
  """Returns cells.csv without what a clock decides."""
  with (workdir / "cells.csv").open() as file:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
