"""The report of a sweep: report.md, report.html with its figures, and what the terminal shows.

It reads the sweep's folder and nothing else, so that it can be made again at any time; what is not
there yet is named. report.html holds its figures and needs no network.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from scaling.claims import integrity
from scaling.formats import text_table
from scaling.report import compare, comparison, evidence, records, render, sections
from scaling.report.records import Record
from scaling.report.render import Block, Image, Table
from train.system import files


def missing(record: Record) -> Iterator[Block]:
  """Yields the files and the figures that are not there yet."""
  from scaling.report.figures.table import FIGURES  # matplotlib is slow to import: only to draw

  parts = {
    "sweep.json": record.sweep, "cells.csv": record.cells, "fit.json": record.fit,
    "prediction.json": record.prediction, "verification.json": record.verification,
  }  # fmt: skip
  names = [f"`{name}`" for name, part in parts.items() if not part and not record.foreign]
  for name, figure in FIGURES.items():
    if (reason := record.lacks(*figure.needs)) and not figure.extra:
      names.append(f"figure {name} ({reason})")
  if names:
    yield f"**Incomplete.** Missing: {', '.join(names)}."


Part = str | Callable[[Record], Iterable[Block]]  # a figure by its name, or a section
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
  record, by = _read(workdir), _by(workdir)
  if by:
    for row in records.named(by["sets"]):
      write(record.workdir / row["folder"])
    content = list(evidence.groups(by))
  elif record.arms:
    content = _compare(record)
  else:
    if redraw:
      draw(workdir)
    content = assemble(record)
  title = f"Scaling law: {record.sweep.get('name', 'unnamed sweep')}"
  page = record.workdir / "report.html"
  files.write_text(record.workdir / "report.md", render.to_markdown(title, content))
  files.write_text(page, render.to_html(title, content, record.workdir / "figures"))
  return page


def _by(workdir: str | Path) -> dict[str, Any]:
  """Reads by.json; {} where the runs were not fitted by groups."""
  return files.read_json(Path(workdir) / "by.json") or {}


def _read(workdir: str | Path) -> Record:
  """Reads a folder whose files are as they were written."""
  workdir = Path(workdir)
  for folder in (workdir, *(path.parent for path in sorted(workdir.glob("*/sweep.json")))):
    integrity.check(folder)
  return records.read(workdir)


def draw(workdir: str | Path) -> None:
  """Writes the figures that the folder of one sweep allows."""
  from scaling.report.figures import table

  table.draw_all(records.read(workdir))


def assemble(record: Record, outline: Iterable[tuple[str, list[Part]]] = ()) -> list[Block]:
  """Assembles those sections and figures of a report, or of an outline, that the record allows."""
  from scaling.report.figures.table import FIGURES

  content: list[Block] = []
  for title, parts in outline or (*SECTIONS, *PROVENANCE):
    section: list[Block] = []
    for part in parts:
      if callable(part):
        section += part(record)
      elif not record.lacks(*FIGURES[part].needs):
        sealed = FIGURES[part].sealed if record.prediction else ""
        section.append(Image(part, FIGURES[part].caption + sealed))
    content += [f"## {title}", *section] if title and section else section
  return content


def _compare(record: Record) -> list[Block]:
  """Writes comparison.json and its figure; returns the report on several arms."""
  from scaling.report.figures import arms, style

  sweeps, laws, numbers = compare.compare_sweeps(record)
  files.write_json(record.workdir / "comparison.json", numbers)
  content: list[Block] = [f"**{comparison.summary(sweeps, numbers)}**"]
  if laws:
    folder = record.workdir / "figures"
    style.draw_figure(folder, arms.NAME, arms.arms, sweeps, laws, numbers)
    content.append(Image(arms.NAME, arms.CAPTION))
  return [*content, *comparison.sections(sweeps, numbers), *assemble(record, PROVENANCE)]


def terminal(workdir: str | Path) -> str:
  """Formats the outcome for the terminal: headline, law, optima, held-out cells, decisions."""
  record = _read(workdir)
  if by := _by(workdir):
    texts = []
    for row in records.named(by["sets"]):
      group = records.read(record.workdir / row["folder"])
      head = f"{by['column']} = {row['set']}: {group.headline}"
      texts.append("\n\n".join(["\n".join([head, *_warnings(group)]), *_answers(group)]))
    return "\n\n".join([*texts, *_tables(evidence.groups(by))])
  if record.arms:
    sweeps, _, numbers = compare.compare_sweeps(record)
    tables = _tables(comparison.sections(sweeps, numbers))
    return "\n\n".join([comparison.summary(sweeps, numbers), *tables])
  parts = (sections.optima, sections.heldout, sections.unused)
  tables = _tables(block for part in parts for block in part(record))
  verdicts = (verdict.get("verdict", "") for _, verdict in record.judged)
  lines = [record.headline, *(text for text in verdicts if text not in record.headline)]
  if fit := record.fit:
    lines.append(
      f"{fit['n_runs']} runs, {len(fit['excluded'])} left out; L = {record.law.form.formula}:\n"
      + ", ".join(f"{name} = {value} {ends}" for name, value, ends in records.parameters(fit))
      + "".join(f"\n{warning}" for warning in _warnings(record))
    )
  return "\n\n".join([*lines, *tables, *_answers(record)])


def _answers(record: Record) -> list[str]:
  """Formats each question that the law was asked, with its answer and what to know of it."""
  answers: list[str] = []
  for block in evidence.decisions(record):
    if isinstance(block, Table):
      answers[-1] += "\n" + _table_text(block)
    elif isinstance(block, str) and block.startswith("## "):
      answers.append(block.removeprefix("## "))
    elif isinstance(block, str) and block != evidence.FAR:  # its title has said how far
      answers[-1] += "\n" + block.replace("**", "").replace("\\*", "*")
  return answers


def _warnings(record: Record) -> list[str]:
  return [f"Warning: {warning}" for warning in record.fit.get("warnings", ())]


def _table_text(table: Table) -> str:
  columns, *rows = [[cell.replace("`", "") for cell in row] for row in (table.columns, *table.rows)]
  return text_table(columns, rows)


def _tables(content: Iterable[Block]) -> list[str]:
  return [_table_text(block) for block in content if isinstance(block, Table)]
