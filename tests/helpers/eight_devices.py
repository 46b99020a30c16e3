"""Run by `trained` in a process of its own, with as many simulated devices as it asks for.

  python eight_devices.py DEVICES FAMILY CASE...

Each CASE is fields of the config, as in strategy=zero3,microbatches=2. Prints a JSON object a
line: what 20 steps of training gave, where the arrays lie, and what the compiled program does.
With checkpoints=FOLDER among the fields: what is restored from there, or after 3 steps saved there.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from configs import base, ladders
from train import aot, checkpoint, programs, step
from train.objectives import registry

ROOT = Path(__file__).parents[2]
V, B, T, STEPS, RATE = 64, 16, 16, 20, 1e-2
COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")


def trained(devices, family, cases):
  """Returns by case what a process of so many devices prints."""
  done = subprocess.run(
    [sys.executable, __file__, str(devices), family, *cases.values()],
    capture_output=True,
    text=True,
    timeout=900,
    env={key: x for key, x in os.environ.items() if key.startswith(("JAX_", "XLA_"))}
    | {"PATH": "", "PYTHONPATH": str(ROOT)},
  )
  assert done.returncode == 0, done.stderr
  return dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True))


def config_of(family, case):
  c = base.get_config()
  c.model.update({"family": family, "width": 32, "depth": 2, "heads": 4, "dropout": 0.1})
  c.objective = base.FAMILIES[family][0]
  c.corruption.sentinels = 8
  c.data.isolate_documents = family != "encoder_decoder"
  c.data.seq_len, c.data.batch_size = T, B
  for field, value in case.items():
    section = next(x for x in ("model", "sharding", "optim", "train") if field in c[x])
    base.set_field(c, f"{section}.{field}", value)
  return ladders.resolve(c)


def batch_of(config, number):
  """Random tokens: every position is predicted, half of them with weight."""
  rng = np.random.default_rng(number)
  lengths = registry.lengths(config)

  def part(prefix, length):
    return {
      f"{prefix}segments": np.ones((B, length), np.int32),
      f"{prefix}positions": np.tile(np.arange(length, dtype=np.int32), (B, 1)),
    }

  batch = {"inputs_BT": rng.integers(0, V, (B, lengths.target)).astype(np.int32)}
  batch["targets_BT"] = (batch["inputs_BT"] * 5 + 3) % V
  batch["weights_BT"] = rng.integers(0, 2, batch["inputs_BT"].shape).astype(np.float32)
  batch |= {f"{name}_BT": x for name, x in part("", lengths.target).items()}
  if lengths.source:
    batch["source_BS"] = rng.integers(0, V, (B, lengths.source)).astype(np.int32)
    batch |= {f"{name}_BS": x for name, x in part("source_", lengths.source).items()}
  return batch


def held(tree):
  """Bytes of a tree that the first device holds."""
  return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def checkpointed(family, case):
  """A hash of the state's bits, and the shape of each array that the first device holds."""
  folder = Path(case.pop("checkpoints"))
  config = config_of(family, case)
  functions = programs.program(config, V)
  with checkpoint.Checkpoints(folder) as checkpoints:
    if checkpoints.steps():
      state = checkpoints.restore(checkpoints.steps()[-1], functions.state)
    else:
      state = functions.init(np.uint32(0))
      for number in range(3):
        batch = functions.place(batch_of(config, number))
        state, _ = functions.step(state, batch, np.float32(RATE), np.uint32(0))
      checkpoints.save(3, state)
  bits = hashlib.sha256()
  for leaf in jax.tree.leaves(state):
    bits.update(np.asarray(leaf).tobytes())
  return {"step": int(state.step), "bits": bits.hexdigest(), "held": held(state)}


def run(family, case):
  config = config_of(family, case)
  functions = programs.program(config, V)
  state = functions.init(np.uint32(0))
  before = jax.tree.map(np.asarray, (state.trainable, state.frozen))
  n_params = sum(leaf.size for leaf in jax.tree.leaves(before))
  arguments = (functions.place(batch_of(config, 0)), np.float32(RATE), np.uint32(0))
  compiled = functions.step.lower(state, *arguments).compile()
  text, memory = compiled.as_text(), compiled.memory_analysis()
  params = step.all_params(state)
  gradients = functions.gradients.lower(params, arguments[0]).compile().memory_analysis()
  pointers = 8 * len(jax.tree.leaves(state.trainable))  # to the leaves, in the output's tuple
  bytes_held = {
    "params": held(params),
    "gradients": gradients.output_size_in_bytes - pointers,
    "optimizer": held((state.master, state.opt_state)),
  }
  losses, norms = [], []
  for number in range(STEPS):
    batch = functions.place(batch_of(config, number))
    state, metrics = compiled(state, batch, np.float32(RATE), np.uint32(0))
    losses.append(sum(float(total / weight) for total, weight in metrics["sums"].values()))
    norms.append(float(metrics["grad_norm"]))
  rows = functions.place(batch_of(config, 99))
  nll_B, weight_B = functions.evaluate(step.all_params(state), rows)["loss"]
  same = jax.tree.map(lambda x, y: bool((x == y).all()), before, (state.trainable, state.frozen))
  return {
    "case": case,
    "n_params": n_params,
    "n_trained": sum(leaf.size for leaf in jax.tree.leaves(state.trainable)),
    "unmoved": [jax.tree.leaves(part) for part in same],  # of trainable and frozen, by leaf
    "planned": aot.device_bytes(config, V - registry.vocab_size(config, 0), len(jax.devices())),
    "losses": losses,
    "norms": norms,
    "evaluated": np.asarray(nll_B).tolist(),
    "weights": np.asarray(weight_B).tolist(),
    "bytes": bytes_held,
    "temporary": memory.temp_size_in_bytes,
    "arguments": memory.argument_size_in_bytes,
    "collectives": {
      name: len(re.findall(rf"= .* {name}(-start)?\(", text)) for name in COLLECTIVES
    },
  }


if __name__ == "__main__":
  jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
  for argument in sys.argv[3:]:
    case = dict(pair.split("=") for pair in argument.split(","))
    function = checkpointed if "checkpoints" in case else run
    print(json.dumps(function(sys.argv[2], case)), flush=True)
