"""What training steps are when they are compiled for eight H100s or eight chips of TPU v5e.

  pytest tests/release/test_compiled_programs.py     (with isoflop[plan-gpu,plan-tpu]; no device)

With TARGET_PROGRAMS=folder the programs are kept there, and none is compiled twice.
"""

import functools
import json
import math
import os
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import target_matrix

from configs import ladders, presets
from model import accounting, sharding
from scaling.targets import catalog, executed, hlo
from train import aot
from train.objectives import registry
from train.system import files

KINDS = ("h100", "v5e")
VOCABULARY, WIDTH, DEPTH, LENGTH, ROWS, MICROBATCHES = 4000, 256, 3, 384, 8, 4
SPLIT = {"microbatches": MICROBATCHES}
ALL_BFLOAT16 = {"weights": "bfloat16", "activations": "bfloat16"}
CASES = {  # preset, devices, what differs from `config_of`
  "ddp": ("decoder", "8", SPLIT),
  "zero1": ("decoder", "8", SPLIT),
  "zero2": ("decoder", "8", SPLIT),
  "zero3": ("decoder", "8", SPLIT),
  "zero2 whole": ("decoder", "8", {"strategy": "zero2", "remat": "dots"}),
  "zero3 bfloat16": ("decoder", "8", {"strategy": "zero3", "remat": "full"} | ALL_BFLOAT16),
  "hybrid": ("encoder", "8", {"shard_factor": 4, "remat": "dots"}),
  "zero3 span": ("encoder_decoder", "8", {"strategy": "zero3", "remat": "dots"}),
  "one": ("decoder", "1", {"strategy": "ddp"}),
  "one isolated": ("decoder", "1", {"remat": "dots", "isolate_documents": True}),
  "one encoder": ("encoder", "1", {"remat": "full", "activations": "bfloat16"}),
  "one span": ("encoder_decoder", "1", {"remat": "dots"} | ALL_BFLOAT16),
  "one plain": ("decoder", "1", {"flash": False}),
}
ON_EIGHT = [case for case, (_, devices, _) in CASES.items() if devices == "8"]
GATHERED = [case for case in ON_EIGHT if not case.startswith("ddp")]
SCATTERED = [case for case in GATHERED if not case.startswith("zero1")]
FUSED = [case for case in CASES if case != "one plain"]


def config_of(case):
  preset, devices, fields = CASES[case]
  c = presets.get_config(preset)
  c.model.update({"width": WIDTH, "depth": DEPTH, "heads": 4, "dtype": "bfloat16"})
  c.model.mlp_width = 3 * WIDTH  # TPUs sum a gradient whole where its shard has a part of a tile
  c.data.update({"seq_len": LENGTH, "isolate_documents": False, "batch_size": ROWS * int(devices)})
  c.corruption.sentinels, c.train.eval_batch_size = 50, c.data.batch_size
  first = case.split()[0]
  c.sharding.strategy = first if first in sharding.STRATEGIES else "ddp"
  return target_matrix.change(c, fields)


class Program:
  """A compiled step, and what its config says of it."""

  def __init__(self, kind, case, row):
    config, devices = ladders.resolve(config_of(case)), int(CASES[case][1])
    lengths, V = registry.lengths(config), registry.vocab_size(config, VOCABULARY)
    arguments = config, V, lengths.target, lengths.source
    self.kind, self.config, self.row, self.lengths = kind, config, row, lengths
    self.text = Path(row["text"]).read_text()
    self.works = executed.read(self.text, kind == "v5e", config.model.family == "decoder")
    self.held = aot.device_bytes(config, VOCABULARY, devices, fused=case in FUSED)
    shapes = accounting.shapes(config.model, *arguments[1:])
    on = dict(zip(sharding.AXES, sharding.mesh_shape(config.sharding, devices), strict=True))
    leaves = {path: SimpleNamespace(shape=s, ndim=len(s)) for path, s in shapes.items()}
    dims = sharding.make_layout(config.sharding, leaves, SimpleNamespace(shape=on)).dims
    each = 2 if config.model.weights == "bfloat16" else 4
    self.split = each * sum(math.prod(s) for p, s in shapes.items() if dims[p] >= 0)
    self.rest = each * sum(math.prod(s) for p, s in shapes.items() if dims[p] < 0)

    self.table = each * V * WIDTH

  def sent(self, kind, works=None):
    """(bytes, type) of each collective of a kind, as often as it is executed."""
    flat = executed.flat(self.works if works is None else works)
    return [(n * work.payload, work.dtype) for work, n in flat if work.kind == kind]

  def loops(self, trips):
    """The loops of so many trips that are in no other."""
    return [work for work in self.works if work.kind == "loop" and work.trips == trips]


@functools.cache
def compiler(kind):
  return target_matrix.Compiler(kind)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
  """Compiles the step of a case for a kind of device, once."""
  folder = Path(os.environ.get("TARGET_PROGRAMS") or tmp_path_factory.mktemp("programs"))
  folder.mkdir(exist_ok=True)

  @functools.cache
  def step(kind, case):
    target = catalog.parse(target_matrix.SIZES[kind][CASES[case][1]])
    try:
      catalog.check_installed(target)
    except ValueError as error:
      pytest.skip(str(error))
    path = folder / "_".join((metadata.version("jax"), kind, *case.split()))
    record = Path(f"{path}.json")
    if not record.is_file():
      task = target_matrix.task_of(
        config_of(case), target.name, VOCABULARY, ["step"], texts=str(path)
      )
      (row,) = compiler(kind)(task)
      assert "text" in row, row
      files.write_json(record, row)
    return Program(kind, case, json.loads(record.read_text()))

  yield step
  for kind in KINDS:
    compiler(kind).close()


@pytest.fixture(params=KINDS)
def step(request, programs):
  return functools.partial(programs, request.param)


@pytest.mark.parametrize("case", CASES)
def test_the_state_is_donated_whole(step, case):
  program = step(case)
  state = program.held["weights"] + program.held["optimizer"]
  assert 0.999 * state < program.row["alias"] < 1.02 * state
  assert program.row["output"] - program.row["alias"] < 1 << 14  # metrics


@pytest.mark.parametrize("case", SCATTERED)
def test_gradients_in_shards_are_scattered_and_not_summed_whole(step, case):
  """A compiler may sum those of microbatches first, and gains as they are.

  On TPUs the table's is summed whole where its shards are parts of tiles, as they are here.
  """
  program = step(case)
  table = program.table if program.kind == "v5e" else 0
  scattered = sum(n for n, _ in program.sent("reduce-scatter"))
  microbatches = program.config.sharding.microbatches
  assert 0.98 * (program.split - table) < scattered < 1.01 * microbatches * program.split
  reduced = sum(n for n, _ in program.sent("all-reduce"))
  between_replicas = program.split / 4 if case == "hybrid" else 0
  rest = table + microbatches * program.rest + 0.02 * program.split
  assert reduced < between_replicas + rest


@pytest.mark.parametrize("case", GATHERED)
def test_weights_are_gathered_in_their_own_type_or_as_products_take_them(step, case):
  program = step(case)
  gathers = program.sent("all-gather")
  types = {"bf16"} if program.config.model.weights == "bfloat16" else {"bf16", "f32"}
  assert {dtype for _, dtype in gathers} <= types
  each = 1 if types == {"bf16"} else 0.5
  assert sum(n for n, _ in gathers) > 0.98 * each * program.split


@pytest.mark.parametrize("case", ["ddp", "zero1", "zero2", "zero3"])
def test_a_microbatch_sends_only_what_its_strategy_needs(step, case):
  program = step(case)
  (loop,) = program.loops(MICROBATCHES)
  inside = {kind: sum(n for n, _ in program.sent(kind, loop.body)) for kind in executed.COLLECTIVES}
  needed = {"zero2": {"reduce-scatter"}, "zero3": {"reduce-scatter", "all-gather"}}
  few = 0.02 * program.split if case in needed else 0  # gains, which TPUs sum as they are
  assert {kind for kind, n in inside.items() if n > few} <= needed.get(case, set())
  assert ("all-gather" in needed.get(case, ())) == (inside["all-gather"] > 0)


def hidden(works, kind):
  """(bytes of collectives of a kind that go on while others are at work, of all)."""
  beside = total = 0.0
  for i, work in enumerate(works):
    if work.kind == "loop":
      inside = hidden(work.body, kind)
      beside, total = beside + work.trips * inside[0], total + work.trips * inside[1]
    elif work.kind == kind:
      total += work.payload
      if work.is_async:
        ends = (k for k in range(i, len(works)) if works[k][:2] == (work.name, "done"))
        between = works[i + 1 : next(ends, i)]
        beside += work.payload * any(other.kind in ("loop", "compute") for other in between)
  return beside, total


@pytest.mark.parametrize("case", ["zero3", "zero3 bfloat16", "zero3 span"])
def test_most_weights_are_gathered_while_something_is_computed(step, case):
  beside, total = hidden(step(case).works, "all-gather")
  assert beside > 0.5 * total > 0


# By how much model/memory.py may be off, where it is by more than a tenth (jax 0.11.2).
OFF = {
  ("h100", "one encoder"): 0.2,  # +0.15: the blocks' gradients are not there yet with the logits
  ("h100", "zero3 bfloat16"): 0.15,  # +0.10: likewise
  ("h100", "zero3"): 0.15,  # -0.11
  ("h100", "zero3 span"): 0.25,  # -0.21
}
ON_CHIP = {"h100": 0, "v5e": 128 << 20}  # memory of a TPU that its temporaries do not count


@pytest.mark.parametrize("case", FUSED)
def test_memory_is_what_was_predicted(step, case):
  """On TPUs to what they keep on the chip."""
  program = step(case)
  row, total = program.row, program.held["total"]
  off = OFF.get((program.kind, case), 0.1)
  held = row["argument"] + row["temp"] + row["output"] - row["alias"]
  assert (1 - off) * held < total < (1 + off) * (held + ON_CHIP[program.kind])


@pytest.mark.parametrize("case", CASES)
def test_products_take_bfloat16_where_it_is_asked_for(step, case, request):
  if case == "one plain":
    reason = "the derivatives of jax.nn.dot_product_attention's scores are products of float32"
    request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
  flops = np.zeros(2)
  for work, n in executed.flat(step(case).works):
    flops += n * work.flops.get("bfloat16", 0.0), n * sum(work.flops.values())
  assert flops[0] == flops[1] > 1e9


KERNELS = {
  "h100": {"one isolated": r'custom_call_target="__gpu\$xla\.gpu\.triton'},
  "v5e": {},
}
DEFAULT = {
  "h100": r'custom_call_target="__cudnn\$fmha',
  "v5e": r'custom_call_target="tpu_custom_call',
}


def squares(program):
  """Arrays of queries by keys, over the whole sequences."""
  lengths = {program.lengths.target, program.lengths.source} - {0}
  module = hlo.parse(program.text)
  return [
    shape
    for computation in module.computations.values()
    for i in computation
    for shape in i.shapes
    if len(shape.dims) > 3 and {*shape.dims[-2:]} <= lengths
  ]


@pytest.mark.parametrize("case", FUSED)
def test_flash_attention_is_there_and_no_scores_are(step, case, request):
  program = step(case)
  kind = request.node.callspec.params["step"]
  assert re.search(KERNELS[kind].get(case, DEFAULT[kind]), program.text)
  assert not squares(program)


def test_scores_would_be_seen(step):
  program = step("one plain")
  assert squares(program)
  assert not re.search("|".join(DEFAULT.values()), program.text)
