"""The `isoflop` command: measures scaling laws.

Any field of a config is a flag: --config.model.size=3. `isoflop VERB --help` explains a verb;
`--print_config` shows the resolved config and what differs from the defaults, and does no more.
"""

import difflib
import json
import logging
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import base
from configs.bounds import Field
from configs.errors import RunError, UsageError, UserError, of_the_machine
from scaling.arguments import Flag
from scaling.commands import (
  bench,
  design,
  export,
  fit,
  import_,
  plan,
  report,
  runs,
  sample,
  sweep,
  train,
  tune,
  verify,
)
from scaling.formats import printable
from train.system import process

COMMANDS: dict[str, ModuleType] = {
  # Docstring: the verb's help. FLAGS: its flags. CONFIG: its default config, if it takes one.
  # RESUMABLE: the same command continues what was stopped. run(args): what the verb does.
  "train": train,
  "plan": plan,
  "sweep": sweep,
  "design": design,
  "fit": fit,
  "tune": tune,
  "verify": verify,
  "report": report,
  "runs": runs,
  "bench": bench,
  "sample": sample,
  "export": export,
  "import": import_,
}
FAILED, USAGE, INTERRUPTED = 1, 2, 130  # exit codes
ROOT = Path(__file__).parents[1]
RENAMED = {"fixed_E": "it is fit.E, as in --config.fit.E=1.6"}  # fields of the version before
PRINT_CONFIG: Flag = ("print_config", False, "Prints the resolved config and what it changes.")
DEFINE: dict[type, Callable] = {
  bool: flags.DEFINE_bool,
  str: flags.DEFINE_string,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  list: flags.DEFINE_multi_string,
}


def overview() -> str:
  """Returns the help of `isoflop`: each verb with the first line of its docstring."""
  head, _, rest = (__doc__ or "").partition("\n")
  verbs = [
    f"  isoflop {verb:7}{(command.__doc__ or '').splitlines()[0]}"
    for verb, command in COMMANDS.items()
  ]
  return "\n".join([head, "", *verbs, rest.rstrip()])


def explain(verb: str) -> str:
  """Returns a verb's help: its docstring, and its flags."""
  rows = sorted(flags_of(COMMANDS[verb]))
  lines = [f"  --{name}: {text} (default: {default!r})" for name, default, _, text in rows]
  return "\n".join([f"isoflop {verb}: {COMMANDS[verb].__doc__}", *lines])


def flags_of(command: ModuleType) -> list[tuple[str, Any, Field | None, str]]:
  """Returns a command's flags: name, default, bounds, help; --config, too, if it takes one."""
  text = "Config file; --config.FIELD=VALUE overrides one of its fields."
  rows: list[Flag] = [*command.FLAGS]
  if hasattr(command, "CONFIG"):
    rows += [("config", command.CONFIG, text), PRINT_CONFIG]
  return [
    (name, x.default, x, text) if isinstance(x, Field) else (name, x, None, text)
    for name, x, text in rows
  ]


def parse(verb: str, argv: list[str]) -> flags.FlagValues:
  """Parses a verb's flags; `config` is the config with its fields on the command line."""
  values, overrides = flags.FlagValues(), flags.FlagValues()
  values.set_gnu_getopt(True)  # reads on behind the value of a flag that it does not know
  known = flags_of(COMMANDS[verb])
  for name, default, _, text in known:
    DEFINE[type(default)](name, default, text, flag_values=values)
  try:
    rest = values(["isoflop", *argv], known_only=True)[1:]  # fields of the config, or mistakes
    if "config" in values:
      config = first_config(verb, values)
      check_fields(config, rest)
      config_flags.DEFINE_config_dict("config", config, flag_values=overrides, sys_argv=rest)
    rest = overrides(["isoflop", *rest])[1:]
  except flags.UnrecognizedFlagError as error:
    hint = nearest(error.flagname, values, "--") or f"`isoflop {verb} --help` lists them"
    if "config" in values and "did" not in hint:
      hint += ", and --print_config the fields of the config, as --config.train.tokens=1000000"
    raise UsageError(f"unknown flag --{error.flagname}; {hint}") from None
  except flags.Error as error:
    raise UsageError(one_line(error)) from None
  if rest:
    raise UsageError(f"{rest[0]!r} is not a flag; flags look like --workdir=DIR")
  for name, _, bounds, _ in known:
    if bounds:
      bounds.check(f"--{name}", values[name].value)
  if "config" in values:
    values.config = overrides.config
    base.check_fields(values.config)
  return values


def first_config(verb: str, values: flags.FlagValues) -> ConfigDict:
  """Returns the config of --config; for `fit` and `plan --next`, that of the sweep it reads.

  A sweep is read from --workdir, and from --runs where no --config is named: its folder or its
  cells.csv. For another table of runs it is the base config.
  """
  from train.system import files

  workdir, runs, asks_next = (
    name in values and values[name].value for name in ("workdir", "runs", "next")
  )
  head, named = None, values["config"].present
  if workdir and (verb == "fit" or asks_next):
    head = files.read_record(Path(workdir).expanduser() / "sweep.json")
  if runs and not (head or named):
    path = Path(runs).expanduser()
    folder = path.parent if path.name == "cells.csv" else path
    head = files.read_record(folder / "sweep.json")
    if not head:
      return base.get_config()
  if head and named:
    raise UsageError(
      "--config: the sweep in --workdir has a config; leave this out, or change fields of that "
      "one, as in --config.fit.delta=1e-2"
    )
  if head:
    return base.from_json(head["config"], str(head.path))
  path, *argument = values.config.split(":", 1)
  file = Path(path) if named else ROOT / path
  if not file.is_file():
    raise UsageError(f"--config={path}: no such file; configs/ has some to start from")
  try:
    return base.lock(runpy.run_path(str(file))["get_config"](*argument))
  except AttributeError as error:
    if field := re.search(r'Key "(\w+)" does not exist', str(error)):
      raise UsageError(f"--config={path}: the config has no field {field[1]!r}") from None
    raise


def check_fields(config: ConfigDict, argv: list[str]) -> None:
  """Raises UsageError where a flag names a field that the config does not have.

  What a flag adds to a mapping is there afterwards, with a value of its type.
  """
  matches = (re.match(r"--?(?:no)?config\.([^=\s]+)", arg) for arg in argv)
  for path in (match[1] for match in matches if match):
    key, field = base.split_mapping(path)
    value: Any = config if field else ""
    for name in field.split(".") if field else ():
      fields = value if isinstance(value, ConfigDict) else ()
      if name not in fields:
        hint = RENAMED.get(name) or nearest(name, fields) or "--print_config shows all there are"
        raise UsageError(f"the config has no field {path!r}; {hint}")
      value = value[name]
    if key:
      base.add_field(config, f"{key}.{field}".rstrip("."), value)


def nearest(name: str, names: Iterable[str], dashes: str = "") -> str:
  """Asks whether the nearest of some names was meant; "": none is near."""
  near = difflib.get_close_matches(name, [*names], n=1, cutoff=0.4)
  return f"did you mean {dashes}{near[0]}?" if near else ""


def one_line(error: BaseException) -> str:
  """Returns an error's message on one line."""
  return printable(" ".join(str(error).replace("\\n", " ").split())) or type(error).__name__


def print_config(config: ConfigDict) -> None:
  """Prints a config, resolved, and its difference from the defaults."""
  from configs import ladders
  from train import record

  resolved = ladders.resolve(config)
  print(str(resolved).rstrip())
  print("\n# differs from the defaults in:")
  for name, value in record.diff(resolved).items():
    print(f"#   {name} = {json.dumps(value)}")


def dispatch(verb: str, argv: list[str]) -> None:
  """Runs one verb, or prints its help or its config."""
  if verb not in COMMANDS:
    hint = nearest(verb, COMMANDS) or f"choose one of {', '.join(COMMANDS)}"
    raise UsageError(f"unknown verb {verb!r}; {hint}")
  if {"--help", "-h"} & set(argv):
    print(explain(verb))
    return
  args = parse(verb, argv)
  if "print_config" in args and args.print_config:
    print_config(args.config)
    return
  logging.getLogger().setLevel(logging.WARNING)
  COMMANDS[verb].run(args)


def main(argv: list[str]) -> int:
  """Runs one command; returns its exit code: 0, FAILED, USAGE or INTERRUPTED.

  A bug raises: Python prints its traceback, and exits with 1.
  """
  if not argv or argv[0] in ("--help", "-h", "help"):
    print(overview())
    return 0
  verb, *rest = argv
  try:
    dispatch(verb, rest)
    return 0
  except UserError as error:
    print(f"isoflop: {one_line(error)}", file=sys.stderr)
    return USAGE
  except (KeyboardInterrupt, process.Interrupted):
    resumable = getattr(COMMANDS[verb], "RESUMABLE", False)
    saved = "; everything is saved, the same command continues" if resumable else ""
    print(f"isoflop: stopped{saved}", file=sys.stderr)
    return INTERRUPTED
  except (RuntimeError, OSError) as error:
    if not (isinstance(error, RunError) or of_the_machine(error)):
      raise
    print(f"isoflop: {one_line(error)}", file=sys.stderr)
    return FAILED


def run() -> None:
  """Entry point of the `isoflop` script."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  process.use_huge_pages()
  process.keep_freed_pages()
  process.use_xla_flags()
  sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
  run()
