"""The report of a sweep: report.md, report.html with its figures, and what the terminal shows.

It reads the sweep's folder and nothing else, so that it can be made again at any time; what is not
there yet is named. report.html holds its figures and needs no network.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from scaling.claims import integrity
from scaling.formats import text_table
from scaling.report import compare, comparison, evidence, render, sections, sweep_results
from scaling.report.render import Block, Image, Table
from scaling.report.sweep_results import Results
from train.system import files


def missing(results: Results) -> Iterator[Block]:
  """Yields the files and the figures that are not there yet."""
  from scaling.report.figures.table import FIGURES  # matplotlib is slow to import: only to draw

  parts = {
    "sweep.json": results.sweep, "cells.csv": results.cells, "fit.json": results.fit,
    "prediction.json": results.prediction, "verification.json": results.verification,
  }  # fmt: skip
  names = [f"`{name}`" for name, part in parts.items() if not part and not results.foreign]
  for name, figure in FIGURES.items():
    if (reason := results.lacks(*figure.needs)) and not figure.extra:
      names.append(f"figure {name} ({reason})")
  if names:
    yield f"**Incomplete.** Missing: {', '.join(names)}."


Part = str | Callable[[Results], Iterable[Block]]  # a figure by its name, or a section
PROVENANCE: tuple[tuple[str, list[Part]], ...] = (
  ("How to reproduce", [sections.reproduction]),
  ("Provenance", [sections.provenance]),
)
SECTIONS: tuple[tuple[str, list[Part]], ...] = (  # by title; "": none
  ("", [sections.headline, sections.glance, missing, "isoflop_profiles"]),
  ("The law", [sections.law, "contours"]),
  ("Compute-optimal models", [sections.optima, "frontier"]),
  ("Held-out cells", [sections.heldout, "forecast_error"]),
  ("", ["predicted_vs_trained"]),
  ("The corpus's floor", [sections.floor]),
  ("", [evidence.decisions]),
  ("The law of each validation set", [evidence.sets, "validation_sets"]),
  ("How well the law fits", ["residuals", "training_curves", "collapse"]),
  ("The estimators side by side", [evidence.estimators]),
  ("How sure", [evidence.certainty]),
  ("Other forms, held out", [evidence.forms]),
  ("Choices that move the answer", [evidence.choices]),
  ("", ["sensitivity"]),
  ("Cells chosen by the fit so far", [sections.adaptive]),
  ("Learning-rate probe", [sections.probe]),
  ("Cells that were not used", [sections.unused]),
  ("Cost", [sections.cost]),
  ("Where the time went", [sections.wall_time]),
  ("Fit cells", [sections.fit_cells]),
)


def write(workdir: str | Path, redraw: bool = True) -> Path:
  """Writes report.md and report.html with their figures, from what the folder has so far.

  In a folder of several arms it also writes comparison.json. Without `redraw` the figures are there
  already (`draw`). Returns the path of report.html.
  """
  results, by = _read(workdir), _by(workdir)
  if by:
    for row in sweep_results.named(by["sets"]):
      write(results.workdir / row["folder"])
    content = list(evidence.groups(by))
  elif results.arms:
    content = _compare(results)
  else:
    if redraw:
      draw(workdir)
    content = assemble(results)
  title = f"Scaling law: {results.sweep.get('name', 'unnamed sweep')}"
  page = results.workdir / "report.html"
  files.write_text(results.workdir / "report.md", render.to_markdown(title, content))
  files.write_text(page, render.to_html(title, content, results.workdir / "figures"))
  return page


def _by(workdir: str | Path) -> dict[str, Any]:
  """Reads by.json; {} where the runs were not fitted by groups."""
  return files.read_json(Path(workdir) / "by.json") or {}


def _read(workdir: str | Path) -> Results:
  """Reads a folder whose files are as they were written."""
  workdir = Path(workdir)
  for folder in (workdir, *(path.parent for path in sorted(workdir.glob("*/sweep.json")))):
    integrity.check(folder)
  return sweep_results.read(workdir)


def draw(workdir: str | Path) -> None:
  """Writes the figures that the folder of one sweep allows."""
  from scaling.report.figures import style, table

  results = sweep_results.read(workdir)
  for name, figure in table.FIGURES.items():
    if not results.lacks(*figure.needs):
      style.draw_figure(results.workdir / "figures", name, figure.draw, results)


def assemble(results: Results, outline: Iterable[tuple[str, list[Part]]] = ()) -> list[Block]:
  """Assembles those sections and figures of a report, or of an outline, that the results allow."""
  from scaling.report.figures.table import FIGURES

  content: list[Block] = []
  for title, parts in outline or (*SECTIONS, *PROVENANCE):
    section: list[Block] = []
    for part in parts:
      if callable(part):
        section += part(results)
      elif not results.lacks(*FIGURES[part].needs):
        sealed = FIGURES[part].sealed if results.prediction else ""
        section.append(Image(part, FIGURES[part].caption + sealed))
    content += [f"## {title}", *section] if title and section else section
  return content


def _compare(results: Results) -> list[Block]:
  """Writes comparison.json and its figure; returns the report on several arms."""
  from scaling.report.figures import arms, style

  sweeps, laws, numbers = compare.compare_sweeps(results)
  files.write_json(results.workdir / "comparison.json", numbers)
  content: list[Block] = [f"**{comparison.summary(sweeps, numbers)}**"]
  if laws:
    folder = results.workdir / "figures"
    style.draw_figure(folder, arms.NAME, arms.arms, sweeps, laws, numbers)
    content.append(Image(arms.NAME, arms.CAPTION))
  return [*content, *comparison.sections(sweeps, numbers), *assemble(results, PROVENANCE)]


def terminal(workdir: str | Path) -> str:
  """Formats the outcome for the terminal: headline, law, optima, held-out cells, decisions."""
  results = _read(workdir)
  if by := _by(workdir):
    texts = []
    for row in sweep_results.named(by["sets"]):
      group = sweep_results.read(results.workdir / row["folder"])
      head = f"{by['column']} = {row['set']}: {group.headline}"
      texts.append("\n\n".join(["\n".join([head, *_warnings(group)]), *_answers(group)]))
    return "\n\n".join([*texts, *_tables(evidence.groups(by))])
  if results.arms:
    sweeps, _, numbers = compare.compare_sweeps(results)
    tables = _tables(comparison.sections(sweeps, numbers))
    return "\n\n".join([comparison.summary(sweeps, numbers), *tables])
  parts = (sections.optima, sections.heldout, sections.unused)
  tables = _tables(block for part in parts for block in part(results))
  verdicts = (verdict.get("verdict", "") for _, verdict in results.judged)
  lines = [results.headline, *(text for text in verdicts if text not in results.headline)]
  if fit := results.fit:
    lines.append(
      f"{fit['n_runs']} runs, {len(fit['excluded'])} left out; L = {results.law.form.formula}:\n"
      + ", ".join(f"{name} = {value} {ends}" for name, value, ends in sweep_results.parameters(fit))
      + "".join(f"\n{warning}" for warning in _warnings(results))
    )
  return "\n\n".join([*lines, *tables, *_answers(results)])


def _answers(results: Results) -> list[str]:
  """Formats each question that the law was asked, with its answer and what to know of it."""
  answers: list[str] = []
  for block in evidence.decisions(results):
    if isinstance(block, Table):
      answers[-1] += "\n" + _table_text(block)
    elif isinstance(block, str) and block.startswith("## "):
      answers.append(block.removeprefix("## "))
    elif isinstance(block, str) and block != evidence.FAR:  # its title has said how far
      answers[-1] += "\n" + block.replace("**", "").replace("\\*", "*")
  return answers


def _warnings(results: Results) -> list[str]:
  return [f"Warning: {warning}" for warning in results.fit.get("warnings", ())]


def _table_text(table: Table) -> str:
  columns, *rows = [[cell.replace("`", "") for cell in row] for row in (table.columns, *table.rows)]
  return text_table(columns, rows)


def _tables(content: Iterable[Block]) -> list[str]:
  return [_table_text(block) for block in content if isinstance(block, Table)]
