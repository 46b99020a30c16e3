"""Programs for devices that are not here: the cases, and the process that compiles them.

python tests/helpers/target_matrix.py     (reads tasks, a JSON object a line, and answers with rows)
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SIZES = {  # of each target, by what the column "devices" says
  "h100": {"1": "h100", "few": "h100:2", "8": "h100:8"},
  "v5e": {"1": "v5e:1x1", "few": "v5e:2x2", "8": "v5e:2x4"},
}
VOCABULARY = 2000
NUMBERS = {  # what is bfloat16 besides the operands of products
  "float32": {"dtype": "float32"},
  "products": {},
  "weights": {"weights": "bfloat16"},
  "activations": {"activations": "bfloat16"},
}
MORE = {
  "-": {},
  "dropout": {"dropout": 0.1},
  "grouped": {"kv_heads": 2},
  "relative": {"positions": "relative"},
  "narrow": {"head_width": 24},
  "microbatches": {"microbatches": 2},
  "prefix": {"objective": "prefix"},
  "ul2": {"objective": "ul2"},
}
SPAN = "data.isolate_documents=True: objective='span' cuts its text across documents; set it to "

# A row that ends in a message is refused with it before anything is compiled.
ROWS = """
preset          strategy     devices flash layers   numbers     documents remat more         pack programs
decoder         ddp          1       on    scan     products    joined    none  -            1    init,step,evaluate,sample
bert            ddp          1       on    scan     weights     isolated  none  -            1    init,step,evaluate,sample
t5_v1_1         ddp          1       on    unrolled activations joined    none  -            1    init,step,evaluate,sample
gpt2            ddp          8       on    scan     float32     isolated  none  dropout      1    step
bert            ddp          few     on    unrolled products    joined    dots  -            1    step
t5              ddp          8       off   scan     activations joined    full  microbatches 1    step,sample
llama           zero1        few     on    scan     products    isolated  dots  grouped      1    step,sample
encoder         zero1        8       on    scan     weights     isolated  none  microbatches 1    step
t5_v1_1         zero1        8       on    unrolled float32     joined    none  -            1    step
decoder         zero2        8       off   scan     weights     joined    full  microbatches 1    init,step
bert            zero2        few     off   scan     activations isolated  none  dropout      1    step
encoder_decoder zero2        8       on    scan     float32     joined    dots  grouped      1    step,evaluate
llama           zero3        8       on    unrolled activations joined    none  microbatches 1    step,evaluate
encoder         zero3        8       off   scan     float32     joined    full  relative     1    step
t5              zero3        few     on    scan     weights     joined    dots  dropout      1    init,step
gpt2            hybrid       8       on    scan     products    joined    full  prefix       1    step
bert            hybrid       few     on    unrolled weights     isolated  dots  -            1    step
t5_v1_1         hybrid       8       off   scan     activations joined    dots  microbatches 1    step
llama           ddp+tensor   few     off   scan     float32     isolated  dots  -            1    step
encoder         zero3+tensor 8       on    scan     activations isolated  none  -            1    step
encoder_decoder zero2+tensor 8       on    scan     products    joined    none  ul2          1    step
decoder         zero3+tensor 8       on    scan     weights     isolated  full  grouped      1    step
llama           ddp          1       off   scan     weights     isolated  none  relative     4    step
gpt2            zero1        1       on    scan     activations joined    none  prefix       16   step
bert            zero2        1       on    scan     products    joined    dots  -            4    step
encoder         zero3        1       on    scan     products    isolated  full  dropout      16   step
t5              hybrid       1       on    scan     float32     joined    none  microbatches 4    step
encoder_decoder ddp          1       on    unrolled products    joined    none  ul2          16   step
decoder         ddp          1       on    scan     products    isolated  none  narrow       1    step
encoder_decoder ddp          1       on    scan     products    joined    none  narrow       1    step
t5              ddp          1       on    scan     products    isolated  none  -            1    step  {SPAN}
encoder_decoder zero2        8       off   scan     products    isolated  none  -            1    step  {SPAN}
decoder         ddp+tensor   1       on    scan     products    joined    none  -            1    step  sharding.tensor=2: must divide the 1 devices
""".replace("{SPAN}", SPAN)  # noqa: E501


class Row(NamedTuple):
  """A case of the matrix: values of its columns, and what refuses it, if anything does."""

  preset: str
  strategy: str
  devices: str
  flash: str
  layers: str
  numbers: str
  documents: str
  remat: str
  more: str
  pack: str
  programs: str
  refused: str = ""

  def __str__(self) -> str:
    return " ".join(self[:10])


MATRIX = tuple(Row(*line.split(maxsplit=11)) for line in ROWS.strip().splitlines()[1:])


def config_of(row: Row, devices: int):
  """Returns a row's config, not yet checked."""
  from configs import presets

  c, strategy = presets.get_config(row.preset), row.strategy.partition("+")[0]
  c.model.update({"width": 128, "depth": 2, "heads": 4, "head_width": 64})
  c.model.update({"dtype": "bfloat16", "remat": row.remat})
  c.model.update({"flash": row.flash == "on", "scan": row.layers == "scan"} | NUMBERS[row.numbers])
  c.data.update({"seq_len": 128, "isolate_documents": row.documents == "isolated"})
  c.corruption.sentinels = 40
  c.data.batch_size = c.train.eval_batch_size = 4 * devices
  tensor = 2 if "+tensor" in row.strategy else 1
  c.sharding.update({"strategy": strategy, "tensor": tensor})
  if strategy == "hybrid":
    c.sharding.shard_factor = max(1, devices // tensor // 2)
  return change(c, MORE[row.more])


def change(config, fields):
  """Sets fields of a config by their names alone; returns it."""
  for field, value in fields.items():
    sections = (config, config.model, config.sharding, config.data)
    next(section for section in sections if field in section)[field] = value
  return config


def task_of(
  config, target: str, vocab_size: int, programs, slots: int = 1, texts: str = ""
) -> dict:
  """Returns what a `Compiler` is asked.

  Args:
    config: not yet checked.
    target: as in `scaling.targets.catalog`.
    vocab_size: V of the tokenizer.
    programs: of init, step, evaluate, sample.
    slots: runs that are trained together.
    texts: the compiled programs' texts go to this path and .PROGRAM.txt; "": nowhere.
  """
  task = {"config": config.to_dict(), "target": target, "vocab_size": vocab_size, "slots": slots}
  return task | {"programs": list(programs), "texts": texts}


class Compiler:
  """Compiles in a process of its own, which is started anew where the compiler ended it."""

  def __init__(self, kind: str):
    self.kind, self.process = kind, None

  def __call__(self, task: dict) -> list[dict]:
    """Returns a row of each program, or one row that has "refused": the message."""
    if self.process is None or self.process.poll() is not None:
      self._start()
    print(json.dumps(task), file=self.process.stdin, flush=True)
    if answer := self.process.stdout.readline():
      return json.loads(answer)
    code = self.process.wait()
    self.errors.seek(0)
    last = (self.errors.read().strip().splitlines() or [""])[-1]
    return [{"program": p, "error": f"exit code {code}: {last}"} for p in task["programs"]]

  def _start(self):
    from scaling.targets import catalog, compiled

    environment = compiled.environment(catalog.parse(self.kind)) | {"PYTHONPATH": str(ROOT)}
    self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- as long as the process
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
    self.process = subprocess.Popen([sys.executable, __file__], env=environment, text=True, **pipes)

  def close(self):
    """Ends its process."""
    if self.process is not None:
      self.process.stdin.close()
      self.process.wait()


# --------------------------------------------------------------------------- in that process


def answer(task: dict) -> list[dict]:
  """Compiles the programs of a task."""
  from ml_collections import ConfigDict

  from scaling.targets import catalog, compiled, layouts
  from train import aot

  target, rows, lowered = catalog.parse(task["target"]), [], {}
  try:
    config = layouts.resolve(ConfigDict(task["config"]), target.devices)
  except ValueError as error:
    return [{"refused": str(error)}]
  arguments = config, task["vocab_size"], catalog.devices(target)
  for name in task["programs"]:
    row, began = {"program": name}, time.monotonic()
    try:
      if name == "sample":
        lowered["sample"] = sampler(*arguments)
      elif "step" not in lowered:
        lowered |= aot.lowered(*arguments, task["slots"])
      program = lowered[name].compile()
    except Exception as error:  # whatever the compiler raises is the answer
      rows.append(row | {"error": compiled.message_of(error)})
      continue
    row["seconds"] = round(time.monotonic() - began, 1)
    memory = program.memory_analysis()
    for part in ("argument", "temp", "output", "alias"):
      row[part] = getattr(memory, f"{part}_size_in_bytes")
    if task["texts"]:
      row["text"] = f"{task['texts']}.{name}.txt"
      Path(row["text"]).write_text(program.as_text())
    rows.append(row)
  return rows


def sampler(config, vocab_size: int, devices):
  """Lowers what `isoflop sample` compiles: continuations from the cache, or an encoder's blanks."""
  import jax
  import numpy as np
  from flax import nnx

  from model import sampling, transformer
  from train.objectives import registry

  # It runs on one device and no mesh; this one tells the device, and has none of sharding's axes.
  axes = {"axis_types": (jax.sharding.AxisType.Auto,), "devices": devices[:1]}
  mesh = jax.make_mesh((1,), ("device",), **axes)
  lies = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  lengths, V = registry.lengths(config), registry.vocab_size(config, vocab_size)
  B, N, P = 2, 16, 1 if lengths.source else 32

  def array(*shape, dtype=np.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=lies)

  def build():
    return transformer.Transformer(config.model, V, lengths.target, nnx.Rngs(0), lengths.source)

  graphdef, params = nnx.split(nnx.eval_shape(build))
  params = jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), params)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    if config.model.family == "encoder":
      shapes = array(B, lengths.target), array(B, lengths.target)
      return sampling._most_probable.lower(graphdef, params, *shapes, array(), 5)
    source = None
    if lengths.source:
      source = transformer.Source(array(B, lengths.source), array(B, lengths.source))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = array(*key.shape, dtype=key.dtype)
    real = array(dtype=np.float32)
    options, stop = (real, array(), real), array()  # temperature, top_k, top_p
    prompts = array(B, P), array(B), source
    return sampling._generate.lower(graphdef, params, prompts, key, options, stop, N)


def main():
  """Answers until its input ends."""
  output = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what libraries print is no answer
  for line in sys.stdin:
    rows = answer(json.loads(line))
    print(json.dumps(rows), file=output, flush=True)
    import jax

    from train import programs

    programs._program.cache_clear()
    jax.clear_caches()


if __name__ == "__main__":
  main()
