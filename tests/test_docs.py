"""The documentation is true: results are those of their records, links and commands work."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from scaling import main
from scaling.laws import forms

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))
import results  # noqa: E402

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "tests/release/README.md"]
pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("path", results.marked_files(), ids=lambda path: path.name)
def test_results_are_those_of_their_records(path):
  """If this fails: change the record or the page's text around it, then run docs/results.py."""
  assert results.written(path.read_text()) == path.read_text()


def test_every_record_is_shown():
  shown = "".join(path.read_text() for path in results.marked_files())
  names = {path.stem for path in results.RECORDS.glob("*.json")}
  assert names == {name for name in names if f"<!-- {name}." in shown}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page):
  targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
  missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
  assert not missing


def test_files_that_pages_name_exist():
  pages = "".join(page.read_text() for page in PAGES if page.parent.name != "release")
  names = set(re.findall(r"`((?:configs|model|train|scaling|tests|docs)/[\w/]+\.py)", pages))
  names -= set(re.findall(r"A new file `([^`]*)`", pages))  # of a recipe
  assert len(names) > 30
  assert not [name for name in sorted(names) if not (ROOT / name).exists()]


def test_readme_is_one_page():
  assert len((ROOT / "README.md").read_bytes()) <= 8192


def commands():
  """Lists the `isoflop` commands of all pages, with the flags that they give."""
  for page in PAGES:
    for block in re.findall(r"```(?:bash)?\n(.*?)```", page.read_text(), re.S):
      text = re.sub(r"\s*\\\n\s*", " ", block)
      for line in re.findall(r"(?:^|/|\$ )isoflop ([a-z]+ --.*)$", text, re.M):
        yield pytest.param(shlex.split(line, comments=True), id=f"{page.stem}: {line[:50].strip()}")


@pytest.mark.parametrize("words", commands())
def test_commands_in_the_documentation_have_the_flags_that_there_are(words, monkeypatch):
  monkeypatch.chdir(ROOT)
  main.parse(words[0], words[1:])


def example(page):
  """Returns the Python of a page."""
  return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S))


def test_the_form_in_the_documentation_fits(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(forms.FORMS, "product", None)  # the page enters it, and it goes again
  cells = [(n, d) for n in (1e6, 2e6, 4e6, 8e6) for d in (2e7, 4e7, 8e7, 16e7)]
  rows = [f"{n},{d},{1.5 + 400 * n**-0.3 * d**-0.1}" for n, d in cells]
  Path("mine.csv").write_text("\n".join(["params,tokens,val_loss", *rows]))
  names = {"__name__": "example"}
  exec(example("runs.md"), names)
  params = names["fit"].params
  assert params["E"] == pytest.approx(1.5, rel=1e-3)
  assert params["alpha"] == pytest.approx(0.3, rel=1e-3)


def test_a_checkpoint_is_read_as_the_documentation_says(make_tiny, tmp_path, monkeypatch):
  from configs import clm
  from train import loop

  monkeypatch.chdir(tmp_path)
  config = make_tiny()
  record = loop.train(config, "runs/cooldown")
  monkeypatch.setattr(clm, "get_config", lambda: config)
  names = {}
  exec(example("checkpoints.md"), names)
  loss = float(names["nll_B"].sum() / names["weight_B"].sum())
  assert loss == pytest.approx(record["loss"], abs=0.2)
