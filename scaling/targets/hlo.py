"""Optimized HLO text, as `compiled.as_text()` prints it (jax 0.10.2 to 0.12), taken apart."""

import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # the others have theirs in their name
ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
PARENTHESES = re.compile(r"[()]")
LISTED_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}")


class Shape(NamedTuple):
  """An array's type, dimensions and bytes."""

  dtype: str
  dims: tuple[int, ...]
  nbytes: float  # with the padding of its tiles
  space: int  # 0: the device's memory; on a TPU, 1 and above are on the chip

  @property
  def elements(self) -> int:
    """How many numbers it has."""
    return math.prod(self.dims)


class Instruction(NamedTuple):
  """A line of a computation."""

  name: str
  op: str
  shapes: tuple[Shape, ...]  # of its results, tuples flattened
  arguments: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  @property
  def elements(self) -> int:
    """Numbers of its first result."""
    return self.shapes[0].elements if self.shapes else 0

  @property
  def target(self) -> str:
    """What a custom call calls."""
    return self.attribute(r'custom_call_target="([^"]*)"')

  @property
  def source(self) -> str:
    """The operation of jax that it comes from."""
    return self.attribute(r'op_name="([^"]*)"')

  def attribute(self, pattern: str) -> str:
    """The first group of a pattern in the attributes; "": it is not there."""
    match = re.search(pattern, self.attributes)
    return match[1] if match else ""

  def integers(self, name: str, default: str = "") -> list[int]:
    """An attribute that is a list of integers, with any separators and brackets."""
    listed = self.attribute(rf'{name}"?[=:]\s*[{{\[]?"?([\d,"x]*)') or default
    return [int(n) for n in re.findall(r"\d+", listed)]


class Computation:
  """Instructions in the order in which they run."""

  def __init__(self, instructions: list[Instruction]):
    """The root is marked, or else the last."""
    self.instructions = {i.name: i for i in instructions}
    self.root = next((i for i in instructions if i.is_root), instructions[-1])

  def __getitem__(self, name: str) -> Instruction:
    return self.instructions[name]

  def __iter__(self) -> Iterator[Instruction]:
    return iter(self.instructions.values())

  @cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """By name, the instructions that have it as an operand."""
    users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
    for i in self:
      for operand in set(i.operands):
        users[operand].append(i)
    return users

  @cached_property
  def parameters(self) -> dict[int, str]:
    """Names of the parameters by number."""
    return {int(i.arguments): i.name for i in self if i.op == "parameter"}


class Module(NamedTuple):
  """A program."""

  computations: dict[str, Computation]
  entry: Computation
  devices: int

  def called(self, i: Instruction, attribute: str = "calls|to_apply") -> Computation | None:
    """The computation that an instruction names."""
    return self.computations.get(i.attribute(rf"(?:{attribute})=%?([\w.-]+)"))

  def group(self, i: Instruction) -> tuple[int, ...]:
    """The first group of devices of a collective: a list, an iota, or axes of a mesh."""
    if mesh := MESH_GROUPS.search(i.attributes):
      sizes = {k: int(n) for k, n in re.findall(r"'?(\w+)'?=(\d+)", mesh[1])}
      axes = re.findall(r"\w+", mesh[2])
      ids = np.arange(math.prod(sizes.values())).reshape([*sizes.values()])
      return tuple(ids[tuple(slice(None) if k in axes else 0 for k in sizes)].ravel().tolist())
    if iota := IOTA_GROUPS.search(i.attributes):
      dims = [int(n) for n in iota[2].split(",")]
      order = [int(n) for n in iota[3].split(",")] if iota[3] else [*range(len(dims))]
      ids = np.arange(math.prod(dims)).reshape(dims).transpose(order).ravel()
      return tuple(ids[: int(iota[1])].tolist())
    if listed := LISTED_GROUPS.search(i.attributes):
      return tuple(int(n) for n in listed[1].split(","))
    return tuple(range(self.devices))


def parse(text: str) -> Module:
  """Parses a program's text."""
  computations: dict[str, Computation] = {}
  name = entry = ""
  lines: list[str] = []
  for line in text.splitlines():
    if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
      name, lines = head[2], []
      entry = name if head[1] else entry
    elif name and re.match(r"\}($|, )", line):
      computations[name], name = Computation([_instruction(line) for line in lines]), ""
    elif re.match(r" +(ROOT )?%\S+ = ", line):
      lines.append(line)
    elif name:
      lines[-1] += line  # an attribute of several lines
  counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0])
  return Module(computations, computations[entry], math.prod(int(n) for n in counts))


def bits(dtype: str) -> int:
  """Returns the size of a number of a type; 0: a token or a key, which is no number."""
  return BITS.get(dtype) or int((re.findall(r"^[a-z]+(\d+)", dtype) or [0])[0])


def _instruction(line: str) -> Instruction:
  left, _, right = line.strip().partition(" = ")
  end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
  begin = right.index("(", end)
  close = _closing(right, begin)
  arguments = right[begin + 1 : close]
  return Instruction(
    name=left.removeprefix("ROOT ").lstrip("%"),
    op=right[end:begin].strip(),
    shapes=tuple(_shape(*array) for array in ARRAY.findall(right[:end])),
    arguments=arguments,
    operands=tuple(re.findall(r"%([\w.-]+)", arguments)),
    attributes=right[close + 1 :],
    is_root=left.startswith("ROOT "),
  )


def _closing(text: str, start: int) -> int:
  """Finds the parenthesis that closes the one at `start`."""
  depth = 0
  for match in PARENTHESES.finditer(text, start):
    depth += 1 if match[0] == "(" else -1
    if not depth:
      return match.start()
  raise ValueError(f"no parenthesis closes {text[start : start + 80]!r}")


def _shape(dtype: str, dims: str, layout: str) -> Shape:
  sizes = [int(n.lstrip("<=")) for n in dims.split(",") if n]
  order, _, rest = layout.partition(":")
  padded = [sizes[int(d)] for d in order.split(",") if d] or sizes[::-1]  # minor to major
  if tile := re.match(r"T\(([\d,]+)\)", rest):
    for k, n in enumerate(reversed(tile[1].split(","))):
      if k < len(padded):
        padded[k] = -(-padded[k] // int(n)) * int(n)
  space = re.search(r"S\((\d+)\)", rest)
  nbytes = math.prod(padded) * bits(dtype) / 8
  return Shape(dtype, tuple(sizes), nbytes, int(space[1]) if space else 0)
