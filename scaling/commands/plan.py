"""Prints every cell of a sweep and the total, or what one run costs; trains nothing.

  isoflop plan --config=configs/sweeps/quick.py
  isoflop plan --config=configs/large.py:70b --devices=512 --device_memory=80GiB
  isoflop plan --next --runs=runs.csv --next_flops=1e21

A config that changes nothing in `config.sweep` is one run. --devices and --device_memory are
imagined: with them it says what each device would hold, whether it fits, and what would.
--target compiles every program for devices that need not be there (a100, h100, h200, b200, v4, v5e,
v5p, v6e; h100:2x8 is two hosts, v5e:16x16 a slice), and says whether they fit, what they send, and
how fast they could be at best; with --workdir, also its plan.json.
The time of a sweep is that of steps that are timed here, on a core of their own, or with --device
and --mfu that of a device.
"""

from absl import flags

from configs.bounds import at_least_1, up_to_1
from configs.errors import UsageError
from scaling.arguments import RUNS, WORKDIR, Flag, workdir_of

CONFIG = "configs/sweeps/quick.py"
FLAGS: tuple[Flag, ...] = (
  WORKDIR,
  ("devices", at_least_1(1), "Imagined devices that train one model together."),
  ("device_memory", "", "Of each of them, as 80GiB, 80GB or 24e9: says what fits."),
  ("target", "", "Compiles all programs for these devices, as h100, h100:2x8 or v5e:2x4."),
  ("device", "", "Its time on this device, as h100 or v5e, of which training reaches --mfu."),
  ("mfu", up_to_1(0.4), "Share of the device's peak that training reaches."),
  *RUNS,
  ("next", False, "Prints which runs would tell most, beside those of a sweep or a table."),
  ("next_flops", "", "What they may cost together: 1e12, or 0.5PFs-days; as its largest cell."),
)


def run(args: flags.FlagValues) -> None:
  from scaling.formats import headed
  from scaling.laws import questions
  from scaling.sweep import adaptive, design
  from scaling.targets import layouts, summary

  if args.target and (args.next or args.devices != 1 or args.device_memory):
    raise UsageError("--target has its devices; leave --devices, --device_memory and --next out")
  if args.runs and not args.next:
    raise UsageError(
      "--runs: a table of runs has no plan; add --next, which asks what would tell most"
    )
  of_sweep = args.next and not args.runs
  workdir = workdir_of(args, exists=args.next) if of_sweep or args.workdir else None
  budget = questions.parse_flops(args.next_flops, "next_flops")
  if args.target:
    print(summary.target_report(args.config, args.target, workdir))
  elif args.next and args.runs:
    reading = {"columns": args.columns, "where": args.where, "exclude": args.exclude}
    print(adaptive.table_of_runs(args.config, args.runs, reading, budget))
  elif workdir and args.next:
    arms = design.split(args.config)
    print(headed({x: adaptive.table(arms[x], workdir / x, budget) for x in arms}))
  elif summary.is_sweep(args.config):
    print(design.plan_table(args.config, workdir, args.device, args.mfu))
    if args.devices > 1 or args.device_memory:
      print("\n" + summary.sweep_memory(args.config, args.devices, args.device_memory))
  else:
    if args.device:
      raise UsageError("--device: gives the time of a sweep; what one run needs, --target says")
    print(layouts.run_report(args.config, args.devices, args.device_memory))
