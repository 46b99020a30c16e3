"""A tune as its user runs it: trained, sealed, judged, resumed, and used by a sweep."""

import json
import subprocess

from scaling.launch import child
from scaling.tune.run import ALL

FLAGS = [
  "--config=configs/sweeps/smoke.py", "--config.data.markov_tokens=2000000",
  "--config.data.seq_len=8", "--config.data.batch_size=8", "--config.optim.warmup_tokens=256",
  "--config.train.eval_tokens=8192",
]  # fmt: skip
TUNE = [
  "--config.tune.sizes=(3,5)", "--config.tune.token_counts=(10000,20000)",
  "--config.tune.batch_sizes=(2,6,18)", "--config.tune.lr_factors=(0.3,0.7,1.6,3.5)",
  "--config.tune.window=0.2", "--config.tune.heldout_size=6", "--config.tune.heldout_tokens=40000",
]  # fmt: skip
SWEEP = [
  "--config.sweep.sizes=(3,4,5)", "--config.sweep.budgets=(2e9,4e9,8e9)",
  "--config.fit.bootstraps=200",
]  # fmt: skip


def isoflop(verb, workdir, *flags):
  command = [*child.command("scaling.main"), verb, f"--workdir={workdir}", *flags]
  return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_a_tune_is_trained_sealed_judged_resumed_and_used(tmp_path):
  folder = tmp_path / "tune"
  first = isoflop("tune", folder, *FLAGS, *TUNE)
  assert first.returncode == 0, first.stderr
  kept = {name: (folder / name).read_text() for name in ("tune.json", "tune_prediction.json", ALL)}
  sealed, verdict = (
    json.loads((folder / name).read_text())
    for name in ("tune_prediction.json", "tune_verification.json")
  )
  assert [claim["what"] for claim in verdict["claims"]] == ["lr", "batch", "loss_lost"]
  trained = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("cells/*/run.json")}
  assert set(sealed["claims"][0]["tested_by"]) <= set(trained)

  again = isoflop("tune", folder, *FLAGS, *TUNE)
  assert again.returncode == 0, again.stderr
  for name, text in kept.items():
    assert (folder / name).read_text() == text
  for name, written in trained.items():
    assert (folder / "cells" / name / "run.json").stat().st_mtime_ns == written

  law, of_all = (json.loads(kept[name]) for name in ("tune.json", ALL))
  assert of_all["runs"] == law["runs"] + len(sealed["claims"][0]["tested_by"])
  assert len(of_all["cells"]) == len(law["cells"]) + 1
  rule = f"--config.optim.rule={folder / ALL}"
  swept = isoflop("sweep", tmp_path / "sweep", *FLAGS, *SWEEP, rule)
  head = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
  digest = of_all["hash"][:16]
  assert head["config"]["optim"]["rule"].endswith(digest), swept.stderr
  runs = list((tmp_path / "sweep").glob("cells/fit_*/run.json"))
  assert len(runs) == 9
  for path in runs:
    assert digest in path.read_text()
