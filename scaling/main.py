"""The `isoflop` command.

    isoflop train   --config=configs/clm.py --workdir=runs/one        train one model
    isoflop plan    --config=configs/sweeps/quick.py                  what a sweep or run would cost
    isoflop sweep   --config=configs/sweeps/quick.py --workdir=DIR    plan, train, fit, verify
    isoflop fit     --workdir=DIR  |  --runs=FILE.csv --workdir=DIR   the law of some runs
    isoflop verify  --workdir=DIR                                     train the sealed prediction
    isoflop report  --workdir=DIR                                     its report and figures
    isoflop runs    --workdir=DIR                                     the runs of a folder
    isoflop bench   --config=configs/clm.py --workdir=DIR             how fast training is here
    isoflop sample  --checkpoint=DIR --prompt="Once upon"             text from a trained model
    isoflop export  --checkpoint=DIR --architecture=gpt2 --output=DIR a Hugging Face folder of it
    isoflop import  --input=DIR --workdir=DIR                         a run from such a folder

Any field of a config is a flag: --config.model.size=3. `isoflop VERB --help` explains a verb;
`--print_config` shows the resolved config and what differs from the defaults, and does no more.
"""

import difflib
import errno
import inspect
import json
import logging
import os
import re
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.errors import RunError, UsageError, UserError
from scaling.commands import options
from scaling.commands.verbs import VERBS, from_json
from train.system import process

USAGE, INTERRUPTED = 2, 130
CONTINUING = ("train", "sweep", "verify")  # verbs that go on where they were stopped
ROOT = Path(__file__).parents[1]


def flag_values(verb: str, argv: list[str]) -> flags.FlagValues:
  """Returns the flags that a verb takes.

  The default config of `fit` and `plan --next` is that of the workdir's sweep.
  """
  values = flags.FlagValues()
  default_config = VERBS[verb][1]
  options.define(verb, values)
  if default_config:
    help_text = "Config file; --config.FIELD=VALUE overrides one of its fields."
    of_sweep = verb == "fit" or any(arg.split("=")[0] in ("--next", "-next") for arg in argv)
    stored = stored_config(argv) if of_sweep else None
    if stored:
      if any(arg.split("=")[0] == "--config" for arg in argv):
        raise UsageError(
          "--config: the sweep in --workdir has a config; leave this out, or change fields of that "
          "one, as in --config.fit.delta=1e-2"
        )
      config_flags.DEFINE_config_dict(
        "config", stored, help_text, flag_values=values, sys_argv=argv
      )
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
  return values


def stored_config(argv: list[str]) -> ConfigDict | None:
  """Returns the config of the sweep in --workdir, or None."""
  from train.system import files

  own = flags.FlagValues()
  own.set_gnu_getopt(True)  # reads on behind the value of a flag that is not its own
  flags.DEFINE_string("workdir", "", "", flag_values=own)
  own(["isoflop", *argv], known_only=True)
  if not own.workdir:
    return None
  sweep_json = files.read_json(Path(own.workdir).expanduser() / "sweep.json")
  return from_json(sweep_json["config"]) if sweep_json else None


def parse(verb: str, argv: list[str]) -> flags.FlagValues:
  """Returns a verb's parsed flags.

  Raises:
    UsageError: an unknown flag or config field, or a value that cannot be used, in one line.
  """
  for arg in argv:
    name, _, value = arg.partition("=")
    path = value.partition(":")[0]  # FILE.py, or FILE.py:ARGUMENT
    if name == "--config" and not Path(path).is_file():
      raise UsageError(f"--config={path}: no such file; configs/ has some to start from")
  try:
    values = flag_values(verb, argv)
    rest = values(["isoflop", *argv])[1:]
    if "config" in values:
      values.config.lock()
  except flags.UnrecognizedFlagError as error:
    near = difflib.get_close_matches(error.flagname.split(".")[0], [*values], n=1, cutoff=0.4)
    hint = f"did you mean --{near[0]}?" if near else f"`isoflop {verb} --help` lists them"
    raise UsageError(f"unknown flag --{error.flagname}; {hint}") from None
  except Exception as error:  # a config file is code: it can raise anything
    raise UsageError(one_line(error)) from None
  if rest:
    raise UsageError(f"{rest[0]!r} is not a flag; flags look like --workdir=DIR")
  return values


def one_line(error: BaseException) -> str:
  """Returns an error's message on one line."""
  text = " ".join(str(error).replace("\\n", " ").split())
  # What a config file raises comes with its traceback; its last line says what is wrong.
  text = re.sub(r"^flag (--\S+): Error whilst .* [\w.]+(?:Error|Exception): ", r"\1: ", text)
  near = re.search(r"Did you mean \W*(\w+)", text)
  words = re.findall(r"\w+", text)
  if isinstance(error, (AttributeError, KeyError)) and (near or len(words) == 1):
    hint = f"did you mean {near[1]!r}?" if near else "--print_config shows all there are"
    return f"the config has no field {words[0]!r}; {hint}"
  return text or type(error).__name__


def of_the_machine(error: RuntimeError | OSError) -> bool:
  """Tells whether the machine refused: a full disk, a folder that is not ours, device memory."""
  if isinstance(error, OSError):
    return error.errno in (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS)
  return "RESOURCE_EXHAUSTED" in str(error)


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
  lines = [f"isoflop {verb}: {inspect.cleandoc(function.__doc__ or '')}", ""]
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
  except UserError as error:
    print(f"isoflop: {one_line(error)}", file=sys.stderr)
    return USAGE
  except (KeyboardInterrupt, process.Interrupted):
    saved = "; everything is saved, the same command continues" if verb in CONTINUING else ""
    print(f"isoflop: stopped{saved}", file=sys.stderr)
    return INTERRUPTED
  except (RuntimeError, OSError) as error:
    if not (isinstance(error, RunError) or of_the_machine(error)):
      raise
    print(f"isoflop: {one_line(error)}", file=sys.stderr)
    return 1


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
