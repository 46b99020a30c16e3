"""The coordinate check: how far a few steps move activations, against width and against depth.

Where a learning rate transfers, they move as far at every size: slopes of 0 on logarithmic axes
(width: Yang et al. 2022, arXiv:2203.03466, appendix D.1; depth: Dey et al. 2025, arXiv:2505.01618).
All shapes train at one rate, that of the base shape: the rule in N has no part in it.
"""

import itertools
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from ml_collections import ConfigDict

from model.transformer import Transformer
from scaling.bench import steps
from scaling.formats import text_table
from scaling.progress import Display
from scaling.report.figures import style
from train import optim, record
from train.data import dataset
from train.data.batches import check_tokens, train_batches
from train.objectives.losses import Batch
from train.programs import program
from train.step import Setup, all_params
from train.system import files

STEPS, SEEDS = 4, 3
WIDTHS, DEPTHS = (0.5, 1, 2, 4), (1, 2, 4, 8)  # multiples of the base's


def check(config: ConfigDict, workdir: Path) -> dict:
  """Trains several shapes and seeds; writes coordinates.json (the result) and coordinates.png."""
  config = config.copy_and_resolve_references()
  config.model.scan = True  # compiles as fast at any depth
  width, depth = config.model.mup_base_width, config.model.mup_base_depth
  cases = {
    "width": steps.cases(config, ",".join(f"{int(by * width)}/{depth}" for by in WIDTHS)),
    "depth": steps.cases(config, ",".join(f"{width}/{by * depth}" for by in DEPTHS)),
  }
  distinct = {case.name: case.config for case in itertools.chain(*cases.values())}
  tokens = dataset.prepare(config)
  base = cases["depth"][0].config
  check_tokens(base, tokens)
  files.make_folder(workdir)
  n_params = record.size_of(base, tokens.vocab_size).n_params
  lr, moved = optim.base_learning_rate(config.optim, n_params), {}
  with Display("coordinates") as display:
    for i, (name, case) in enumerate(distinct.items()):
      display.show(f"{i}/{len(distinct)}, {name}, {SEEDS} seeds")
      moved[name] = changes(case, tokens, lr)
  rows = {
    axis: [{axis: case.config.model[axis]} | row for case in line for row in moved[case.name]]
    for axis, line in cases.items()
  }
  result = steps.machine() | {
    "config_diff": record.diff(config),
    "scaling": {axis: config.model[f"{axis}_scaling"] for axis in cases},
    "learning_rate": lr,
    "changes": rows,
    "slopes": {axis: slopes(rows[axis], axis) for axis in rows},
  }
  files.write_json(workdir / "coordinates.json", result)
  style.draw_figure(workdir, "coordinates", figure, result)
  return result


def changes(config: ConfigDict, tokens: dataset.TokenData, lr: float) -> list[dict[str, float]]:
  """Returns the mean absolute change of each kind of activation in `STEPS` steps, by seed."""
  functions, moved = program(config, tokens.vocab_size), []
  batches = train_batches(tokens, config, 0, jax.process_index(), jax.process_count())
  placed = [functions.place(batch) for batch in itertools.islice(batches, STEPS)]
  graphdef = nnx.graphdef(nnx.eval_shape(lambda: functions.setup.build(0)))  # of no shards
  for seed in range(SEEDS):
    state = functions.init(np.uint32(config.seed + seed))
    before = activations(nnx.merge(graphdef, all_params(state)), functions.setup, placed[0])
    for batch in placed:
      state, _ = functions.step(state, batch, np.float32(lr), np.uint32(seed))
    after = activations(nnx.merge(graphdef, all_params(state)), functions.setup, placed[0])
    moved.append({kind: float(abs(after[kind] - before[kind]).mean()) for kind in before})
  return moved


def activations(model: Transformer, setup: Setup, batch: Batch) -> dict[str, np.ndarray]:
  """Returns each kind of activation, of all layers, one operation at a time."""
  recorded = defaultdict(list)
  for stack in filter(None, (model.encoder, model.decoder)):
    stack.scan, stack.remat = False, "none"
    stack.observe = lambda kind, x_BTD: recorded[kind].append(x_BTD)
  setup.objective.loss(model, batch, None, setup.segments, setup.coefficients)
  x_BTD = recorded["residual"][-1]
  x_BTD = x_BTD if stack.final_norm is None else stack.final_norm(x_BTD)
  recorded["logits"].append(model.head(x_BTD, model.embedding.table[...]))
  return {kind: np.concatenate([np.ravel(x) for x in xs]) for kind, xs in recorded.items()}


def slopes(rows: list[dict[str, float]], axis: str) -> dict[str, tuple[float, float]]:
  """Fits log change to the log of width or depth: slopes, and their standard errors."""
  fitted = {}
  for kind in list(rows[0])[1:]:
    x, y = (np.log([row[name] for row in rows]) for name in (axis, kind))
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    fitted[kind] = float(slope), float(covariance[0, 0] ** 0.5)
  return fitted


def figure(result: dict) -> Figure:
  """Draws the change of each kind of activation against width and against depth."""
  drawn = Figure(figsize=(style.DOUBLE, 2.6))
  left, right = drawn.subplots(1, 2, sharey=True)
  for axes, (axis, rows) in zip((left, right), result["changes"].items(), strict=True):
    looks = dict(zip(list(rows[0])[1:], style.SERIES, strict=False))
    for kind, look in looks.items():
      axes.plot([r[axis] for r in rows], [r[kind] for r in rows], **look, ls="", ms=2, alpha=0.5)
      line = np.reshape([(r[axis], r[kind]) for r in rows], (-1, SEEDS, 2)).mean(1)
      axes.plot(*line.T, color=look["color"])
    axes.set_title(f"model.{axis}_scaling={result['scaling'][axis]}", fontsize=8)
    style.log_axis(axes.xaxis, axis)
    axes.xaxis.set_major_locator(FixedLocator(line[:, 0]))
    style.log_axis(axes.yaxis, f"mean |change| in {STEPS} steps" if axes is left else "")
  style.legend(drawn, *(style.key(kind, **look) for kind, look in looks.items()), ncols=len(looks))
  return drawn


def table(result: dict) -> str:
  """Renders the slopes."""
  rows = [
    (f"{axis} ({result['scaling'][axis]})", kind, f"{slope:+.2f} +- {error:.2f}")
    for axis, fitted in result["slopes"].items()
    for kind, (slope, error) in fitted.items()
  ]
  columns = ("against", "activation", f"slope of log mean |change| in {STEPS} steps")
  lines = text_table(columns, rows), f"{SEEDS} seeds; all shapes at the base's learning rate,"
  return "\n".join([*lines, f"{result['learning_rate']:.3g}; 0: a rate transfers"])
