"""What `isoflop train`, `plan`, `fit` and `runs` do, beside what their parts are tested for."""

import io
import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from configs import presets
from scaling import progress
from scaling.sweep import design
from train.system import process

ROOT = Path(presets.__file__).parents[1]
SHORT = ("--config.train.tokens=4096", "--config.optim.warmup_tokens=0", "--config.model.size=0")


@pytest.mark.parametrize("name", ["t5", pytest.param("encoder_decoder", marks=pytest.mark.slow)])
def test_presets_of_encoder_decoders_train_as_shipped_in_a_checkout_that_is_not_installed(
  isoflop, corpus, tmp_path, monkeypatch, name
):
  installed = metadata.version

  def version(package):
    if package == "isoflop":
      raise metadata.PackageNotFoundError(package)
    return installed(package)

  monkeypatch.setattr(metadata, "version", version)
  workdir, source = tmp_path / "run", f"--config.data.source=text:{corpus}"
  argv = (f"--config={presets.__file__}:{name}", f"--workdir={workdir}", source, *SHORT)
  code, out, err = isoflop("train", *argv)
  assert code == 0, err
  assert "nats per token" in out
  run = json.loads((workdir / "run.json").read_text())
  assert (run["status"], run["objective"]) == ("done", "span")
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert run["versions"]["isoflop"] == project["version"]


def test_a_stopped_run_ends_with_a_line_and_its_own_code(isoflop, corpus, tmp_path, monkeypatch):
  monkeypatch.setattr(process.StopSignal, "__call__", lambda self: True)
  monkeypatch.setattr(process.StopSignal, "install", lambda self: self)
  source = f"--config.data.source=text:{corpus}"
  code, _, err = isoflop("train", f"--workdir={tmp_path / 'run'}", source, *SHORT)
  assert code == 130
  assert err.endswith("everything is saved, the same command continues\n")
  assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_a_plan_expands_its_users_home(monkeypatch, tmp_path, isoflop):
  seen = []
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setattr(design, "plan_table", lambda config, workdir, *_: seen.append(workdir))
  assert isoflop("plan", "--workdir=~/x")[0] == 0
  assert seen == [tmp_path / "x"]


def test_plan_trains_nothing(isoflop, cache, corpus, tmp_path):
  code, out, err = isoflop(
    "plan",
    f"--config.data.source=text:{corpus}",
    "--config.sweep.budgets=(1e11,2e11)",
    "--config.sweep.seed_budgets=(1e11,)",
    "--config.data.max_epochs=1000",
    "--config.optim.warmup_tokens=0",
    "--device=h100",
    "--mfu=0.3",
    f"--workdir={tmp_path}",
  )
  assert code == 0, err
  assert "petaflop/s-days" in out
  assert re.search(r"about \d+ s \[\d+ s, [\d:]+ \w+\] with 1 worker\(s\) on h100 at 30%", out)
  assert out.count("heldout_") == 3
  assert not list(tmp_path.iterdir())


def test_fit_of_anyones_runs(isoflop, tmp_path):
  """A CSV with other column names, of a known law without noise."""
  lines = ["params,data,final"]
  for n in (1e6, 3e6, 1e7, 3e7):
    for d in (1e8, 4e8, 1.6e9):
      lines.append(f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28!r}")
  (tmp_path / "runs.csv").write_text("\n".join(lines))
  code, _, err = isoflop(
    "fit",
    f"--runs={tmp_path / 'runs.csv'}",
    "--columns=N=params,D=data,loss=final",
    f"--workdir={tmp_path / 'fit'}",
  )
  assert code == 0, err
  params = json.loads((tmp_path / "fit" / "fit.json").read_text())["params"]
  expected = {"E": 1.7, "A": 400, "B": 410, "alpha": 0.34, "beta": 0.28}
  assert params == pytest.approx(expected, rel=1e-5)


def test_a_run_that_failed_before_it_began_is_listed(tmp_path, isoflop):
  (tmp_path / "a").mkdir()
  record = {"config": {}, "status": "failed", "error": "its worker died"}
  (tmp_path / "a" / "run.json").write_text(json.dumps(record))
  code, out, err = isoflop("runs", f"--workdir={tmp_path}")
  assert code == 0, err
  assert out.splitlines()[1].split(maxsplit=1) == ["a", "failed: its worker died"]


def test_what_an_error_says_is_shown_and_not_obeyed(tmp_path, isoflop):
  """By the terminal, or as markup."""
  folder = tmp_path / "a"
  folder.mkdir()
  error = "[/nope] [bold]x \x1b[2J\x1b]0;title\x07 \x9b31m\u202e\nnext line"
  (folder / "run.json").write_text(json.dumps({"status": "failed", "error": error}))
  code, out, _ = isoflop("runs", f"--workdir={tmp_path}")
  assert code == 0
  assert r"[/nope] [bold]x \x1b[2J\x1b]0;title\x07 \x9b31m\u202e\nnext line" in out
  assert all(line.isprintable() for line in out.splitlines())
  stream = io.StringIO()
  progress.Display("a", stream).ended("a", error, None)
  assert r"[/nope] [bold]x \x1b[2J" in stream.getvalue()
  assert stream.getvalue().count("\n") == 1
