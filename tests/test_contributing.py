"""Each recipe of CONTRIBUTING.md, followed in a copy of the repository, does what it says."""

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
STEP = re.compile(
  r"(?:(?P<new>A new file)|In) `(?P<file>\S+\.py)`"
  r"(?:, (?P<where>above|at the end of|in place of|among its imports)(?: `(?P<name>\S+)`)?)?:\n+"
  r"```python\n(?P<code>.*?)```"
  r"|This then works[^:\n]*:\n+```bash\n(?P<shell>.*?)```",
  re.S,
)


class Recipe(NamedTuple):
  """A recipe of the page: its heading, its lines, its steps."""

  heading: str
  text: str
  steps: list[dict]


QUICK = ("Add a corpus", "Add a figure", "Add a form of law")  # the others run with -m slow


def recipes(slow=()):
  page = (ROOT / "CONTRIBUTING.md").read_text()
  for text in re.findall(r"^### .*?(?=^##|\Z)", page, re.S | re.M):
    heading = text.partition("\n")[0].removeprefix("### ")
    steps = [step.groupdict() for step in STEP.finditer(text)]
    if "```" in text:
      marks = () if heading in QUICK else slow
      yield pytest.param(Recipe(heading, text, steps), id=heading, marks=marks)


def place(source, name):
  """Finds the statement that defines a name, and the table in it that `NAME["row"]` means."""
  name, *keys = re.findall(r"\w+", name)

  def defines(node):
    targets = getattr(node, "targets", [getattr(node, "target", node)])
    return any(name in (getattr(t, "id", None), getattr(t, "name", None)) for t in targets)

  statement = next(node for node in ast.parse(source).body if defines(node))
  table = getattr(statement, "value", None)
  for key in keys:
    names = [ast.literal_eval(k) for k in table.keys]
    table = table.values[names.index(key)]
  return statement, table


def applied(source, step):
  """Returns the source of a file after a step."""
  code, lines = step["code"], source.splitlines(keepends=True)
  assert code.strip() not in source or len(code.split()) == 1, (
    f"{step['file']} has it already: the recipe was followed; give it another example"
  )
  if step["where"] == "among its imports":
    imports = (x for x in ast.parse(source).body if isinstance(x, ast.Import | ast.ImportFrom))
    last = max(x.end_lineno for x in imports)
    return "".join([*lines[:last], code, *lines[last:]])
  statement, table = place(source, step["name"])
  decorators = [x.lineno for x in getattr(statement, "decorator_list", ())]
  first, last = min([statement.lineno, *decorators]) - 1, statement.end_lineno
  if step["where"] == "above":
    return "".join([*lines[:first], code.rstrip() + "\n\n\n", *lines[first:]])
  if step["where"] == "in place of":
    return "".join([*lines[:first], code, *lines[last:]])
  end = sum(len(line.encode()) for line in lines[: table.end_lineno - 1]) + table.end_col_offset - 1
  before, after = source.encode()[:end].decode(), source.encode()[end:].decode()
  comma = "" if before.rstrip().endswith((",", "(", "[", "{")) else ","
  row = textwrap.indent(textwrap.dedent(code.rstrip().rstrip(",")), "  ")
  if before.endswith("\n"):  # the bracket stands on a line of its own
    return f"{before.rstrip()}{comma}\n{row},\n{after}"
  return f"{before}{comma} {row.strip()},{after}"


@pytest.fixture
def copy(tmp_path):
  """A copy of the repository's code, without what has been made there."""
  for folder in ("configs", "model", "train", "scaling", "tests"):
    shutil.copytree(ROOT / folder, tmp_path / "copy" / folder, ignore=lambda *_: {"__pycache__"})
  shutil.copy(ROOT / "pyproject.toml", tmp_path / "copy")
  return tmp_path / "copy"


def follow(recipe, copy):
  """Does the steps of a recipe in a copy of the repository; returns the files that they change."""
  paths = []
  for step in recipe.steps:
    if not step["shell"]:
      paths.append(path := copy / step["file"])
      if step["new"]:
        said = f"{step['file']} is there already: the recipe was followed; give it another example"
        assert not path.exists(), said
      path.write_text(step["code"] if step["new"] else applied(path.read_text(), step))
  return paths


@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_is_short_and_can_be_followed(recipe, copy):
  assert recipe.text.count("```") == 2 * len(recipe.steps), "a block without its sentence"
  assert len([line for line in recipe.text.splitlines() if line]) < 40
  assert any(step["shell"] for step in recipe.steps)
  for path in follow(recipe, copy):
    ast.parse(path.read_text())


@pytest.mark.parametrize("recipe", recipes(slow=pytest.mark.slow))
def test_a_recipe_works_as_written(recipe, copy, cache, request):
  follow(recipe, copy)
  work = copy.parent / "work"
  (work / "runs").mkdir(parents=True)
  if "runs/quick" in recipe.text:  # a sweep that a reader has
    shutil.copytree(request.getfixturevalue("finished"), work / "runs/quick")
  shell = 'isoflop() { python -m scaling.main "$@"; }\n'
  shell += "".join(step["shell"] for step in recipe.steps if step["shell"])
  done = run(["bash", "-euc", shell], work, copy)
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipes())
def test_the_tests_that_a_recipe_names_pass_after_it(recipe, copy, cache):
  follow(recipe, copy)
  named = sorted(set(re.findall(r"tests/[\w/]*test_\w+\.py", recipe.text)))
  if named:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    done = run([*command, *named], copy, copy)
    assert done.returncode == 0, done.stdout + done.stderr


def run(command, folder, copy):
  """Runs a command on a copy of the repository's code."""
  path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
  code = os.pathsep.join([str(copy), str(copy / "tests/helpers")])
  environment = os.environ | {"PYTHONPATH": code, "PATH": path}
  return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
