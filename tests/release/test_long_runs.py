"""More cases of what CI tests with a few, and runs that are longer than it has time for."""

import subprocess
import time

import pytest
import test_adaptive
import test_bootstrap
import test_distributed
import test_floors
import test_memory
import test_precision
import test_sharding
from test_distributed import one, uninterrupted  # noqa: F401 -- fixtures
from test_pack import packed_sweep, records

MORE = (
  "encoder strategy=zero2 width=192 depth=6 heads=6 batch_size=64 V=1000 remat=dots",
  "encoder strategy=zero3 width=256 depth=5 heads=8 batch_size=64 V=2000 mlp=gelu",
  "encoder strategy=ddp batch_size=256 remat=full norm_position=post positions=learned",
  "decoder strategy=ddp width=192 depth=6 heads=6 kv_heads=2 batch_size=64 seq_len=256 V=600",
  "decoder strategy=zero1 width=384 heads=6 batch_size=32 V=5000 remat=dots",
  "decoder strategy=zero2 width=256 depth=6 heads=8 batch_size=128 V=4000 microbatches=2",
  "decoder strategy=zero3 width=256 depth=6 batch_size=64 V=8000 remat=dots mlp=gelu_exact",
  "decoder strategy=hybrid shard_factor=4 depth=6 heads=2 batch_size=128 seq_len=64",
  "decoder strategy=ddp width=512 batch_size=8 remat=full",
  "decoder strategy=zero3 width=256 depth=2 batch_size=64 V=8000 logits_at_once=500000",
  "decoder strategy=zero2 depth=2 batch_size=128 V=8000 microbatches=2 logits_at_once=500000",
  "encoder_decoder strategy=zero1 depth=5 batch_size=128 remat=dots",
  "encoder_decoder strategy=hybrid shard_factor=4 width=256 batch_size=64 remat=full mlp=relu",
)


@pytest.mark.parametrize("case", MORE)
def test_the_compiled_step_holds_what_was_predicted(case):
  test_memory.check(8, [case])


@pytest.mark.parametrize(
  ("objective", "symbols", "fields"),
  [
    ("clm", 256, {"width": 256, "depth": 1, "seq_len": 32, "lr": 3e-3, "tokens": 8_000_000}),
    (
      "mlm",
      32,
      {"width": 128, "depth": 2, "seq_len": 32, "mlm_rate": 0.3, "positions": "relative"}
      | {"lr": 3e-3, "tokens": 8_000_000},
    ),
    ("span", 64, {**test_floors.SPANS, "width": 96, "depth": 1, "batch_size": 128, "lr": 4e-3}),
  ],
)
def test_trains_to_the_floor_of_a_longer_chain(cache, objective, symbols, fields):
  shape = {"head_width": 16, "mlp_ratio": 2.0, "markov_tokens": 8_000_000, "tokens": 12_000_000}
  test_floors.judge(test_floors.make(objective, symbols, **shape | fields))


@pytest.mark.parametrize("family", ["encoder", "encoder_decoder"])
def test_every_strategy_trains_as_one_device_does(family):
  alone = test_sharding.trained(1, family, {"one": "strategy=zero3"})["one"]
  test_sharding.train_as(alone, test_sharding.trained(8, family, test_sharding.CASES))


@pytest.mark.parametrize(
  ("scatter", "most"),  # heavy tails may err to the wide
  [
    (test_bootstrap.normal(0.002), 0.95),
    (test_bootstrap.smaller_runs_noisier, 0.95),
    (test_bootstrap.heavy_tails, 0.98),
  ],
  ids=["0.2%", "smaller runs noisier", "heavy tails"],
)
def test_90_percent_intervals_cover_in_85_to_95_percent_of_200_sweeps(scatter, most):
  test_bootstrap.check_coverage(scatter, most)


@pytest.mark.parametrize(("objective", "family"), [("mlm", "encoder"), ("span", "encoder_decoder")])
def test_the_loss_moves_by_less_than_a_seed_moves_it(tiny, tmp_path, objective, family):
  test_precision.check_loss(tiny, tmp_path, objective, family)


def test_an_adaptive_sweep_that_is_killed_ends_with_the_same_table(cache, corpus, tmp_path):
  test_adaptive.sweep_adaptively(corpus, tmp_path, ("whole", "killed"))


def test_four_processes_train_the_same_losses(one, corpus, tmp_path):  # noqa: F811
  test_distributed.train_the_same_losses(one, corpus, tmp_path, 4, 1, "ddp")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_peer_is_given_up_in_half_a_minute(uninterrupted, tmp_path, victim):  # noqa: F811
  test_distributed.kill_one_and_go_on(*uninterrupted, tmp_path, victim, lives_on=30)


def test_a_packed_sweep_that_is_killed_has_the_bits_of_one_that_is_not(corpus, tmp_path):
  """Where a run of a pack is done and others are not; what is done is not trained again."""

  def command(folder):  # a cooldown takes less than the third of a second between saves there
    return [*packed_sweep(corpus, folder), "--config.train.checkpoint_every_seconds=0.02"]

  whole = subprocess.run(command(tmp_path / "whole"), capture_output=True, text=True, timeout=900)
  assert whole.returncode in (0, 2), whole.stderr  # so few runs of so few tokens tell hardly a law
  process = subprocess.Popen(command(tmp_path / "killed"), stderr=subprocess.DEVNULL)
  running: list[int] = []
  while process.poll() is None:  # one worker: what is running is of the pack of what is done
    running = [
      run["pack"] for n, run in records(tmp_path / "killed", ("running",)).items() if "fit" in n
    ]
    if running and any("fit" in name for name in records(tmp_path / "killed")):
      break
    time.sleep(0.002)
  assert process.poll() is None
  process.kill()
  process.wait()
  assert max(running) > 1
  kept = records(tmp_path / "killed")
  done = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").glob("*/*/run.json")
          if p.parent.name in kept}  # fmt: skip
  again = subprocess.run(command(tmp_path / "killed"), capture_output=True, text=True, timeout=900)
  assert again.returncode == whole.returncode, again.stderr
  free = {"seconds", "times", "first_step", "digests", "hash"}
  a, b = records(tmp_path / "whole"), records(tmp_path / "killed")
  assert a.keys() == b.keys()
  assert any(b[name]["first_step"] > a[name]["first_step"] for name in a)  # one was resumed
  for name, run in a.items():
    assert {k: v for k, v in run.items() if k not in free} == {
      k: v for k, v in b[name].items() if k not in free
    }, name
  for path in (tmp_path / "whole").rglob("metrics.jsonl"):
    other = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
    assert other.read_text() == path.read_text()
  assert all(path.stat().st_mtime_ns == at for path, at in done.items())
  for name in ("fit.json", *["prediction.json", "verification.json"] * (whole.returncode == 0)):
    assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
