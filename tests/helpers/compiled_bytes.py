"""Run by test_memory.py in a process of its own: compiles training steps, and runs none.

  python compiled_bytes.py DEVICES CASE...

Each CASE is a family and fields of the config, as in "decoder strategy=zero3 batch_size=64"; V is
the tokenizer's vocabulary. Prints a JSON object a line: bytes of each device, as compiled and as
predicted.
"""

import json
import sys

import jax
import numpy as np

from configs import base, ladders
from model import memory
from train import step
from train.objectives import registry

OBJECTIVES = {"decoder": "clm", "encoder": "mlm", "encoder_decoder": "span"}


def config_of(family, fields):
  c = base.get_config()
  c.model.update({"family": family, "width": 128, "depth": 4, "heads": 4})
  c.objective, c.corruption.sentinels = OBJECTIVES[family], 20
  c.data.isolate_documents = family != "encoder_decoder"
  c.data.seq_len = 128
  for field, value in fields.items():
    section = next(part for part in (c.model, c.sharding, c.data) if field in part)
    section[field] = type(section[field])(value)
  return ladders.resolve(c)


def batch_of(config, lengths):
  def part(letter, length, **more):
    names = {"segments": np.int32, "positions": np.int32} | more
    shape = (config.data.batch_size, length)
    return {f"{name}_B{letter}": jax.ShapeDtypeStruct(shape, dt) for name, dt in names.items()}

  batch = part("T", lengths.target, inputs=np.int32, targets=np.int32, weights=np.float32)
  if lengths.source:
    source = part("S", lengths.source)
    batch |= {f"source_{name}": leaf for name, leaf in source.items()}
    batch["source_BS"] = source["segments_BS"]
  return batch


def run(devices, case):
  family, *pairs = case.split()
  fields = dict(pair.split("=") for pair in pairs)
  vocab_size = int(fields.pop("V", 512))
  config = config_of(family, fields)
  lengths = registry.lengths(config)
  functions = step.program(config, vocab_size)
  arguments = (batch_of(config, lengths), np.float32(0), np.uint32(0))
  lowered = functions.step.lower(functions.state, *arguments)
  found = lowered.compile().memory_analysis()
  held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
  with_specials = registry.vocab_size(config, vocab_size)
  return {
    "total": held + found.temp_size_in_bytes,
    "arguments": found.argument_size_in_bytes,
    "predicted": memory.device_bytes(
      config, with_specials, lengths.target, lengths.source, devices
    ),
  }


if __name__ == "__main__":
  jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
  for argument in sys.argv[2:]:
    print(json.dumps(run(int(sys.argv[1]), argument)), flush=True)
