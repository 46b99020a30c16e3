"""Measures how fast training is here: step time, FLOP/s, the fraction of a product's peak.

  isoflop bench --config=configs/clm.py --workdir=runs/bench

Without --sizes, --families and --dtypes it measures the config's model; with them, every
combination, in turns; --vary=FIELD=VALUE measures each of them with that change, too. Prints a
table; the workdir's bench.json has every turn.

--coordinates measures how far a few steps move activations at multiples of model.mup_base_width and
model.mup_base_depth, as model.width_scaling and depth_scaling have it: coordinates.json and .png.
"""

from absl import flags

from configs.bounds import at_least_0, at_least_1
from scaling.arguments import WORKDIR, Flag, workdir_of

CONFIG = "configs/clm.py"
FLAGS: tuple[Flag, ...] = (
  WORKDIR,
  ("sizes", "", "Models as width/layers or width/layers/heads: 64/2,128/4; else the config's."),
  ("families", "", "decoder,encoder,encoder_decoder, or some of them; else the config's."),
  ("dtypes", "", "float32,bfloat16, or one: operands of products; else the config's."),
  (
    "tokens",
    at_least_0(0),
    "Of a step's text, at most, in whole sequences; 0: the config's batch.",
  ),
  ("vary", [], "FIELD=VALUE to measure beside, as model.flash=False; may come several times."),
  ("coordinates", False, "Measures how far activations move, and nothing else."),
  ("rounds", at_least_1(20), "Turns that each model and each product takes."),
)


def run(args: flags.FlagValues) -> None:
  from scaling.bench import coordinates, steps

  if args.coordinates:
    print(coordinates.table(coordinates.check(args.config, workdir_of(args))))
    return
  cases = steps.cases(args.config, args.sizes, args.families, args.dtypes, args.tokens, args.vary)
  print(steps.table(steps.bench(cases, workdir_of(args), args.rounds)))
