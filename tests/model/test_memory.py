"""Bytes known before anything runs: against the compiled program, the formulas, and by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import base, ladders, large
from model import accounting, memory

ROOT = Path(__file__).parents[2]

# Batch, width and vocabulary are such that states, activations and logits all weigh something. More
# cases are in tests/release.
FEW = (
  "decoder strategy=zero1 heads=8 depth=3 batch_size=64 V=2000",
  "encoder_decoder strategy=ddp depth=2 batch_size=64 remat=dots microbatches=2",
  "decoder strategy=zero1 V=8000 depth=2 batch_size=64 logits_at_once=500000",
  "encoder strategy=hybrid shard_factor=2 width=256 batch_size=128 seq_len=64 V=3000 remat=full",
  "decoder strategy=zero3 width=256 batch_size=64 remat=dots dtype=bfloat16 weights=bfloat16",
  "decoder strategy=zero2 width=512 batch_size=8 remat=full",
  "decoder strategy=ddp width=256 batch_size=8 depth=8 name=muon",
)
ZERO3 = ("encoder strategy=zero3 width=256 depth=3 batch_size=64",)
ONE = (
  "decoder batch_size=32",
  "encoder width=512 batch_size=2 remat=full V=4000",
  "decoder batch_size=32 V=8000 logits_at_once=4000000",
)


def compiled(devices, cases):
  """Returns by case what compiled_bytes.py found."""
  done = subprocess.run(
    [sys.executable, ROOT / "tests" / "helpers" / "compiled_bytes.py", str(devices), *cases],
    capture_output=True,
    text=True,
    timeout=1200,
    env={key: x for key, x in os.environ.items() if key.startswith(("JAX_", "XLA_"))}
    | {"PATH": "", "PYTHONPATH": str(ROOT)},
  )
  assert done.returncode == 0, done.stderr
  return dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(
  ("devices", "cases"),
  [
    pytest.param(8, FEW, marks=pytest.mark.slow),
    pytest.param(8, ZERO3, marks=pytest.mark.slow),
    pytest.param(1, ONE, marks=pytest.mark.slow),
  ],
  ids=["few", "zero3", "one device"],
)
def test_the_compiled_step_holds_what_was_predicted(devices, cases):
  check(devices, cases)


def check(devices, cases):
  for case, found in compiled(devices, cases).items():
    predicted = found["predicted"]
    assert predicted["total"] == pytest.approx(found["total"], rel=0.1), case
    state = predicted["weights"] + predicted["optimizer"]
    batch = 1 << 18  # tokens: at most this
    assert state * 0.99 <= found["arguments"] <= state * 1.01 + batch, case


# ---------------------------------------------------------------------------------- formulas


def large_run(name, **fields):
  c = large.get_config(name)
  for field, value in fields.items():
    section = next(part for part in (c.model, c.sharding, c.data) if field in part)
    section[field] = value
  return ladders.resolve(c)


def device_bytes(config, vocab_size, seq_len, **options):
  """Of a decoder that is trained whole, by Adam."""
  arrays = dict.fromkeys(accounting.shapes(config.model, vocab_size, seq_len), (2, 0))
  return memory.device_bytes(config, vocab_size, seq_len, 0, arrays, **options)


def held(config, devices=1, vocab_size=32_000):
  """(bytes of each device, parameters)."""
  seq_len = config.data.seq_len
  total = accounting.param_groups(config.model, vocab_size, seq_len)["total"]
  return device_bytes(config, vocab_size, seq_len, devices=devices), total


@pytest.mark.parametrize(
  ("strategy", "factor", "shares"),
  [
    ("ddp", 0, (1, 1, 1)),
    ("zero1", 0, (1, 1, 64)),
    ("zero2", 0, (1, 64, 64)),
    ("zero3", 0, (64, 64, 64)),
    ("fsdp", 0, (64, 64, 64)),
    ("hybrid", 16, (16, 16, 16)),
  ],
)
@pytest.mark.parametrize(("weights", "bytes_"), [("float32", (4, 4, 8)), ("bfloat16", (2, 2, 12))])
def test_strategies_divide_what_they_promise(strategy, factor, shares, weights, bytes_):
  """Mixed precision: 4 + 12/n bytes a parameter, 2 + 14/n, 16/n (Rajbhandari et al. 2020)."""
  config = large_run("70b", strategy=strategy, shard_factor=factor, weights=weights)
  found, n = held(config, 64)
  for part, share, each in zip(("weights", "gradients", "optimizer"), shares, bytes_, strict=True):
    assert found[part] == pytest.approx(each * n / share, rel=0.01), part


@pytest.mark.parametrize("fused", [False, True])
def test_a_block_more_keeps_its_input_its_products_and_what_flash_attention_made(fused):
  """remat=dots: float32, but for what cuDNN returns: y in bfloat16, a float32 for each query."""
  B, T, D, H, F = 8, 128, 64, 2, 192
  c = base.get_config()
  c.model.update({"width": D, "heads": H, "mlp": "swiglu", "mlp_width": F})
  c.model.update({"remat": "dots", "scan": True, "dtype": "bfloat16"})
  c.data.update({"seq_len": T, "batch_size": B})

  def activations(depth):
    c.model.depth = depth
    return device_bytes(ladders.resolve(c), 512, T, fused=fused)["activations"]

  query_key_value_out, gate_up = 4 * D, 2 * F
  attended = (2 * D + 4 * H) if fused else 0
  expected = B * T * (4 * (D + query_key_value_out + gate_up) + attended)
  assert activations(5) - activations(4) == expected


def test_gradients_of_microbatches_are_summed_in_float32():
  config = large_run("70b", strategy="ddp", microbatches=4)
  found, n = held(config)
  assert found["gradients"] == 4 * n
  assert found["passing"] >= 2 * n  # those of the microbatch at work


def test_what_does_not_divide_stays_whole():
  config = large_run("1b", strategy="zero3", batch_size=7, width=30, depth=2, heads=3, mlp_width=50)
  found, n = held(config, devices=7, vocab_size=101)  # no axis is a multiple of 7
  assert found["weights"] == 4 * n


def test_activations_by_hand():
  """One block of width 8 in full: a stream of T D numbers is kept, and the batch itself."""
  c = base.get_config()
  c.model.update({"width": 8, "depth": 5, "heads": 2, "remat": "full"})
  c.data.batch_size = 3
  config = ladders.resolve(c)
  found = device_bytes(config, 1000, 16)
  assert found["logits"] == 3 * (2 * 4 * 16 * 1000 + 3 * 4 * 16 * 8)
  assert found["activations"] == 3 * (5 * 4 * 16 * 8 + 20 * 16)  # a block's work fits in the logits


def test_remat_and_microbatches_save():
  totals = [held(large_run("1b", remat=policy))[0]["total"] for policy in ("none", "dots", "full")]
  assert totals == sorted(totals, reverse=True)
  whole = {"logits_at_once": 0}  # logits that take turns do not shrink with the microbatch
  parts = [held(large_run("1b", microbatches=m, **whole))[0]["activations"] for m in (1, 4)]
  assert parts[0] == pytest.approx(4 * parts[1], rel=1e-6)


def test_seventy_billion_parameters_cost_what_was_published():
  """1.4e12 tokens: 5.76e23 FLOPs (Hoffmann et al. 2022, table A4's Gopher budget, for Chinchilla).

  And 1,022,362 A100 hours for LLaMA 65B (Touvron et al. 2023, arXiv:2302.13971, table 15): with the
  312e12 FLOP/s of that device, our count of its shape is a plausible share of the peak.
  """
  config = large_run("70b")
  per_sequence = accounting.train_flops_per_sequence(config.model, 32_000, 2048)
  flops = per_sequence * config.train.tokens / 2048
  assert flops == pytest.approx(5.76e23, rel=0.03)
  assert flops / 86_400e15 == pytest.approx(6_811, rel=1e-3)  # petaflop/s-days
  config.model.update({"kv_heads": 64, "mlp_width": 22_016})
  groups = accounting.param_groups(config.model, 32_000, 2048)
  assert groups["total"] == 65_285_660_672
  per_sequence = accounting.train_flops_per_sequence(config.model, 32_000, 2048)
  used = per_sequence * config.train.tokens / 2048 / (1_022_362 * 3600 * 312e12)
  assert 0.4 < used < 0.6
