"""Proposes a whole sweep for a compute, and says what it is expected to tell.

  isoflop design --compute=2h --config.data.source=text:~/books
  isoflop design --compute=1e17 --device=h100 --output=configs/mine.py

Designs that cost as much (budgets, sizes, seeds, probes, held-out cells) are simulated from laws
that are plausible before any run; the one that should tell N* best at the farthest held-out budget
is written as a config file, to be edited and run. --compute is FLOPs, or a time on this machine, or
on --device at --mfu of its peak. Text, model and training are those of --config.
"""

import datetime
import textwrap
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from configs.bounds import up_to_1
from configs.errors import UsageError
from scaling.arguments import Flag

CONFIG = "configs/clm.py"
FLAGS: tuple[Flag, ...] = (
  ("compute", "", "What the sweep may cost: 2h or 30min; 1e15 FLOPs, or 0.5PFs-days."),
  ("device", "", "A time is one on this device, as h100; else on this machine."),
  ("mfu", up_to_1(0.4), "Share of the device's peak that training reaches."),
  ("output", "design.py", "The config file that is written."),
)
FILE = '''"""Proposed by `isoflop design --compute={compute}`, {date}.

{text}
"""

from configs import base


def get_config():
  """Configures the sweep that was proposed."""
  c = base.get_config()
{fields}
  return c
'''


def run(args: flags.FlagValues) -> None:
  from scaling.progress import Display
  from scaling.sweep import propose
  from train.data import dataset

  flops, seconds = propose.parse_compute(args.compute)
  output = Path(args.output).expanduser()
  if output.exists():
    raise UsageError(f"--output={output}: exists already; name another file")
  if args.config.sweep.arms:
    raise UsageError("sweep.arms: a design is one for all arms; leave them out, and add them to it")
  tokens = dataset.prepare(args.config)
  with Display("design") as display:
    cost: propose.Cost = propose.flops_of
    if seconds:
      cost = propose.seconds_of(args.config, args.device, args.mfu, tokens.vocab_size)
    compute = flops or seconds - propose.FIXED_SECONDS
    proposal = propose.propose(args.config, tokens, compute, cost, display)
  text = describe(proposal, bool(seconds), args.config.fit.level)
  output.write_text(source(proposal.config, args.compute, text, output))
  print(f"{text}\n\nisoflop sweep --config={output} --workdir=runs/{output.stem}")


def describe(proposal, in_seconds: bool, level: float) -> str:
  """Says what a proposal is, and what it is expected to tell."""
  from scaling.formats import duration
  from scaling.sweep import propose

  s, cells = proposal.config.sweep, proposal.cells
  time = f"about {duration(proposal.cost + propose.FIXED_SECONDS)}"
  cost = time if in_seconds else f"{proposal.cost:.2e} FLOPs"
  budgets = ", ".join(f"{budget:.3g}" for budget in s.budgets)
  lines = [
    f"{len(cells)} runs of sizes {', '.join(map(str, s.sizes))} at {budgets} FLOPs, held out up to "
    f"{proposal.C:.3g}; {cost} in all, probes and held-out runs included.",
    f"Expected there, of simulated sweeps: N* within a factor {proposal.factor:.2f} and the loss "
    f"within {proposal.loss:.1%} either way, each by an interval of {level:.0%}; N* misses by "
    f"{proposal.error:.0%} (root mean square of its log).",
  ]
  if proposal.undetermined:
    lines.append(f"{proposal.undetermined:.0%} of them determined no optimum there; allow more.")
  repeated = f"The longest fitted run reads the text {proposal.epochs:.2g} times"
  lines.append(
    f"{repeated}, where repeated text is worth less: find more of it."
    if proposal.epochs > 4
    else f"{repeated}: there is enough of it."
  )
  return "\n".join(lines)


def source(config: ConfigDict, compute: str, text: str, output: Path) -> str:
  """Writes a config file."""
  from train import record

  fields = record.diff(config) | {"sweep.name": output.stem}
  values = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
  return FILE.format(
    compute=compute,
    date=datetime.datetime.now(datetime.UTC).date(),
    text="\n".join(textwrap.fill(line, 100) for line in text.splitlines()),
    fields="\n".join(f"  c.{name} = {value!r}" for name, value in values.items()),
  )
