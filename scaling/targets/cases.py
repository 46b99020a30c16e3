"""What `isoflop plan` looks at on devices that are not here: a run, or each size of a sweep."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ml_collections import ConfigDict

from configs import base
from scaling.formats import headed
from scaling.launch.queue import power_of_two
from scaling.sweep import plan
from scaling.sweep.design import designs, split
from scaling.targets import catalog, layouts, report
from train import record
from train.data import tokenizer


def is_sweep(config: ConfigDict) -> bool:
  """Tells whether a config means a sweep: it changes something in `config.sweep`."""
  return config.sweep.to_dict() != base.get_config().sweep.to_dict()


def sweep_memory(config: ConfigDict, devices: int, device_memory: str) -> str:
  """Reports what each device holds by size of a sweep (`layouts.sizes_report`), by arm."""
  texts = {}
  for name, arm in split(config).items():
    sizes = sorted({*arm.sweep.probe_sizes, *arm.sweep.sizes})
    configs = {size: plan.at_size(arm, size) for size in sizes}
    texts[name] = layouts.sizes_report(configs, devices, device_memory)
  return headed(texts)


def target_report(
  config: ConfigDict, name: str, workdir: Path | None, stream: TextIO = sys.stderr
) -> str:
  """Compiles a run's or a sweep's programs for a target and reports what each needs.

  The workdir (the sweep's, if it has begun) gets all figures in its plan.json.

  Raises:
    UserError: there is no such target, its packages are missing, or the config cannot be trained
      on it.
  """
  target = catalog.parse(name)
  catalog.check_installed(target)
  return report.report([*plan_cases(config, workdir, target)], target, workdir, stream)


def plan_cases(
  config: ConfigDict, workdir: Path | None, target: catalog.Target
) -> Iterator[report.Case]:
  """Yields what is compiled: the programs of a run, or of each size of a sweep."""
  if not is_sweep(config):
    config = layouts.resolve(config, target.devices)
    vocab_size = tokenizer.size(config.data.tokenizer)
    total, every = record.size_of(config, vocab_size).steps, config.train.eval_every_steps
    yield report.Case("run", config, vocab_size, total, 1 + (total // every if every else 0))
    return
  for arm, design in designs(config, workdir):
    slots = power_of_two(config.sweep.pack) if config.sweep.pack and target.devices == 1 else 1
    for size in sorted({cell.size for cell in design.cells}):
      of_size = [cell for cell in design.cells if cell.size == size]
      steps = sum(c.flops_spent / (c.flops_per_token * c.tokens_per_step) for c in of_size)
      sized = layouts.resolve(plan.at_size(design.config, size), target.devices)
      name = f"{arm} size {size}".strip()
      yield report.Case(name, sized, design.tokens.vocab_size, steps, len(of_size), slots)
