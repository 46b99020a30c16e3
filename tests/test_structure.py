"""The house: imports run one way, files and folders stay small, chains of imports short."""

import ast
import functools
import graphlib
from collections import Counter
from pathlib import Path

import pytest

from configs.base import FAMILIES

ROOT = Path(__file__).parents[1]
ORDER = ["configs", "model", "train", "scaling"]
pytestmark = pytest.mark.smoke
FILES = [path for folder in ORDER for path in (ROOT / folder).rglob("*.py")]
TESTS = list((ROOT / "tests").rglob("*.py"))


@functools.cache
def imported(path):
  """The modules that a file imports, anywhere in it, and the names that it takes from them."""
  names = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
  return names


@functools.cache
def graph():
  """Modules of the house, each with those that it imports; a package is its __init__."""
  modules = {}
  for path in FILES:
    parts = path.relative_to(ROOT).with_suffix("").parts
    modules[".".join(parts).removesuffix(".__init__")] = set(imported(path))
  return {name: (names & modules.keys()) - {name} for name, names in modules.items()}


def test_imports_run_one_way():
  backwards = []
  for name, names in graph().items():
    later = ORDER[ORDER.index(name.split(".")[0]) + 1 :]
    backwards += [f"{name} imports {x}" for x in names if x.split(".")[0] in later]
  assert not backwards


def test_no_circle():
  list(graphlib.TopologicalSorter(graph()).static_order())  # a CycleError names the circle


def test_no_file_over_400_lines():
  lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in FILES + TESTS}
  assert not {str(path): n for path, n in lines.items() if n > 400}


def test_no_folder_of_more_than_14_files():
  count = Counter(str(path.parent.relative_to(ROOT)) for path in FILES + TESTS)
  assert not {folder: n for folder, n in count.items() if n > 14}


def test_no_chain_of_imports_inside_scaling_of_more_than_9_modules():
  @functools.cache
  def longest(name):
    inside = [x for x in graph()[name] if x.startswith("scaling.")]
    return (name, *max(map(longest, inside), key=len, default=()))

  chain = max(map(longest, graph()), key=len)
  assert len(chain) <= 9, " -> ".join(chain)


def test_no_objective_is_compared_by_name():
  names = {name for objectives in FAMILIES.values() for name in objectives}
  compared = []
  for path in FILES:
    for node in ast.walk(ast.parse(path.read_text())):
      constants = ast.walk(node) if isinstance(node, ast.Compare) else ()
      if names & {x.value for x in constants if isinstance(x, ast.Constant)}:
        compared.append(f"{path.relative_to(ROOT)}:{node.lineno}")
  assert not compared, "what differs between objectives is a field of their row"


def test_only_one_file_imports_orbax():
  users = [p.name for p in FILES if any(name.startswith("orbax") for name in imported(p))]
  assert users == ["checkpoint.py"]


def test_no_tensorflow_and_no_torch():
  banned = {"tensorflow", "torch", "transformers"}
  assert not [p for p in FILES if banned & {name.split(".")[0] for name in imported(p)}]


def test_release_tests_find_what_they_take_from_other_tests():
  """Nothing collects them between releases."""

  def defined(path):
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
      elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)
      else:
        yield from (x.id for x in ast.walk(node) if isinstance(x, ast.Name))

  files = {path.stem: path for path in TESTS}
  missing = []
  for path in (ROOT / "tests" / "release").glob("*.py"):
    tree = list(ast.walk(ast.parse(path.read_text())))
    taken = [name.split(".") for name in imported(path) if name.startswith("test_")]
    taken += [
      [node.value.id, node.attr]
      for node in tree
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    for module, *name in taken:
      if module.startswith("test_") and (
        module not in files or not {*name} <= {*defined(files[module])}
      ):
        missing.append(f"{path.name}: {'.'.join([module, *name])}")
  assert not missing
