"""Past one machine, on paper: the share of the peak that each strategy permits, over TPU chips.

  python tests/release/strategies.py        (with isoflop[plan-tpu]; an hour or two on two cores)
  python tests/release/strategies.py 124M   (one model)

Compiles the training step of three models by strategy for slices of TPU v5e, with as many tokens
on a chip everywhere. Writes docs/strategies.json, and from it docs/strategies.md and its figure.
What is in the record is not compiled again: delete it when the programs have changed. No device is
needed, and none is used.
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from configs import base, ladders
from scaling.formats import gib
from scaling.targets import catalog, compiled, layouts
from train import record
from train.system import files

DOCS = Path(__file__).parents[2] / "docs"
RECORD = DOCS / "strategies.json"
PAGE = """\
# Which strategy, past one machine?

The share of the peak that the training step's program permits, by strategy, over chips of TPU v5e,
with as many tokens on a chip everywhere: {batches}. bfloat16 products and activations. Compiled
({jax}), not run; `python tests/release/strategies.py` does it again, and
[targets.md](targets.md) says how to read it.

{table}

![The permitted share of the peak over chips, by strategy](strategies.png)

Which one, then, on chips of 16 GiB that pass 50 GB/s over each link:

- **ddp** while weights, gradients and optimizer fit beside the activations (124M): it is within a
  point of the best.
- **zero2** where only gradients and optimizer state are too large; at 1B it permits two to four
  points less than the two below, as nothing hides its scatter and gather of all weights.
- **zero3** otherwise: within a point or so of the best from 1B on, and it holds least. For a small
  model on many chips (124M on 128) it loses four points: its shards become too small to overlap.
- **hybrid**, in groups of eight neighbours, where a chip has room for an eighth of the state: a
  point above zero3 at 1B from 128 chips on, about equal at 7B.

More tokens per chip raise every row: what is sent does not depend on them.
"""
VOCABULARY = 32_000
SLICES = ("v5e:2x4", "v5e:4x8", "v5e:8x16", "v5e:16x16")
STRATEGIES = {"ddp": 0, "zero2": 0, "hybrid": 8, "zero3": 0}  # and their shard_factor
MODELS: dict[str, dict[str, dict[str, Any]]] = {
  "124M": {
    "model": {"width": 768, "depth": 12, "heads": 12, "remat": "dots"},
    "data": {"seq_len": 1024, "batch_size": 8},
  },
  "1B": {
    "model": {"width": 2048, "depth": 18, "heads": 16, "remat": "full"},
    "data": {"seq_len": 2048, "batch_size": 4},
  },
  "7B": {
    "model": {"width": 4096, "depth": 32, "heads": 32, "remat": "full", "weights": "bfloat16"},
    "data": {"seq_len": 2048, "batch_size": 2},
  },
}


def config_of(model: str, strategy: str, devices: int):
  """Returns a resolved config; its batch is that of each device, by their number."""
  c = base.get_config()
  c.model.update({"dtype": "bfloat16", "activations": "bfloat16"} | MODELS[model]["model"])
  c.data.update(MODELS[model]["data"] | {"isolate_documents": False})
  c.data.batch_size *= devices
  c.train.eval_batch_size = c.data.batch_size
  c.data.tokenizer = f"bpe:{VOCABULARY}"
  shards = min(STRATEGIES[strategy], devices)
  c.sharding.update({"strategy": strategy, "shard_factor": shards})
  return ladders.resolve(c)


def rows(models: list[str]) -> list[dict[str, Any]]:
  """Compiles what is not in the record yet; returns all of it."""
  known = files.read_json(RECORD) or []
  have = {(row["model"], row["strategy"], row["slice"]) for row in known}
  for model in models:
    for name in (SLICES[0], *SLICES[:0:-1]):  # the ends first
      target = catalog.parse(name)
      for strategy in STRATEGIES:
        if (model, strategy, name) in have or (strategy == "hybrid" and target.devices <= 8):
          continue
        row = {"model": model, "strategy": strategy, "slice": name, "devices": target.devices}
        known.append(row | step(model, strategy, target))
        files.write_json(RECORD, known)
        print(json.dumps(known[-1]), flush=True)
  return known


def step(model: str, strategy: str, target: catalog.Target) -> dict[str, Any]:
  """Returns what is kept of a step's program."""
  config = config_of(model, strategy, target.devices)
  predicted = layouts.device_bytes(config, target.devices)["total"]
  if predicted > 2 * target.chip.memory:
    return {"fits": False, "predicted": predicted}
  task = compiled.Task(model, config.to_dict(), VOCABULARY, target.name, programs=["step"])
  (found,) = compiled.compile_all([task])
  if "error" in found:
    return {"fits": False, "error": found["error"]}
  size = record.size_of(config, VOCABULARY)
  flops = size.flops_per_token * size.tokens_per_step / target.devices
  share = flops / target.chip.peaks["bfloat16"] / found["seconds"]
  kept = {"fits": True, "share": share, "held": found["held"], "seconds": found["seconds_alone"]}
  return kept | {"sent": {kind: of["bytes"] for kind, of in found["collectives"].items()}}


def table(found: list[dict[str, Any]]) -> str:
  """Returns the record as a table of Markdown."""
  lines = ["| model | strategy | " + " | ".join(name for name in SLICES) + " | sent by a chip |"]
  lines.append("|---" * (len(SLICES) + 3) + "|")
  for model in MODELS:
    for strategy in STRATEGIES:
      own = {r["slice"]: r for r in found if (r["model"], r["strategy"]) == (model, strategy)}
      if not own:
        continue
      cells = [cell(own.get(name)) for name in SLICES]
      sent = next((r["sent"] for r in reversed([*own.values()]) if r["fits"]), {})
      total = ", ".join(f"{kind} {gib(n)}" for kind, n in sent.items() if n > 2**20)
      lines.append(f"| {model} | {strategy} | {' | '.join(cells)} | {total} |")
  return "\n".join(lines)


def cell(row: dict[str, Any] | None) -> str:
  """Returns the share of one row, or that it does not fit."""
  return "" if row is None else f"{row['share']:.0%}" if row["fits"] else "does not fit"


def draw(found: list[dict[str, Any]], path: Path) -> None:
  """Draws the shares over chips, a panel for each model."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.2), layout="constrained")
  panels = figure.subplots(1, len(MODELS), sharey=True)
  for panel, model in zip(panels, MODELS, strict=True):
    for strategy in STRATEGIES:
      own = [r for r in found if (r["model"], r["strategy"]) == (model, strategy) and r["fits"]]
      own.sort(key=lambda row: row["devices"])
      chips, shares = [r["devices"] for r in own], [100 * r["share"] for r in own]
      panel.plot(chips, shares, "o-", label=f"hybrid of {STRATEGIES[strategy]}"
                 if strategy == "hybrid" else strategy)  # fmt: skip
    panel.set(title=model, xlabel="TPU v5e chips", ylim=(0, 100), xscale="log")
    panel.set_xticks([catalog.parse(name).devices for name in SLICES])
    panel.set_xticklabels([str(catalog.parse(name).devices) for name in SLICES])
    panel.minorticks_off()
  panels[0].set_ylabel("permitted share of the peak [%]")
  panels[0].legend(frameon=False)
  figure.savefig(path, dpi=150)


def main(models: list[str]) -> None:
  """Compiles, and writes what is made of the record."""
  found = rows(models)
  batches = ", ".join(
    f"{model} {fields['data']['batch_size']} x {fields['data']['seq_len']}"
    for model, fields in MODELS.items()
  )
  jax = f"jax {importlib.metadata.version('jax')}"
  page = PAGE.format(batches=batches, jax=jax, table=table(found))
  (DOCS / "strategies.md").write_text(page)
  draw(found, DOCS / "strategies.png")


if __name__ == "__main__":
  main(sys.argv[1:] or list(MODELS))
