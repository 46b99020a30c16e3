"""What the unfinished cells of a sweep are expected to end with, in a folder of a known law."""

import dataclasses
import json

import numpy as np
import pytest

from configs import base
from scaling.commands.runs import runs_table
from scaling.report import expected
from scaling.sweep import plan, store
from train import optim, record


def config():
  c = base.get_config()
  c.model.scan, c.data.tokenizer, c.data.seq_len, c.data.batch_size = False, "bpe:512", 64, 8
  c.optim.warmup_tokens = 10_000
  c.sweep.sizes, c.sweep.budgets = (3, 5, 7), (1e11, 2e11, 4e11, 8e11)
  c.sweep.min_tokens_per_param, c.sweep.max_tokens_per_param = 1.0, 200.0
  return c


def train_loss(N, S, Z):
  return 1.9 + 120 * N**-0.45 + 60 * S**-0.32 - 8e-4 * N**0.15 * Z**0.4


def areas_of(cell):
  return expected.areas(config().to_dict()["optim"], cell, np.arange(1, cell.steps + 1))


def write_curve(folder, cell, steps, first=0, constant=False):
  """Writes metrics.jsonl, a row every ten steps after `first`; returns its last train loss."""
  folder.mkdir(parents=True, exist_ok=True)
  areas = (np.arange(1, steps + 1) * cell.tokens_per_step, np.zeros(steps))
  S, Z = areas if constant else areas_of(cell)
  at = np.arange(first + 9, steps, 10)
  loss = train_loss(cell.N, S[at], Z[at])
  tokens = (at + 1) * cell.tokens_per_step
  rows = [{"step": int(i) + 1, "tokens": int(t), "train_loss": x}
          for i, t, x in zip(at, tokens, loss, strict=True)]  # fmt: skip
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return float(train_loss(cell.N, S[-1], Z[-1]))


@pytest.fixture
def workdir(tmp_path):
  """A sweep whose fit cells are done, but one that diverged; a held-out cell runs."""
  cells = plan.design_cells(config(), 512)
  cells += plan.heldout_options(config(), 512, 1.6e12)[5:6]
  store.write_sweep(tmp_path, {"config": record.plain(config())}, cells)
  for trunk in plan.trunks(cells):
    cell = next(cell for cell in cells if cell.trunk == trunk.id)
    write_curve(tmp_path / "trunks" / trunk.id, cell, trunk.steps, constant=True)
  for cell in cells:
    folder, running = tmp_path / "cells" / cell.id, cell.kind == "heldout"
    last = round(0.3 * cell.steps) if running else cell.steps
    loss = write_curve(folder, cell, last, cell.branch_step)
    row = {"status": "running"} if running else {"status": "done", "loss": loss * 1.06}
    (folder / "run.json").write_text(json.dumps(row))
  (tmp_path / "cells" / cells[1].id / "run.json").write_text('{"status": "diverged"}')
  return tmp_path


def test_a_running_cell_says_what_it_is_expected_to_end_with(workdir):
  head, cells = store.read_sweep(workdir)
  (name, (loss, (low, high))), = expected.final_losses(workdir, head, cells).items()  # fmt: skip
  running = cells[-1]
  assert name == running.id
  S, Z = areas_of(running)
  assert loss == pytest.approx(1.06 * train_loss(running.N, S[-1], Z[-1]), rel=3e-3)
  assert low <= loss <= high
  lines = runs_table(workdir).splitlines()
  assert lines[0].split()[-2:] == ["expected", "loss"]
  assert [line.split()[0] for line in lines if "[" in line] == [running.id]


def test_only_cells_that_are_done_or_may_yet_be_have_a_curve(workdir):
  head, cells = store.read_sweep(workdir)
  curves = expected.read_curves(workdir, head, cells)
  assert set(curves) == {cell.id for cell in cells} - {cells[1].id}
  cell = cells[0]
  curve = curves[cell.id]  # its trunk's as far as it branches, then its own
  tokens = curve.S + curve.Z
  assert np.all(np.diff(tokens) > 0)
  assert tokens[0] < cell.branch_step * cell.tokens_per_step < tokens[-1]
  assert np.all((curve.Z > 0) == (tokens > (cell.branch_step + 1) * cell.tokens_per_step))
  assert sum(curve.end) == pytest.approx(cell.D)


def test_a_sweep_with_nothing_under_way_fits_no_curves(workdir):
  running = next((workdir / "cells").glob("heldout*"))
  (running / "run.json").write_text('{"status": "failed", "error": "RunError: x"}')
  assert "expected" not in runs_table(workdir)


def test_areas_are_the_sums_over_a_schedule():
  cell = plan.design_cells(config(), 512)[0]
  S, Z = areas_of(cell)
  per_step = np.diff(S, prepend=0) / cell.tokens_per_step
  start = optim.cooldown_start(config().optim, cell.steps)
  assert cell.steps < expected.GRID
  np.testing.assert_allclose(per_step[:start], 1)
  at = np.arange(cell.steps - start)
  np.testing.assert_allclose(per_step[start:], 1 - np.sqrt(at / len(at)), atol=1e-9)
  long = dataclasses.replace(cell, steps=50 * cell.steps)
  ends = (expected.areas(config().to_dict()["optim"], x, np.array([x.steps])) for x in (cell, long))
  (S, Z), (long_S, long_Z) = ends
  assert long_S == pytest.approx(50 * S, rel=1e-3)
  assert long_Z == pytest.approx(50 * Z, rel=1e-2)
