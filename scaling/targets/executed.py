"""What a compiled program executes: FLOPs, bytes and collectives, instruction by instruction.

Elementwise FLOPs are left out: such instructions are bound by memory. Of a buffer that is sliced,
gathered from or updated in place, what is touched counts; what a TPU keeps on the chip costs no
bytes.
"""

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from scaling.targets import hlo
from scaling.targets.hlo import Computation, Instruction, Shape

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
FREE = {  # no memory is touched
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"),
  *("replica-id", "opt-barrier", "optimization-barrier", "add-dependency", "domain"),
  *("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding"),  # custom calls
}
COPIES = ("copy-start", "slice-start", "dynamic-slice-start")
FUSIONS = ("fusion", "fusion-start")
BEGINS, ENDS = "AsyncCollectiveStart", "AsyncCollectiveDone"  # marks in a TPU's fusions
VIEWS = ("bitcast", "reshape", "copy", "convert", "transpose")  # element by element
SLICES = ("slice", "dynamic-slice", "gather")
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # op: which operand is written
# Products of a query with a key in jax's Pallas attention kernels, by the kernel's name.
KERNELS = {"mha_preprocess": 0, "mha_fwd": 2, "mha_dq": 3, "mha_dkv": 4}
KERNELS |= {"mha_forward": 2, "mha_backward": 4 + 3}
TRITON_BLOCK = 128  # queries of a block, of which a causal kernel skips the later keys


class Work(NamedTuple):
  """An executed instruction, per device."""

  name: str
  kind: str  # compute | copy | one of COLLECTIVES | loop | done (waits for the one of its name)
  flops: dict[str, float] = {}  # of matrix products, by the peak that bounds them
  nbytes: float = 0.0  # read and written in the device's memory
  payload: float = 0.0  # bytes of a collective's whole array: gathered, reduced or sent
  dtype: str = ""  # of most of them
  group: tuple[int, ...] = ()  # the devices of the first group that exchange
  is_async: bool = False  # it goes on until its "done"
  source: str = ""  # the operation of jax that it comes from
  trips: int = 1
  body: tuple["Work", ...] = ()


def read(text: str, tpu: bool = False, causal: bool = False) -> tuple[Work, ...]:
  """Reads off what a program (`compiled.as_text()`) executes, in order.

  `causal`: a Triton attention kernel hides the future, which its call does not tell.
  """
  reader = _Reader(hlo.parse(text), tpu, causal)
  return reader.schedule(reader.module.entry)


def flat(works: tuple[Work, ...], times: int = 1) -> Iterator[tuple[Work, int]]:
  """Yields each instruction inside and outside of loops, and how often it is executed."""
  for work in works:
    if work.kind == "loop":
      yield from flat(work.body, times * work.trips)
    else:
      yield work, times


def total(works: tuple[Work, ...]) -> dict[str, float]:
  """Adds up FLOPs (under "flops"), bytes ("nbytes") and each collective's payload."""
  sums: dict[str, float] = defaultdict(float)
  for work, times in flat(works):
    sums["flops"] += times * sum(work.flops.values())
    sums["nbytes"] += times * work.nbytes
    if work.kind in COLLECTIVES:
      sums[work.kind] += times * work.payload
  return sums


class _Reader:
  def __init__(self, module: hlo.Module, tpu: bool, causal: bool):
    self.module, self.tpu, self.causal = module, tpu, causal

  def schedule(self, c: Computation) -> tuple[Work, ...]:
    return tuple(itertools.chain.from_iterable(self._works(c, i) for i in c))

  def _works(self, c: Computation, i: Instruction) -> Iterator[Work]:
    kind, inner = i.op.removesuffix("-start"), self.module.called(i)
    if i.op in FREE or i.target in FREE:
      return
    if i.op == "while" and (body := self.module.called(i, "body")):
      yield Work(i.name, "loop", trips=self._trips(c, i), body=self.schedule(body))
    elif i.op == "call" and inner:
      yield from self.schedule(inner)
    elif i.op == "conditional":
      names = re.findall(r"%([\w.-]+)", i.attributes.partition("metadata=")[0])
      branches = (self.schedule(self.module.computations[name]) for name in names)
      yield from max(branches, key=lambda works: sum(total(works).values()))
    elif i.op.endswith("-done"):
      yield Work(i.operands[0], "done")
    elif kind in COLLECTIVES:
      yield self._collective(c, i, i.name, kind, i.op != kind)
    elif i.op in COPIES:
      source, dest = c[i.operands[0]].shapes[0], i.shapes[i.op != "copy-start"]
      ends = self._in_memory(source) + self._in_memory(dest)
      yield Work(i.name, "copy", nbytes=dest.nbytes * ends, is_async=True)
    else:
      yield from self._compute(c, i, inner)

  def _compute(self, c: Computation, i: Instruction, inner: Computation | None) -> Iterator[Work]:
    """An instruction that computes, and the collective that a TPU's fusion may have in it."""
    marks = {x.target for x in inner or () if x.op == "custom-call"} & {BEGINS, ENDS}
    if inner is not None:
      yield from self._fused_collectives(i, inner, marks)
    if not marks:
      flops, nbytes = dict(self._flops_of(c, i)), self._nbytes(c, i, inner)
      yield Work(i.name, "compute", flops, nbytes, source=i.source)

  def _fused_collectives(self, i: Instruction, inner: Computation, marks: set[str]):
    for x in inner:
      if x.op not in COLLECTIVES:
        continue
      channel = "channel " + x.attribute(r"channel_id=(\d+)")
      if ENDS in marks:
        yield Work(channel, "done")
      elif BEGINS in marks:
        yield self._collective(inner, x, channel, x.op, True)
      elif "async_collective_fusion_config" not in x.attributes:  # else under way since its start
        scatters = x.op == "all-reduce" and any(y.op == "dynamic-slice" for y in inner)
        yield self._collective(inner, x, i.name, "reduce-scatter" if scatters else x.op, False)

  def _collective(
    self, c: Computation, i: Instruction, name: str, kind: str, is_async: bool
  ) -> Work:
    group, sizes = self.module.group(i), Counter[str]()
    sent = [shape for operand in i.operands for shape in c[operand].shapes]
    for shape in sent:
      sizes[shape.dtype] += shape.elements * hlo.bits(shape.dtype) // 8
    payload = sum(sizes.values()) * (len(group) if kind == "all-gather" else 1)
    dtype = max(sizes, key=sizes.__getitem__, default="")
    return Work(name, kind, {}, 0.0, payload, dtype, group, is_async, i.source)

  def _trips(self, c: Computation, loop: Instruction) -> int:
    """How often a loop's body runs; ValueError where the text does not tell."""
    if known := loop.attribute(r'known_trip_count"?:\{"?n"?:"?(\d+)'):
      return int(known)
    condition, start = self.module.called(loop, "condition"), c[loop.operands[0]]

    def value(name: str, where: Computation) -> int:
      i = where[name]
      if i.op == "get-tuple-element" and where is condition and start.op == "tuple":
        return value(start.operands[int(i.attribute(r"index=(\d+)"))], c)
      return value(i.operands[0], where) if i.op in VIEWS else int(i.arguments)

    if condition and condition.root.attribute("direction=(LT)"):
      begin, end = (value(name, condition) for name in condition.root.operands)
      return end - begin
    raise ValueError(f"{loop.name}: its number of trips is not known")

  # ---- FLOPs ----

  def _flops_of(self, c: Computation, i: Instruction) -> Counter:
    """FLOPs of an instruction's products by peak: bfloat16, tensorfloat32 or float32."""
    if i.op in FUSIONS and (inner := self.module.called(i)):
      return sum((self._flops_of(inner, x) for x in inner), Counter())
    if i.op not in ("dot", "convolution", "custom-call") or not i.operands:
      return Counter()
    shapes = [shape for name in i.operands for shape in c[name].shapes[:1]]
    flops, left = 0.0, shapes[0]
    if i.op == "dot" or i.target.startswith("__cublas$"):
      flops = 2.0 * i.elements
      for d in i.integers(r"lhs_contracting_dim(?:ension)?s"):
        flops *= left.dims[d]
    elif i.op == "convolution":
      flops = _convolution(i, left.dims, shapes[1].dims)
    elif "fmha" in i.target:
      keys, causal = shapes[1].dims[1], i.attribute(r'mask_type"?: ?"\w*(CAUSAL)')
      products = 5 if "Backward" in i.target else 2
      flops = 2.0 * products * left.elements * ((keys + 1) / 2 if causal else keys)
    elif i.target in ("tpu_custom_call", "__gpu$xla.gpu.triton"):
      flops = self._kernel(i, shapes)
    exact = "operand_precision={highest" in i.attributes
    peak = ("float32" if exact else "tensorfloat32") if left.dtype == "f32" else "bfloat16"
    return Counter({peak: flops} if flops else {})

  def _kernel(self, i: Instruction, shapes: list[Shape]) -> float:
    """FLOPs of a Pallas kernel: as it states them, or those of jax's attention kernels."""
    if stated := i.attribute(r'cost_estimate"?:\s*(\{[^}]*\})'):
      return float(json.loads(stated).get("flops", 0))
    name = next((name for name in KERNELS if name in i.name or f"/{name}" in i.source), "")
    arrays = [s for s in shapes if len(s.dims) == 4 and s.dtype in ("bf16", "f32")]
    if not name or len(arrays) < 2:
      return 0.0
    if i.target == "tpu_custom_call":  # BHTK; the mask has a number for each pair of blocks
      T, S = arrays[0].dims[2], arrays[1].dims[2]
      blocks = next((s.dims[1] for s in shapes if s.dtype == "s8"), 1)
      causal = any(s.dtype == "s32" and len(s.dims) == 2 for s in shapes)  # positions of queries
    else:  # BTHK
      T, S = arrays[0].dims[1], arrays[1].dims[1]
      blocks, causal = max(1, T // TRITON_BLOCK), self.causal
    visited = (blocks + 1) / (2 * blocks) if causal and T == S else 1.0
    return 2.0 * KERNELS[name] * arrays[0].elements * S * visited

  # ---- Bytes ----

  def _in_memory(self, shape: Shape) -> bool:
    return shape.space == 0 or (not self.tpu and shape.space == 1)  # a GPU's 1: for collectives

  def _nbytes(self, c: Computation, i: Instruction, inner: Computation | None) -> float:
    """Bytes that an instruction reads and writes in the device's memory."""
    operands = [c[name].shapes[0] for name in i.operands if c[name].shapes]
    if inner is not None and i.op in FUSIONS:
      roots = inner.root.operands if inner.root.op == "tuple" else (inner.root.name,)
      touched = [(s, self._read(inner, inner.parameters[k])) for k, s in enumerate(operands)]
      results = i.shapes if i.op == "fusion" else inner.root.shapes
      touched += [(s, self._written(inner, n)) for n, s in zip(roots, results, strict=False)]
      memory = ((s, n) for s, n in touched if s.elements and self._in_memory(s))
      return sum(s.nbytes * n / s.elements for s, n in memory)
    if i.op in SLICES:
      return i.shapes[0].nbytes * (self._in_memory(operands[0]) + self._in_memory(i.shapes[0]))
    if i.op in UPDATES:
      update = operands[UPDATES[i.op]]
      return update.nbytes * (self._in_memory(update) + self._in_memory(i.shapes[0]))
    scratch = ("u8", "s8") if i.target.startswith("__cu") else ()
    ends = (*operands, *(s for s in i.shapes if s.dtype not in scratch))
    return sum(s.nbytes for s in ends if self._in_memory(s))

  def _read(self, c: Computation, name: str) -> float:
    """Elements that a fused computation reads of one of its values."""
    whole, read = c[name].elements, 0.0
    if c[name].is_root and c[name].op != "parameter":
      return whole
    for user in c.users[name]:
      inner = self.module.called(user) if user.op == "fusion" else None
      if user.op in SLICES and user.operands[0] == name:
        read += user.elements
      elif user.op in UPDATES and user.operands[0] == name:
        read += c[user.operands[2]].elements if user.op == "scatter" else 0
      elif user.op in VIEWS:
        read += self._read(c, user.name)
      elif inner:
        read += self._read(inner, inner.parameters[user.operands.index(name)])
      elif user.op != "tuple" or c[name].op != "parameter":  # a tuple hands a parameter on
        return whole
    return min(read, whole)

  def _written(self, c: Computation, name: str) -> float:
    """Elements that a fused computation writes of one of its results."""
    i = c[name]
    if i.op in UPDATES:
      base = i.operands[0]
      while c[base].op in (*VIEWS, *UPDATES):
        base = c[base].operands[0]
      in_place = c[base].op == "parameter"
      return c[i.operands[UPDATES[i.op]]].elements if in_place else i.elements
    if i.op in VIEWS:
      return self._written(c, i.operands[0])
    inner = self.module.called(i) if i.op == "fusion" else None
    if inner and inner.root.op != "tuple":
      return self._written(inner, inner.root.name)
    return 0 if i.op == "parameter" else i.elements


def _convolution(i: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
  """FLOPs of a convolution, without products of padding or of what dilation puts in between."""
  inputs, kernel, output = re.split(r"_|->", i.attribute(r"dim_labels=([\w>-]+)"))
  sizes = i.shapes[0].dims
  flops = 2.0 * right[kernel.index("i")] * sizes[output.index("b")] * sizes[output.index("f")]
  ones = "x".join(["1"] * (len(inputs) - 2))
  stride, dilation, step = (
    i.integers(rf"\b{name}", ones) for name in ("stride", "lhs_dilate", "rhs_dilate")
  )
  pads = [int(low) for low in re.findall(r"(-?\d+)_", i.attribute(r"pad=([\dx_-]+)"))]
  for k, label in enumerate(sorted(set(inputs) - {"b", "f"})):
    taps, out = np.arange(right[kernel.index(label)]), np.arange(sizes[output.index(label)])
    at = out[:, None] * stride[k] + taps * step[k] - (pads[k] if pads else 0)
    last = (left[inputs.index(label)] - 1) * dilation[k]
    flops *= int(np.sum((at >= 0) & (at <= last) & (at % dilation[k] == 0)))
  return flops
