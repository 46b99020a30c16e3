"""The `isoflop` command.

    isoflop train   --config=configs/clm.py --workdir=runs/one        train one model
    isoflop plan    --config=configs/sweeps/quick.py                  what a sweep would cost
    isoflop sweep   --config=configs/sweeps/quick.py --workdir=DIR    plan, train, fit, verify
    isoflop fit     --workdir=DIR  |  --runs=FILE.csv --workdir=DIR   the law of some runs
    isoflop verify  --workdir=DIR                                     train the sealed prediction
    isoflop report  --workdir=DIR                                     its report and figures
    isoflop runs    --workdir=DIR                                     the runs of a folder

Any field of a config is a flag: --config.model.size=3. `isoflop VERB --help` explains a verb;
`--print_config` shows the resolved config and what differs from the defaults, and does no more.
"""

import difflib
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

USAGE, INTERRUPTED = 2, 130
ROOT = Path(__file__).parents[1]


class UsageError(Exception):
  """The command line cannot be understood."""


# --------------------------------------------------------------------------------- verbs


def train(args: flags.FlagValues) -> None:
  """Trains one model; run it again to continue where it stopped."""
  from scaling.display import Display
  from train import host, loop

  config, workdir = args.config, folder(args)
  should_stop = host.StopSignal().install()
  with Display(str(workdir)) as display:
    record = loop.train(
      config, workdir, should_stop, lambda event: display.update_one(str(workdir), event)
    )
  if record["status"] != "done":
    raise RuntimeError(f"{workdir}: the run {record['status']}; see metrics.jsonl")
  print(
    f"{workdir}: loss {record['loss']:.4f} ± {record['loss_stderr']:.4f} nats per token, "
    f"{record['bits_per_byte']:.3f} bits per byte; N = {record['N']:,}, D = {record['D']:,}, "
    f"C = {record['C']:.3e} FLOPs, {record['seconds']:.1f} s"
  )


def plan(args: flags.FlagValues) -> None:
  """Prints every cell of a sweep and the total; trains nothing."""
  from scaling import listing

  print(listing.plan_table(args.config, Path(args.workdir) if args.workdir else None))


def sweep(args: flags.FlagValues) -> None:
  """Plans, probes, trains, fits, seals a prediction, trains it, reports; continues if stopped."""
  from scaling import report
  from scaling import sweep as sweeps
  from scaling.display import Display
  from train import host

  workdir = folder(args)
  should_stop = host.StopSignal().install()
  with Display(args.config.sweep.name) as display:
    sweeps.sweep(args.config, workdir, display, should_stop)
  print(report.terminal(workdir))


def fit(args: flags.FlagValues) -> None:
  """Fits the law to a sweep's cells, or to the runs of any CSV file with columns N, D, loss."""
  from scaling import fit as fits
  from scaling import report, store
  from scaling import runs as all_runs
  from train import files

  workdir = folder(args)
  files.make_folder(workdir)
  options = args.config.fit
  if not args.runs:
    store.read_sweep(workdir)
  path = args.runs or workdir / "cells.csv"
  law = fits.fit_runs(
    all_runs.read_runs(path, args.columns, options.params, options.flops), options
  )
  files.write_json(workdir / "fit.json", fits.to_json(law))
  print(report.terminal(workdir))


def verify(args: flags.FlagValues) -> None:
  """Seals the prediction of a sweep's fit, trains what is left of its held-out cells, judges."""
  from scaling import report, store
  from scaling import sweep as sweeps
  from scaling.display import Display
  from train import host

  workdir = folder(args)
  head, _ = store.read_sweep(workdir)
  config = from_json(head["config"])
  should_stop = host.StopSignal().install()
  with Display(config.sweep.name) as display:
    sweeps.sweep(config, workdir, display, should_stop)
  print(report.terminal(workdir))


def report(args: flags.FlagValues) -> None:
  """Writes report.md, report.html and figures/ of a workdir from what stands in it."""
  from scaling import report as reports

  print(reports.write(folder(args, exists=True)))


def runs(args: flags.FlagValues) -> None:
  """Lists the runs of a folder: their size, tokens, loss and status."""
  from scaling import listing

  print(listing.runs_table(folder(args, exists=True)))


VERBS: dict[str, tuple[Callable[[flags.FlagValues], None], str]] = {
  # verb: (function, its default config, or "" where the workdir has it)
  "train": (train, "configs/clm.py"),
  "plan": (plan, "configs/sweeps/quick.py"),
  "sweep": (sweep, "configs/sweeps/quick.py"),
  "fit": (fit, "configs/base.py"),
  "verify": (verify, ""),
  "report": (report, ""),
  "runs": (runs, ""),
}

# --------------------------------------------------------------------------------- command line


def flag_values(verb: str, argv: list[str]) -> flags.FlagValues:
  """Returns the flags that a verb takes; a sweep's own config is the default of its `fit`."""
  values = flags.FlagValues()
  default_config = VERBS[verb][1]
  flags.DEFINE_bool("help", False, "Explains the verb.", flag_values=values)
  flags.DEFINE_string("workdir", "", "Folder of the run or sweep.", flag_values=values)
  if default_config:
    help_text = "Config file; --config.FIELD=VALUE overrides one of its fields."
    stored = stored_config(argv) if verb == "fit" else None
    if stored:
      config_flags.DEFINE_config_dict("config", stored, help_text, flag_values=values)
    else:
      config_flags.DEFINE_config_file(
        "config", str(ROOT / default_config), help_text, flag_values=values, sys_argv=argv
      )
    flags.DEFINE_bool(
      "print_config",
      False,
      "Prints the resolved config and its difference from the defaults.",
      flag_values=values,
    )
  if verb == "fit":
    flags.DEFINE_string("runs", "", "A CSV file of runs; else the workdir's.", flag_values=values)
    flags.DEFINE_string(
      "columns", "", "Its column names, as N=params,D=tokens,loss=val_loss.", flag_values=values
    )
  return values


def stored_config(argv: list[str]) -> ConfigDict | None:
  """Returns the config of the sweep in --workdir, or None."""
  from train import files

  for arg in argv:
    if arg.startswith("--workdir="):
      sweep_json = files.read_json(Path(arg.partition("=")[2]).expanduser() / "sweep.json")
      return from_json(sweep_json["config"]) if sweep_json else None
  return None


def parse(verb: str, argv: list[str]) -> flags.FlagValues:
  """Returns a verb's parsed flags.

  Raises:
    UsageError: an unknown flag or config field, or a value that cannot be used, in one line.
  """
  for arg in argv:
    name, _, path = arg.partition("=")
    if name == "--config" and not Path(path).is_file():
      raise UsageError(f"--config={path}: no such file; configs/ has some to start from")
  try:
    values = flag_values(verb, argv)
    rest = values(["isoflop", *argv])[1:]
    if "config" in values:
      values.config.lock()
  except Exception as error:  # a config file is code: it can raise anything
    raise UsageError(one_line(error)) from None
  if rest:
    raise UsageError(f"{rest[0]!r} is not a flag; flags look like --workdir=DIR")
  return values


def one_line(error: BaseException) -> str:
  """Returns an error's message on one line."""
  text = " ".join(str(error).replace("\\n", " ").split())
  near = re.search(r"Did you mean \W*(\w+)", text)
  words = re.findall(r"\w+", text)
  if isinstance(error, (AttributeError, KeyError)) and (near or len(words) == 1):
    hint = f"did you mean {near[1]!r}?" if near else "--print_config shows all there are"
    return f"the config has no field {words[0]!r}; {hint}"
  return text or type(error).__name__


def folder(args: flags.FlagValues, exists: bool = False) -> Path:
  """Returns --workdir as a path.

  Raises:
    UsageError: it is missing, or should exist and does not.
  """
  if not args.workdir:
    raise UsageError("--workdir is missing; name a folder, --workdir=runs/quick for instance")
  path = Path(args.workdir).expanduser().absolute()
  if exists and not path.is_dir():
    raise ValueError(f"workdir={path}: no such folder")
  return path


def from_json(tree: dict) -> ConfigDict:
  """Returns a stored config, under today's schema."""
  from configs import base

  def tuples(value):
    if isinstance(value, dict):
      return {key: tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value

  config = base.get_config()
  config.update(tuples(tree))
  return config


def print_config(config: ConfigDict) -> None:
  """Prints a config, resolved, and its difference from the defaults."""
  from configs import ladders
  from train import record

  resolved = ladders.resolve(config)
  print(str(resolved).rstrip())
  print("\n# differs from the defaults in:")
  for name, value in record.diff(resolved).items():
    print(f"#   {name} = {json.dumps(value)}")


def explain(verb: str) -> str:
  """Returns a verb's help."""
  function, default_config = VERBS[verb]
  lines = [f"isoflop {verb}: {function.__doc__}", ""]
  values = flag_values(verb, [])
  for name in sorted(name for name in values if name != "help"):
    default = values[name].default
    if name == "config":
      default = default_config
    lines.append(f"  --{name}: {values[name].help} (default: {default!r})")
  return "\n".join(lines)


def main(argv: list[str]) -> int:
  """Runs one command; returns its exit code: 0, 1 failed, 2 bad usage or input, 130 interrupted."""
  if not argv or argv[0] in ("--help", "-h", "help"):
    print(__doc__.strip())
    return 0
  verb, rest = argv[0], argv[1:]
  try:
    if verb not in VERBS:
      near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.4)
      hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(VERBS)}"
      raise UsageError(f"unknown verb {verb!r}; {hint}")
    if any(arg in ("--help", "-h") for arg in rest):
      print(explain(verb))
      return 0
    args = parse(verb, rest)
    if "print_config" in args and args.print_config:
      print_config(args.config)
      return 0
    logging.getLogger().setLevel(logging.WARNING)
    VERBS[verb][0](args)
    return 0
  except (UsageError, ValueError) as error:
    print(f"isoflop: {one_line(error)}", file=sys.stderr)
    return USAGE
  except KeyboardInterrupt:
    print("isoflop: stopped; everything is saved, the same command continues", file=sys.stderr)
    return INTERRUPTED
  except (RuntimeError, OSError) as error:
    print(f"isoflop: {one_line(error)}", file=sys.stderr)
    return 1


def run() -> None:
  """Entry point of the `isoflop` script."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  from train import host

  host.keep_freed_pages()
  sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
  run()
