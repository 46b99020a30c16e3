"""The house: imports run one way."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ["configs", "model", "train", "scaling"]
pytestmark = pytest.mark.smoke
FILES = [path for folder in ORDER for path in (ROOT / folder).rglob("*.py")]


def imported(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_run_one_way():
  backwards = []
  for path in FILES:
    room = path.relative_to(ROOT).parts[0]
    later = ORDER[ORDER.index(room) + 1 :]
    names = [name for name in imported(path) if name.split(".")[0] in later]
    backwards += [f"{path.relative_to(ROOT)} imports {name}" for name in names]
  assert not backwards


def test_no_circle_inside_a_room():
  graph = {}
  for path in FILES:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    graph[name] = {other for other in imported(path) if other.split(".")[0] in ORDER}
  modules = {name: graph[name] & graph.keys() for name in graph}
  order = list(graphlib.TopologicalSorter(modules).static_order())  # a CycleError names the circle
  assert len(order) == len(FILES)


def test_only_one_file_imports_orbax():
  users = [p.name for p in FILES if any(name.startswith("orbax") for name in imported(p))]
  assert users == ["checkpoint.py"]


def test_no_tensorflow_and_no_torch():
  banned = {"tensorflow", "torch", "transformers"}
  assert not [p for p in FILES if banned & {name.split(".")[0] for name in imported(p)}]
