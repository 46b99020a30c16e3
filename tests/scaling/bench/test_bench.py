"""`isoflop bench`: its arithmetic, its order, its record, and what it refuses."""

import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from scaling import progress
from scaling.bench import steps, timing
from scaling.bench.timing import Turn
from train import record
from train.data import dataset


@pytest.fixture(scope="module")
def config(make_tiny):
  c = make_tiny()
  c.data.batch_size = 8
  return c


@pytest.fixture(scope="module")
def measured(config, tmp_path_factory):
  """What a small grid gives, and the folder it is in."""
  folder = tmp_path_factory.mktemp("bench") / "new"
  grid = steps.cases(config, "16/1,32/1/2", "decoder", "float32,bfloat16", 300)
  return steps.bench(grid[:3], folder, rounds=3), folder


def test_a_grid_is_every_combination_and_changes_no_more(config):
  cases = steps.cases(config, "16/2,64/3/4", "decoder,encoder,encoder_decoder", "", 300)
  assert [case.name for case in cases] == [
    f"{family} {size} float32"
    for size in ("16/2", "64/3/4")
    for family in ("decoder", "encoder", "encoder_decoder")
  ]
  shapes = [(c.model.heads, c.model.head_width, c.objective) for _, c in cases]
  assert shapes[:3] == [(1, 16, "clm"), (1, 16, "mlm"), (1, 16, "span")]
  assert {shape[:2] for shape in shapes[3:]} == {(4, 16)}
  assert [c.data.batch_size for _, c in cases[:3]] == [300 // 32, 300 // 32, 300 // 34]
  (case,) = steps.cases(config)
  assert case.config.data.batch_size == config.data.batch_size
  prefix = config.copy_and_resolve_references()
  prefix.objective = "prefix"
  assert steps.cases(prefix, families="decoder")[0].config.objective == "prefix"


def test_models_that_differ_in_heads_alone_are_two(config):
  cases = steps.cases(config, "64/2,64/2/4")
  assert [case.name for case in cases] == ["decoder 64/2 float32", "decoder 64/2/4 float32"]
  assert [case.config.model.heads for case in cases] == [2, 4]


@pytest.mark.parametrize(
  ("grid", "message"),
  [
    ({"sizes": "64/2,64/2/2"}, "^sizes=64/2,64/2/2: 'decoder 64/2/2 float32' is 'decoder 64/2 flo"),
    ({"vary": ["model.flash=False"] * 2}, "^vary=model.flash=False: .* again; leave one of them"),
    ({"vary": ["data.batch_size=64"], "tokens": 2048}, "^vary=data.batch_size=64: .*--tokens sets"),
  ],
)
def test_nothing_is_measured_twice(config, grid, message):
  with pytest.raises(ValueError, match=message):
    steps.cases(config, **grid)


def test_every_combination_is_measured_with_and_without_what_varies(config):
  cases = steps.cases(config, "16/2,64/3", vary=["model.logits_at_once=0", "model.flash=False"])
  assert [case.name.partition("float32")[2] for case in cases] == [
    *("", " model.logits_at_once=0", " model.flash=False") * 2
  ]
  assert [c.model.logits_at_once > 0 for _, c in cases] == [True, False, True] * 2
  assert [c.model.flash for _, c in cases] == [True, True, False] * 2


def test_what_varies_may_be_a_bare_word(config):
  (_, plain), (_, varied) = steps.cases(config, "16/2", vary=["model.remat=dots"])
  assert (plain.model.remat, varied.model.remat) == ("none", "dots")


def test_the_makers_figure_is_for_dense_bfloat16_and_all_devices():
  assert steps.nominal_peak("NVIDIA H200", "bfloat16", 8) == 8 * 989e12
  assert steps.nominal_peak("NVIDIA H200", "float32", 1) == 0
  assert steps.nominal_peak("cpu", "bfloat16", 1) == 0


@pytest.mark.slow
def test_rates_are_flops_over_time_and_shares_of_the_peak(measured, config):
  result, _ = measured
  peaks = result["peak_flops_per_second"]
  assert set(peaks) == {"float32", "bfloat16"}
  for row in result["cases"]:
    seconds = [turn["step"] for turn in row["turns"]]
    assert row["step_seconds"] == statistics.median(seconds)
    assert [row["step_seconds_min"], row["step_seconds_max"]] == [min(seconds), max(seconds)]
    assert row["flops_per_second"] * row["step_seconds"] == pytest.approx(row["flops_per_step"])
    assert row["tokens_per_second"] * row["step_seconds"] == pytest.approx(9 * 32)
    rate = row["flops_per_second"] / peaks[row["dtype"]]
    assert row["peak_fraction"] == pytest.approx(rate)
    assert rate > 0
    products = [r["turns"] for r in result["products"] if r["dtype"] == row["dtype"]]
    best = [max(taken) for taken in zip(*products, strict=True)]
    paired = [row["flops_per_step"] / t / b for t, b in zip(seconds, best, strict=True)]
    assert row["paired_fraction"] == statistics.median(paired)
    assert row["input_share"] == row["input_seconds"] / row["step_seconds"]
    assert row["dispatch_seconds"] > 0
    assert row["compile_seconds"] > 0
    assert row["compiled_bytes"] > 12 * row["params"]  # the weights and Adam's moments
  for dtype, peak in peaks.items():
    rates = [r["flops_per_second"] for r in result["products"] if r["dtype"] == dtype]
    assert peak == max(rates)
    assert rates == [max(r["turns"]) for r in result["products"] if r["dtype"] == dtype]
  case = steps.cases(config, "16/1", tokens=300)[0].config
  size = record.size_of(case, dataset.prepare(case).vocab_size)
  assert result["cases"][0]["flops_per_step"] == size.flops_per_token * 9 * 32
  assert result["cases"][0]["N"] == size.n_params


@pytest.mark.slow
def test_the_record_is_whole_and_says_where_it_was_made(measured):
  result, folder = measured
  assert json.loads((folder / "bench.json").read_text()) == result
  assert os.listdir(folder) == ["bench.json"]
  assert (result["format"], result["rounds"]) == (steps.FORMAT, 3)
  assert result["machine"]["devices"] >= 1
  assert {"isoflop", "jax", "jaxlib", "flax"} <= set(result["machine"]["versions"])
  assert all(len(row["turns"]) == 3 for row in result["cases"])
  shown = steps.table(result).splitlines()
  assert [line.split()[1] for line in shown[1:4]] == ["16/1", "16/1", "32/1/2"]


@pytest.mark.slow
def test_ratios_are_of_the_same_size_and_of_paired_turns(measured):
  rows = measured[0]["cases"]
  to = [row["ratio_to"] for row in rows]
  assert to == [rows[i]["case"] for i in (0, 0, 2)]
  assert rows[0]["ratio"] == rows[2]["ratio"] == 1
  pairs = zip(rows[1]["turns"], rows[0]["turns"], strict=True)
  assert rows[1]["ratio"] == statistics.median(a["step"] / b["step"] for a, b in pairs)
  # A machine that slows down threefold half-way moves both medians, and no ratio.
  slow = [1, 1, 1, 3, 3, 3]
  ours, others = ([Turn(x * s, 0, 0) for s in slow] for x in (2.0, 4.0))
  assert timing.ratio(ours, others) == 0.5


def test_everyone_takes_a_turn_in_every_round(monkeypatch):
  monkeypatch.setattr(progress, "PLAIN_SECONDS", -1)
  order, stream = [], io.StringIO()
  takers = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
  results = timing.round_robin(takers, 3, progress.Display("bench", stream))
  assert order == list("abcabcabc")
  assert results == {"a": [1, 4, 7], "b": [2, 5, 8], "c": [3, 6, 9]}
  lines = stream.getvalue().splitlines()
  assert "bench: 1/9, a; " in lines[0]
  assert lines[-1].endswith("bench: 9/9, c; 0 s left")


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--sizes=64x2", "sizes='64x2': write width/layers"),
    ("--sizes=64/0", "sizes='64/0': write width/layers"),
    ("--sizes=64/2/3", "model.heads=3: does not divide the width 64"),
    (
      "--sizes=64/2,64/2",
      "sizes=64/2,64/2: 'decoder 64/2 float32' is 'decoder 64/2 float32' again",
    ),
    ("--families=decoder,rnn", "families='rnn': unknown; choose from decoder, encoder"),
    ("--dtypes=float16", "dtypes='float16': unknown; choose from float32, bfloat16"),
    ("--tokens=31", "tokens=31: a clm sequence has 32"),
    ("--tokens=-1", "tokens=-1: must not be negative"),
    ("--vary=model.flsh=False", "vary='model.flsh=False': not a FIELD=VALUE of the config"),
    ("--vary=model.flash", "vary='model.flash': not a FIELD=VALUE of the config"),
    ("--rounds=0", "rounds=0: must be at least 1"),
    ("--config.model.norm=batch", "model.norm='batch'"),
    ("--config.data.seq_len=99999999", "data.seq_len=99,999,999"),
  ],
)
def test_bad_flags_are_refused_in_a_line_before_anything_is_made(
  isoflop, cache, corpus, tmp_path, flag, message
):
  folder = tmp_path / "out"
  flags = [f"--config.data.source=text:{corpus}", "--config.data.seq_len=32", flag]
  code, out, err = isoflop("bench", f"--workdir={folder}", *flags)
  assert (code, out, len(err.splitlines())) == (2, "", 1)
  assert message in err
  assert not folder.exists()


def peers(*flags):
  command = [sys.executable, str(Path(__file__).parents[2] / "helpers" / "peers.py"), *flags]
  return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_a_peer_is_timed_beside_ours(cache, tmp_path):
  output = tmp_path / "peers.json"
  flags = ("--sizes=16/1", "--seq_len=32", "--tokens=64", "--rounds=3", f"--output={output}")
  done = peers("--peer=flax", *flags)
  assert done.returncode == 0, done.stderr
  (row,) = json.loads(output.read_text())["rows"]
  pairs = zip(row["turns"]["flax"], row["turns"]["ours"], strict=True)
  assert row["ratio"] == statistics.median(peer / ours for peer, ours in pairs)
  assert f"{row['ratio']:.2f} times as fast" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed here")
def test_a_peer_that_is_not_here_is_named_in_a_line(cache):
  for flags, message in (
    (("--peer=torch",), "No module named 'torch'"),
    (("--peer=nanodo", "--path=nowhere"), "--path=nowhere: no nanodo/train.py there"),
  ):
    done = peers(*flags)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert done.stdout == ""
