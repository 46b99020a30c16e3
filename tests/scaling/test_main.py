"""The command line: help, the config, one-line errors, and exit codes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import presets
from configs.sweeps import h200
from scaling import main
from scaling.bench import steps
from scaling.launch import child
from train.system import files

PRESETS, H200 = Path(presets.__file__), Path(h200.__file__)


@pytest.mark.smoke
def test_alone_and_help_explain(isoflop):
  for argv in ((), ("--help",), ("help",)):
    code, out, _ = isoflop(*argv)
    assert code == 0
    assert all(f"isoflop {verb}" in out for verb in main.COMMANDS)
  for verb in main.COMMANDS:
    code, out, _ = isoflop(verb, "--help")
    assert code == 0
    assert any(flag in out for flag in ("--workdir", "--checkpoint", "--output"))


@pytest.mark.smoke
def test_help_and_a_wrong_flag_import_no_jax():
  code = """
import sys
from scaling import main
assert main.main(["sample", "--help"]) == 0
assert main.main(["train", "--config.model.sizee=3"]) == 2
sys.exit("jax" in sys.modules or "numpy" in sys.modules)
"""
  subprocess.run(
    [sys.executable, "-c", code], env=child.environment(), capture_output=True, check=True
  )


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
    (("sweep", "--config.sweep.arms.a.optim.lrr=1", "--workdir=x"), "did you mean lr?"),
    (("sweep", "--config.sweep.arms.a=clm", "--workdir=x"), "sweep.arms.a='clm': must be fields"),
    (("sweep", "--config.sweep.arms.a.optim.lr=x", "--workdir=x"), "arms.a.optim.lr=x"),
    (("sweep", "--config.sweep.arms.a-b.seed=1", "--workdir=x"), "'a-b' must consist of letters"),
    (("train", "--config.data.evaluate.a.b=markov", "--workdir=x"), "'a.b' must consist"),
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
    (("train", "--workdir=x", "--config.data.tokenizer=file:/nowhere"), "file:/nowhere': no such"),
    (("sweep", "--workdir=x", "--config.train.warm_start=runs/a"), "one parent has one size"),
    (("train", "--workdir=x", "--config.objective=clmm"), "objective='clmm'"),
    (("train", "--workdir=x", "--config.model.norm=batch"), "model.norm='batch'"),
  ],
)
def test_bad_usage_is_one_line_and_exit_code_2(isoflop, tmp_path, monkeypatch, cache, argv, likely):
  monkeypatch.chdir(tmp_path)
  code, out, err = isoflop(*argv)
  assert code == 2
  assert out == ""
  assert likely in err.splitlines()[-1]
  assert len([line for line in err.splitlines() if line.startswith("isoflop:")]) == 1
  assert not (tmp_path / "x").exists()


@pytest.mark.smoke
def test_print_config_shows_the_difference(isoflop):
  code, out, _ = isoflop("train", "--config.model.size=10", "--print_config")
  assert code == 0
  changed = out.partition("# differs from the defaults in:")[2]
  assert "model.size = 10" in changed
  assert "model.width = 64" in changed
  assert "optim" not in changed


@pytest.mark.smoke
def test_a_flag_adds_a_name_to_a_mapping(isoflop, tmp_path):
  path = tmp_path / "arms.py"
  path.write_text(
    "from configs import base\n\ndef get_config():\n  c = base.get_config()\n"
    '  c.sweep.arms = {"wide": {"model": {"width": 64}}}\n  return c.lock()\n'
  )
  code, out, _ = isoflop(
    "sweep",
    f"--config={path}",
    "--config.data.evaluate.books=text:a.b/c.txt",
    "--config.sweep.arms.long.sweep.sizes=(1,2)",
    "--config.sweep.arms.wide.optim.lr=1",
    "--print_config",
  )
  assert code == 0
  changed = out.partition("defaults in:\n")[2].splitlines()
  assert [line for line in changed if ".arms." in line or ".evaluate." in line] == [
    '#   data.evaluate.books = "text:a.b/c.txt"',
    "#   sweep.arms.long.sweep.sizes = [1, 2]",
    "#   sweep.arms.wide.model.width = 64",
    "#   sweep.arms.wide.optim.lr = 1.0",
  ]


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
  workdir, monkeypatch, isoflop, flags
):
  monkeypatch.setenv("HOME", str(workdir.parent))
  head = json.loads((workdir / "sweep.json").read_text())
  head["config"] = {"fit": {"delta": 0.125}}
  (workdir / "sweep.json").write_text(json.dumps(head))
  argv = [flag.format(workdir) for flag in flags]
  code, out, err = isoflop("fit", *argv, "--print_config")
  assert code == 0, err
  assert "fit.delta = 0.125" in out


@pytest.mark.parametrize(
  ("verb", "stored", "message"),
  [
    ("verify", {"model": {"gone": 3}}, 'Key "gone" does not exist'),
    ("plan --next", {"gone": 3}, 'Key "gone" does not exist'),
    ("fit", {"fit": {"gone": 3}}, 'Key "gone" does not exist'),
    ("verify", {"model": 3}, "'int' object"),
    ("verify", {"model": {"size": "x"}}, "Could not override field 'size'"),
  ],
)
def test_a_config_of_another_version_is_one_line(workdir, isoflop, verb, stored, message):
  head = json.loads((workdir / "sweep.json").read_text())
  (workdir / "sweep.json").write_text(json.dumps(head | {"config": stored, "cells": []}))
  code, _, err = isoflop(*verb.split(), f"--workdir={workdir}")
  assert code == 2
  assert len(err.splitlines()) == 1
  file = workdir / "sweep.json"
  assert f"{file}: is of another version of isoflop ({message}" in err


def test_a_stopped_bench_does_not_say_that_it_continues(monkeypatch, tmp_path, isoflop):
  def stopped(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(steps, "cases", stopped)
  code, _, err = isoflop("bench", f"--workdir={tmp_path}")
  assert (code, err) == (130, "isoflop: stopped\n")


def test_a_config_file_takes_an_argument(isoflop):
  code, out, _ = isoflop("train", f"--config={PRESETS}:gpt2", "--print_config")
  assert code == 0
  assert 'model.positions = "learned"' in out.partition("# differs")[2]


def test_a_config_file_is_code_whose_bug_is_raised(isoflop, tmp_path):
  path = tmp_path / "broken.py"
  path.write_text("def get_config():\n  return [1][1]\n")
  with pytest.raises(IndexError):
    isoflop("train", f"--config={path}", f"--workdir={tmp_path / 'run'}")


def test_a_field_that_a_config_file_misspells_is_one_line(isoflop, tmp_path):
  path = tmp_path / "misspelt.py"
  path.write_text(
    "from configs import base\n\ndef get_config():\n  c = base.get_config()\n  c.model.sizee = 3\n"
  )
  code, _, err = isoflop("train", f"--config={path}", f"--workdir={tmp_path / 'run'}")
  assert (code, err) == (2, f"isoflop: --config={path}: the config has no field 'sizee'\n")


def run_with_bug(module, function, *argv):
  """Runs a command in which a function multiplies arrays whose shapes do not fit."""
  code = f"""
import sys
import numpy as np
import {module}
from scaling import main

def planted(*_, **__):
  return np.ones(2) @ np.ones(3)

{module}.{function} = planted
sys.exit(main.main(sys.argv[1:]))
"""
  command = [sys.executable, "-c", code, *argv]
  return subprocess.run(command, env=child.environment(), capture_output=True, text=True)


def test_a_bug_prints_its_traceback_and_exits_with_1(workdir, corpus, tmp_path):
  """A ValueError of numpy is no UserError."""
  short = ("--config.train.tokens=4096", "--config.model.size=0", "--config.optim.warmup_tokens=0")
  train = ("train", f"--workdir={tmp_path / 'run'}", f"--config.data.source=text:{corpus}", *short)
  for ended in (
    run_with_bug("train.loop", "evaluate", *train),
    run_with_bug("scaling.report.document", "write", "report", f"--workdir={workdir}"),
  ):
    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in ended.stderr
    assert "in planted" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("ValueError: matmul")


@pytest.mark.smoke
@pytest.mark.parametrize(
  ("argv", "message"),
  [
    ("plan --devices=0", "--devices=0: must be at least 1"),
    ("plan --devices=-1", "--devices=-1: must be at least 1"),
    ("sample --seed=-1", "--seed=-1: must lie in [0, 2^32)"),
    ("sample --seed=12345678901234567890", "--seed=12345678901234567890: must lie in [0, 2^32)"),
    ("sample --top_p=nan", "top_p=nan: a probability above 0 and up to 1"),
    ("bench --rounds=0", "--rounds=0: must be at least 1"),
    ("fit --max_tokens=-5", "--max_tokens=-5.0: must not be negative"),
    (
      "fit --config.fit.target_tokens_per_param=-3",
      "fit.target_tokens_per_param=-3.0: must be positive",
    ),
    (
      "sweep --config.fit.target_tokens_per_param=nan",
      "fit.target_tokens_per_param=nan: must be positive",
    ),
    (
      "train --steps=5",
      "unknown flag --steps; `isoflop train --help` lists them, and --print_conf",
    ),
  ],
)
def test_a_flag_out_of_its_bounds_is_refused(isoflop, tmp_path, argv, message):
  verb, flag = argv.split()
  code, _, err = isoflop(verb, flag, f"--workdir={tmp_path}" if verb != "sample" else "--prompt=a")
  assert code == 2
  assert message in err
  assert len(err.splitlines()) == 1


def test_that_a_folder_is_in_use_is_said_before_jax_is_imported(tmp_path):
  command = [sys.executable, "-X", "importtime", "-m", "scaling.main"]
  with files.owned(tmp_path):
    ended = subprocess.run(
      [*command, "train", f"--workdir={tmp_path}"], capture_output=True, text=True, check=False
    )
  assert ended.returncode == 2
  assert "in use by process" in ended.stderr.splitlines()[-1]
  assert not re.search(r"\| +jax$", ended.stderr, re.MULTILINE)


@pytest.mark.slow
def test_train_keeps_what_it_compiles_for_the_next_start(corpus, tmp_path):
  short = ("--config.train.tokens=4096", "--config.model.size=0", "--config.optim.warmup_tokens=0")
  train = ("train", f"--workdir={tmp_path / 'run'}", f"--config.data.source=text:{corpus}", *short)
  environment = child.environment(ISOFLOP_CACHE=str(tmp_path / "cache"))
  subprocess.run(child.command("scaling.main", *train), env=environment, check=True)
  assert list(tmp_path.glob("cache/xla/jit_train_step-*-cache"))


@pytest.mark.smoke
def test_a_config_may_be_named_behind_a_space(isoflop):
  code, out, _ = isoflop("train", "--config", "configs/mlm.py", "--print_config")
  assert code == 0
  assert 'objective = "mlm"' in out
