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
from train import aot, programs


def config_of(family, fields):
  c = base.get_config()
  c.model.update({"family": family, "width": 128, "depth": 4, "heads": 4})
  c.objective, c.corruption.sentinels = base.FAMILIES[family][0], 20
  c.data.isolate_documents = family != "encoder_decoder"
  c.data.seq_len = 128
  for field, value in fields.items():
    section = next(part for part in (c.model, c.sharding, c.data, c.optim) if field in part)
    section[field] = type(section[field])(value)
  return ladders.resolve(c)


def run(devices, case):
  family, *pairs = case.split()
  fields = dict(pair.split("=") for pair in pairs)
  vocab_size = int(fields.pop("V", 512))
  config = config_of(family, fields)
  functions = programs.program(config, vocab_size)
  batch = aot.abstract_batch(config, vocab_size, config.data.batch_size)
  program = functions.step.lower(functions.state, batch, np.float32(0), np.uint32(0)).compile()
  bytes_ = program.memory_analysis()
  return {
    "total": bytes_.argument_size_in_bytes
    + bytes_.output_size_in_bytes
    - bytes_.alias_size_in_bytes
    + bytes_.temp_size_in_bytes,
    "arguments": bytes_.argument_size_in_bytes,
    "predicted": aot.device_bytes(config, vocab_size, devices),
  }


if __name__ == "__main__":
  jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
  for argument in sys.argv[2:]:
    print(json.dumps(run(int(sys.argv[1]), argument)), flush=True)
