"""The command line: help, one-line errors with exit code 2, and the resolved config."""

import json
from pathlib import Path

import pytest

from configs import presets
from configs.sweeps import h200
from scaling import main
from scaling.bench import steps
from scaling.sweep import design
from train.system import process

PRESETS, H200 = Path(presets.__file__), Path(h200.__file__)


def run(capsys, *argv):
  code = main.main(list(argv))
  output = capsys.readouterr()
  return code, output.out, output.err


def test_alone_and_help_explain(capsys):
  for argv in ((), ("--help",), ("help",)):
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert all(f"isoflop {verb}" in out for verb in main.COMMANDS)
  for verb in main.COMMANDS:
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert "--workdir" in out or "--checkpoint" in out


@pytest.mark.parametrize(
  ("argv", "likely"),
  [
    (("trian",), "did you mean train?"),
    (("zzz",), "choose one of train, plan, sweep"),
    (("train", "--workdirr=x"), "workdir"),
    (("train", "--config.model.sizee=3", "--workdir=x"), "did you mean size?"),
    (("train", "--config.modle.size=3", "--workdir=x"), "did you mean model?"),
    (("train", "--config.zzz=3", "--workdir=x"), "--print_config"),
    (("train", "--config.model.size=big", "--workdir=x"), "--config.model.size=big"),
    (("train", "--config=nowhere.py", "--workdir=x"), "no such file"),
    (("train", "runs/x"), "flags look like --workdir=DIR"),
    (("train",), "--workdir is missing"),
    (("report", "--workdir=does/not/exist"), "no such folder"),
    (("train", "--workdir=/proc/x"), "name a folder that you own"),
    (("train", f"--config={PRESETS}:gpt3", "--workdir=x"), "preset 'gpt3': unknown"),
    (
      ("plan", f"--config={H200}:nonsense"),
      "isoflop: h200.py:nonsense: write SCALE or SCALE,OBJECTIVE",
    ),
    (("sample", "--checkpoint=x"), "--prompt is missing"),
    (("sample", "--prompt=a"), "--checkpoint is missing"),
    (("sample", "--prompt=a", "--checkpoint=nowhere"), "checkpoint=nowhere: no run.json"),
    (("sample", "--prompt=a", "--checkpoint=x", "--temperature=-1"), "temperature=-1.0: use 0"),
    (("sample", "--prompt=a", "--checkpoint=x", "--top_p=0"), "top_p=0.0: a probability"),
    (("sample", "--prompt=a", "--checkpoint=x", "--top_p=high"), "top_p"),
    (("sample", "--prompt=a", "--checkpoint=x", "--top_k=-2"), "top_k=-2: use 0"),
    (("sample", "--prompt=a", "--checkpoint=x", "--max_new_tokens=-1"), "max_new_tokens=-1"),
    (("sample", "--prompt=a", "--checkpoint=x", "--num_samples=0"), "num_samples=0"),
    (("sample", "--prompt=a", "--workdir=x"), "workdir"),
    (("export", "--checkpoint=x"), "--architecture or --output is missing"),
    (("import", "--workdir=x"), "--input is missing"),
    (("import", "--workdir=x", "--input=nowhere"), "nowhere: no such folder"),
    (("train", "--workdir=x", "--config.data.source=text:/nowhere"), "/nowhere"),
    (("train", "--workdir=x", "--config.data.source=wikipedia"), "wikipedia"),
    (("train", "--workdir=x", "--config.objective=clmm"), "objective='clmm'"),
    (("train", "--workdir=x", "--config.model.norm=batch"), "model.norm='batch'"),
  ],
)
def test_bad_usage_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, cache, argv, likely):
  monkeypatch.chdir(tmp_path)
  code, out, err = run(capsys, *argv)
  assert code == 2
  assert out == ""
  assert likely in err.splitlines()[-1]
  assert len([line for line in err.splitlines() if line.startswith("isoflop:")]) == 1
  assert not (tmp_path / "x").exists()


@pytest.mark.smoke
def test_print_config_shows_the_difference(capsys):
  code, out, _ = run(capsys, "train", "--config.model.size=10", "--print_config")
  assert code == 0
  changed = out.partition("# differs from the defaults in:")[2]
  assert "model.size = 10" in changed
  assert "model.width = 64" in changed
  assert "optim" not in changed


@pytest.mark.parametrize(
  "flags",
  [
    ("--workdir={}",),
    ("--workdir", "{}"),
    ("-workdir={}",),
    ("-workdir", "{}"),
    ("--workdir=elsewhere", "--where", "D/N > 1", "--config.fit.seed", "3", "--workdir", "{}"),
    ("--workdir=~/sweep",),
  ],
)
def test_a_fit_knows_its_sweeps_config_however_the_folder_is_named(
  workdir, monkeypatch, capsys, flags
):
  monkeypatch.setenv("HOME", str(workdir.parent))
  head = json.loads((workdir / "sweep.json").read_text())
  head["config"] = {"fit": {"delta": 0.125}}
  (workdir / "sweep.json").write_text(json.dumps(head))
  argv = [flag.format(workdir) for flag in flags]
  code, out, err = run(capsys, "fit", *argv, "--print_config")
  assert code == 0, err
  assert "fit.delta = 0.125" in out


def test_a_plan_finds_its_folder_at_home(monkeypatch, tmp_path, capsys):
  seen = []
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setattr(design, "plan_table", lambda config, workdir: seen.append(workdir))
  assert run(capsys, "plan", "--workdir=~/x")[0] == 0
  assert seen == [tmp_path / "x"]


@pytest.mark.parametrize(
  ("verb", "stored", "said"),
  [
    ("verify", {"model": {"gone": 3}}, 'Key "gone" does not exist'),
    ("plan --next", {"gone": 3}, 'Key "gone" does not exist'),
    ("fit", {"fit": {"gone": 3}}, 'Key "gone" does not exist'),
    ("verify", {"model": 3}, "'int' object"),
    ("verify", {"model": {"size": "x"}}, "Could not override field 'size'"),
  ],
)
def test_a_config_of_another_version_is_one_line(workdir, capsys, verb, stored, said):
  head = json.loads((workdir / "sweep.json").read_text())
  (workdir / "sweep.json").write_text(json.dumps(head | {"config": stored, "cells": []}))
  code, _, err = run(capsys, *verb.split(), f"--workdir={workdir}")
  assert code == 2
  assert len(err.splitlines()) == 1
  assert f"the stored config is of another version of isoflop ({said}" in err


def test_a_run_that_failed_before_it_began_is_listed(tmp_path, capsys):
  (tmp_path / "a").mkdir()
  record = {"config": {}, "status": "failed", "error": "its worker died"}
  (tmp_path / "a" / "run.json").write_text(json.dumps(record))
  code, out, err = run(capsys, "runs", f"--workdir={tmp_path}")
  assert code == 0, err
  assert out.splitlines()[1].split(maxsplit=1) == ["a", "failed: its worker died"]


def test_a_stopped_bench_does_not_say_that_it_continues(monkeypatch, tmp_path, capsys):
  def stopped(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(steps, "cases", stopped)
  code, _, err = run(capsys, "bench", f"--workdir={tmp_path}")
  assert (code, err) == (130, "isoflop: stopped\n")


def test_plan_trains_nothing(capsys, cache, corpus, tmp_path):
  code, out, _ = run(
    capsys,
    "plan",
    f"--config.data.source=text:{corpus}",
    "--config.sweep.budgets=(1e10,2e10)",
    "--config.sweep.seed_budgets=(1e10,)",
    "--config.data.max_epochs=1000",
    "--config.optim.warmup_tokens=0",
    f"--workdir={tmp_path}",
  )
  assert code == 0
  assert "petaflop/s-days" in out
  assert out.count("heldout_") == 3
  assert not list(tmp_path.iterdir())


def test_fit_of_anyones_runs(capsys, tmp_path):
  """A CSV with other column names, of a known law without noise."""
  lines = ["params,data,final"]
  for n in (1e6, 3e6, 1e7, 3e7):
    for d in (1e8, 4e8, 1.6e9):
      lines.append(f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28!r}")
  (tmp_path / "runs.csv").write_text("\n".join(lines))
  code, out, err = run(
    capsys,
    "fit",
    f"--runs={tmp_path / 'runs.csv'}",
    "--columns=N=params,D=data,loss=final",
    f"--workdir={tmp_path / 'fit'}",
  )
  assert code == 0, err
  params = json.loads((tmp_path / "fit" / "fit.json").read_text())["params"]
  expected = {"E": 1.7, "A": 400, "B": 410, "alpha": 0.34, "beta": 0.28}
  assert params == pytest.approx(expected, rel=1e-5)


def test_a_config_file_takes_an_argument(capsys):
  code, out, _ = run(capsys, "train", f"--config={PRESETS}:gpt2", "--print_config")
  assert code == 0
  assert 'model.positions = "learned"' in out.partition("# differs")[2]


def test_a_stopped_run_ends_with_a_line_and_its_own_code(tiny, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(process.StopSignal, "__call__", lambda self: True)
  monkeypatch.setattr(process.StopSignal, "install", lambda self: self)
  fields = ("model.size", "data.source", "data.seq_len", "data.batch_size", "train.tokens",
            "optim.warmup_tokens", "train.eval_tokens")  # fmt: skip
  flags = [f"--config.{name}={tiny[name.split('.')[0]][name.split('.')[1]]}" for name in fields]
  arguments = ["train", "--config=configs/base.py", f"--workdir={tmp_path / 'run'}", *flags]
  assert main.main(arguments) == 130
  assert capsys.readouterr().err.endswith("everything is saved, the same command continues\n")
  assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
