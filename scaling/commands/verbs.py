"""What each verb of the `isoflop` command does.

Jax and all that imports it are imported by the verb that needs them: help and a wrong flag are
answered at once.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from configs.errors import RunError, UsageError

if TYPE_CHECKING:
  from train.restore import Restored


def train(args: flags.FlagValues) -> None:
  """Trains one model; run it again to continue where it stopped."""
  from scaling.progress import Display
  from train.system import process

  config, workdir = args.config, folder(args)
  process.join(args.coordinator, args.processes, args.process)  # before jax is imported
  from train import loop

  if process.place()[1] > 1:
    print(process.census(), file=sys.stderr, flush=True)
  should_stop = process.StopSignal().install()
  with Display(str(workdir)) as display:
    record = loop.train(
      config, workdir, should_stop, lambda event: display.update_one(str(workdir), event)
    )
  if record["status"] != "done":
    raise RunError(f"{workdir}: the run {record['status']}; see metrics.jsonl")
  print(
    f"{workdir}: loss {record['loss']:.4f} ± {record['loss_stderr']:.4f} nats per token, "
    f"{record['bits_per_byte']:.3f} bits per byte; N = {record['N']:,}, D = {record['D']:,}, "
    f"C = {record['C']:.3e} FLOPs, {record['seconds']:.1f} s"
  )


def plan(args: flags.FlagValues) -> None:
  """Prints every cell of a sweep and the total, or what one run costs; trains nothing.

  A config that changes nothing in `config.sweep` is one run. --devices and --device_memory are
  imagined: with them it says what each device would hold, whether it fits, and what would.
  --target compiles every program for devices that need not be there (a100, h100, h200, b200, v4,
  v5e, v5p, v6e; h100:2x8 is two hosts, v5e:16x16 a slice), and says whether they fit, what they
  send, and how fast they could be at best; with --workdir, also its plan.json.
  """
  from scaling.commands import devices, listing
  from scaling.laws import questions
  from scaling.targets import layouts

  if args.target and (args.next or args.devices != 1 or args.device_memory):
    raise UsageError("--target has its devices; leave --devices, --device_memory and --next out")
  if args.target:
    workdir = folder(args) if args.workdir else None
    print(devices.target_report(args.config, args.target, workdir))
  elif args.next:
    flops, workdir = questions.parse_flops(args.next_flops, "next_flops"), folder(args, exists=True)
    print(listing.next_table(args.config, workdir, flops))
  elif devices.is_sweep(args.config):
    print(listing.plan_table(args.config, folder(args) if args.workdir else None))
    if args.devices > 1 or args.device_memory:
      print("\n" + devices.sweep_memory(args.config, args.devices, args.device_memory))
  else:
    print(layouts.run_report(args.config, args.devices, args.device_memory))


def sweep(args: flags.FlagValues) -> None:
  """Plans, probes, trains, fits, seals a prediction, trains it, reports; continues if stopped."""
  run_sweep(args.config, folder(args), args.adaptive)


def fit(args: flags.FlagValues) -> None:
  """Fits the law to a sweep's cells, or to any table of runs, and answers what is asked of it.

  Runs along one line (a single size, or one ratio of tokens to parameters) are refused; what a law
  in the variable that varies says of them is printed, and is line.json.
  """
  from scaling.laws import one_variable, questions
  from scaling.laws.runs import UnidentifiableError
  from scaling.report import report
  from scaling.sweep import refit
  from train.system import files

  target_flops = questions.parse_flops(args.target_flops)
  asked = questions.Questions(
    target_flops, args.target_loss, args.inference_tokens, args.max_tokens
  )
  workdir, reading = folder(args), (args.runs, args.columns, args.where, args.exclude)
  try:
    refit.refit(workdir, args.config.fit, *reading, asked, args.compare_forms)
  except UnidentifiableError:
    if found := files.read_json(workdir / "line.json"):
      print(one_variable.text(found) + "\n", flush=True)
    raise
  print(report.terminal(workdir))


def verify(args: flags.FlagValues) -> None:
  """Seals the prediction of a sweep's fit, trains what is left of its held-out cells, judges."""
  from scaling.sweep import store

  workdir = folder(args)
  run_sweep(from_json(store.read_sweep(workdir)[0]["config"]), workdir)


def run_sweep(config: ConfigDict, workdir: Path, adapt: bool = False) -> None:
  """Runs a sweep, or what is left of it, and prints how it came out."""
  from scaling.progress import Display
  from scaling.report import report
  from scaling.sweep import run
  from train.system import process

  should_stop = process.StopSignal().install()
  with Display(config.sweep.name) as display:
    run.sweep(config, workdir, display, should_stop, adapt, process.BEGAN)
  print(report.terminal(workdir))


def report(args: flags.FlagValues) -> None:
  """Writes report.md, report.html and figures/ of a workdir from what stands in it."""
  from scaling.report import report as reports

  workdir = folder(args, exists=True)
  if not any((workdir / name).exists() for name in ("sweep.json", "fit.json")):
    raise UsageError(f"workdir={workdir}: no sweep.json and no fit.json there; nothing to report")
  print(reports.write(workdir))


def runs(args: flags.FlagValues) -> None:
  """Lists the runs of a folder: their size, tokens, loss and status."""
  from scaling.commands import listing

  print(listing.runs_table(folder(args, exists=True)))


def bench(args: flags.FlagValues) -> None:
  """Measures how fast training is here: step time, FLOP/s, the fraction of a product's peak.

  Without --sizes, --families and --dtypes it is the config's own model; with them, every
  combination, by turns; --vary=FIELD=VALUE measures each of them so, too. Prints a table; the
  workdir's bench.json has every turn.

  --growth measures how cost grows instead, for some or all of: a step with the batch and with the
  size of the model, compilation with depth, a step with simulated devices and with processes, a
  step of each of the runs that are trained together (pack), and a sweep's own work (plan, tables,
  fit, report) with its finished runs (cells), 10 to 10,000 synthetic ones.
  Prints each curve; the workdir gets growth.json, growth.pdf and growth.png.
  """
  workdir = folder(args)
  if args.growth:
    from scaling.bench import growth, growth_figure

    curves = growth.growth(args.config, workdir, args.growth.split(","), args.rounds, print)
    growth_figure.draw(curves, workdir / "growth")
    return
  from scaling.bench import steps as benches

  grid = args.sizes, args.families, args.dtypes, args.tokens, args.vary
  cases = benches.cases(args.config, *grid)
  print(benches.table(benches.bench(cases, workdir, args.rounds)))


def sample(args: flags.FlagValues) -> None:
  """Prints text from a trained model: what follows a prompt, or what fills its blanks.

  clm, prefix: continues the prompt (a prefix LM reads it causally, too).
  mlm: a blank is written [MASK] and is one token; prints the text with the most probable tokens,
    and --top_k candidates for each blank (0: 5) with their probabilities.
  span, ul2: blanks are written <0>, <1>, ... in order; prints the text with them filled in.

  Several texts (more than one --prompt, or --num_samples) are each preceded by a line "=== 1".
  """
  from scaling.commands import generate

  draws = generate.Options(
    args.temperature,
    args.top_k,
    args.top_p,
    args.max_new_tokens,
    args.seed,
    args.num_samples,
  )
  generate.check(args.prompt, draws)
  texts = generate.texts(restored(args), args.prompt, draws)
  for i, text in enumerate(texts, start=1):
    print(text if len(texts) == 1 else f"=== {i}\n{text}")


def export(args: flags.FlagValues) -> None:
  """Writes a run's newest checkpoint as a Hugging Face folder.

  The folder has config.json, model.safetensors and tokenizer.json, with the special ids of the
  run's objective by name: <|eos|>, [MASK], <extra_id_0>, ... A model that the architecture cannot
  express is refused; configs/presets.py has configs that can be.
  """
  from scaling.commands import exchange

  if not args.architecture or not args.output:
    raise UsageError(
      "--architecture or --output is missing, as in --architecture=gpt2 --output=out"
    )
  exchange.export_run(restored(args), args.architecture, Path(args.output).expanduser())
  print(args.output)


def import_(args: flags.FlagValues) -> None:
  """Makes a run of a Hugging Face folder of GPT-2, Llama, BERT or T5: a checkpoint at step 0.

  The run's folder has run.json, checkpoints/ and tokenizer.json. It can be sampled and exported.
  """
  from scaling.commands import exchange

  workdir = folder(args)
  if not args.input:
    raise UsageError("--input is missing; name a folder with config.json and model.safetensors")
  record = exchange.import_run(Path(args.input).expanduser().absolute(), workdir)
  kind, total = record["imported"]["model_type"], record["params"]["total"]
  print(f"{workdir}: {kind}, {total:,} parameters")


VERBS: dict[str, tuple[Callable[[flags.FlagValues], None], str]] = {
  # verb: (function, its default config, or "" where the workdir has it)
  "train": (train, "configs/clm.py"),
  "plan": (plan, "configs/sweeps/quick.py"),
  "sweep": (sweep, "configs/sweeps/quick.py"),
  "fit": (fit, "configs/base.py"),
  "verify": (verify, ""),
  "report": (report, ""),
  "runs": (runs, ""),
  "bench": (bench, "configs/clm.py"),
  "sample": (sample, ""),
  "export": (export, ""),
  "import": (import_, ""),
}


def folder(args: flags.FlagValues, exists: bool = False) -> Path:
  """Returns --workdir as a path.

  Raises:
    UsageError: it is missing, or should exist and does not.
  """
  if not args.workdir:
    raise UsageError("--workdir is missing; name a folder, --workdir=runs/quick for instance")
  path = Path(args.workdir).expanduser().absolute()
  if exists and not path.is_dir():
    raise UsageError(f"workdir={path}: no such folder")
  return path


def restored(args: flags.FlagValues) -> "Restored":
  """Returns the run of --checkpoint, with its model and its tokenizer."""
  from absl import logging as orbax_log

  from train import restore

  orbax_log.set_verbosity(orbax_log.ERROR)  # it warns that a folder opened for reading is
  folder, record = restore.find(args.checkpoint)
  return restore.restore(folder, record, from_json(record["config"]))


def from_json(tree: dict) -> ConfigDict:
  """Returns a stored config, under today's schema.

  Raises:
    UsageError: the schema has not all its fields, or another type for one.
  """
  from configs import base

  def tuples(value):
    if isinstance(value, dict):
      return {key: tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value

  config = base.get_config()
  try:
    config.update(tuples(tree))
  except (AttributeError, KeyError, TypeError) as error:
    said = str(error.args[0]).partition(" and cannot be")[0]  # the rest lists the whole schema
    raise UsageError(
      f"the stored config is of another version of isoflop ({said}); use the one that wrote it"
    ) from None
  return config
