"""Measures how fast training is here: step time, FLOP/s, the fraction of a product's peak.

  isoflop bench --config=configs/clm.py --workdir=runs/bench

Without --sizes, --families and --dtypes it measures the config's model; with them, every
combination, in turns; --vary=FIELD=VALUE measures each of them with that change, too. Prints a
table; the workdir's bench.json has every turn.

--growth measures how cost grows instead, along some or all of: a step with the batch and with the
size of the model, compilation with depth, a step with simulated devices and with processes, a step
of each of the runs that are trained together (pack), and a sweep's other work (plan, tables, fit,
report) with its finished runs (cells), 10 to 10,000 synthetic ones. Prints each curve; the workdir
gets growth.json, growth.pdf and growth.png.
"""

from absl import flags

from scaling.commands.arguments import WORKDIR, Flag, workdir_of

CONFIG = "configs/clm.py"
FLAGS: tuple[Flag, ...] = (
  WORKDIR,
  ("sizes", "", "Models as width/layers or width/layers/heads: 64/2,128/4; else the config's."),
  ("families", "", "decoder,encoder,encoder_decoder, or some of them; else the config's."),
  ("dtypes", "", "float32,bfloat16, or one: operands of products; else the config's."),
  ("tokens", 0, "Of text in a step, rounded down to whole sequences; 0: the config's batch."),
  ("vary", [], "FIELD=VALUE to measure beside, as model.flash=False; may come several times."),
  ("rounds", 20, "Turns that each model and each product takes."),
  ("growth", "", "Measures how cost grows: batch,size,depth,devices,processes,pack,cells."),
)


def run(args: flags.FlagValues) -> None:
  workdir = workdir_of(args)
  if args.growth:
    from scaling.bench import growth

    growth.growth(args.config, workdir, args.growth.split(","), args.rounds, print)
    return
  from scaling.bench import steps

  cases = steps.cases(args.config, args.sizes, args.families, args.dtypes, args.tokens, args.vary)
  print(steps.table(steps.bench(cases, workdir, args.rounds)))
