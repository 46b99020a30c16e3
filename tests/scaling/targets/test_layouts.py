"""`isoflop plan` on imagined devices: sizes, what fits, what would, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs import base, ladders, large
from scaling.targets import layouts, summary

ROOT = Path(__file__).parents[3]
LARGE = Path(large.__file__)
GIB = 2**30


@pytest.mark.parametrize(
  ("size", "bytes_"),
  [
    ("80GiB", 80 * 2**30),
    ("80GB", 80 * 10**9),
    ("24e9", 24 * 10**9),
    ("1.5 MiB", 3 * 2**19),
    ("512", 512),
  ],
)
def test_sizes_are_read(size, bytes_):
  assert layouts.parse_bytes(size) == bytes_


@pytest.mark.parametrize("size", ["80G", "lots", "-1", "0GiB", "80 GiB free", "1e999", "80gb"])
def test_sizes_that_are_none_are_refused(size):
  with pytest.raises(
    ValueError, match=r"^device_memory='.*': write a size as 80GiB, 80GB or 24e9$"
  ):
    layouts.parse_bytes(size)


def billion(**fields):
  c = large.get_config("1b")
  for field, value in fields.items():
    section = next(part for part in (c.model, c.sharding, c.data) if field in part)
    section[field] = value
  return ladders.resolve(c)


def limit_for(bytes_):
  """The memory of a device whose free share leaves room for just so many bytes."""
  return bytes_ / (1 - layouts.FREE) + 1


def test_what_sends_least_is_chosen_first():
  """Each strategy is the choice exactly where those before it do not fit any more."""
  config = billion(batch_size=64)
  order = ["ddp", "zero1", "zero2", "hybrid", "zero3"]
  chosen = []
  for limit in range(40 * GIB, 2 * GIB, -GIB // 4):
    choice = layouts.cheapest(config, 64, limit)
    if choice is None:
      break
    assert choice.held["total"] <= (1 - layouts.FREE) * limit
    chosen.append(choice.strategy)
  assert chosen == sorted(chosen, key=order.index)
  assert {chosen[0], chosen[-1]} == {"ddp", "zero3"}


def test_the_largest_microbatch_that_fits_is_chosen():
  config = billion()
  choice = layouts.cheapest(config, 8, 80 * GIB)
  assert choice.strategy == "ddp"
  config.sharding.microbatches = choice.microbatches // 2
  assert layouts.device_bytes(config, 8)["total"] > (1 - layouts.FREE) * 80 * GIB
  config.sharding.microbatches = choice.microbatches
  assert layouts.device_bytes(config, 8) == choice.held


def test_a_limit_is_met_to_the_byte():
  config = billion(microbatches=32)
  total = layouts.device_bytes(config, 8)["total"]
  assert layouts.cheapest(config, 8, limit_for(total)).strategy == "ddp"
  assert layouts.cheapest(config, 8, limit_for(total) - 3).strategy == "zero1"


def test_the_least_number_of_devices_is_the_least():
  config = ladders.resolve(large.get_config("70b"))
  more, choice = layouts.least_devices(config, 8, 80 * GIB)
  assert choice.held["total"] <= 0.9 * 80 * GIB
  assert more == 32
  assert layouts.cheapest(config, 16, 80 * GIB) is None
  assert layouts.least_devices(config, 31, 80 * GIB) == (more, choice)


def test_what_would_help_is_said_and_helps(isoflop):
  argv = (f"--config={LARGE}:1b", "--devices=1", "--device_memory=24GiB")
  code, out, _ = isoflop("plan", *argv)
  assert code == 0
  found = [line for line in out.splitlines() if line.startswith("  --")]
  assert "nothing fits 24.0 GiB" in out
  assert any("--config.model.remat" in line for line in found)
  assert any("--devices=" in line for line in found)
  flags = [flag for flag in found[0].split() if flag.startswith("--")]
  code, out, _ = isoflop("plan", *argv, *flags)
  assert code == 0
  assert "\nfits 24.0 GiB" in out


@pytest.mark.smoke
def test_a_train_config_is_one_run(isoflop):
  code, out, _ = isoflop("plan", f"--config={LARGE}:70b", "--devices=512", "--device_memory=80GiB")
  assert code == 0
  assert "5.885e+23 FLOPs = 6,811 petaflop/s-days" in out
  rows = {
    line.split()[0]: line.split() for line in out.splitlines() if line.endswith(("yes", "no"))
  }
  assert rows["ddp"][-1] == "no"
  assert rows["zero3*"][-1] == "yes"
  assert [line for line in out.splitlines() if line.startswith("fits 80.0 GiB")]


def test_without_a_memory_nothing_is_said_about_what_fits(isoflop):
  code, out, _ = isoflop("plan", f"--config={ROOT}/configs/clm.py")
  assert code == 0
  assert "fits" not in out
  assert "ddp*" in out
  assert "zero1" not in out  # one device


def test_a_sweep_has_a_row_for_each_size():
  c = base.get_config()
  assert not summary.is_sweep(c)
  c.sweep.sizes, c.sweep.probe_sizes = (2, 9), (5,)
  c.data.batch_size = c.train.eval_batch_size = 64
  assert summary.is_sweep(c)
  text = summary.sweep_memory(c, 64, "80GiB")
  rows = [line.split() for line in text.splitlines() if line.endswith("yes")]
  assert [row[0] for row in rows] == ["2", "5", "9"]
  text = summary.sweep_memory(c, 64, "2MiB")
  assert "size 9:" in text


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (("--devices=0",), "devices=0: must be at least 1"),
    (("--devices=3",), "data.batch_size=256: must be a multiple of 3"),
    (("--devices=8", "--config.sharding.tensor=3"), "sharding.tensor=3: must divide the 8 devices"),
    (("--device_memory=much",), "device_memory='much': write a size"),
    (("--devices=many",), "devices"),
    (("--config.model.remat=some",), "model.remat='some': unknown"),
    (("--config.data.tokenizer=words",), "data.tokenizer='words': unknown"),
  ],
)
def test_what_cannot_be_is_one_line(isoflop, flags, line):
  code, out, err = isoflop("plan", f"--config={LARGE}:1b", *flags)
  assert code == 2
  assert out == ""
  assert line in err
  assert len(err.splitlines()) == 1


def test_an_unknown_run_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="run '7b': unknown; .* 1b, 70b"):
    large.get_config("7b")


def test_no_device_is_touched():
  """Even with a platform that does not exist."""
  code = (
    "from configs import large; from scaling.targets import layouts;"
    "print(layouts.run_report(large.get_config('70b'), 512, '80GiB'))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    timeout=120,
    env={"PATH": "", "JAX_PLATFORMS": "nowhere", "PYTHONPATH": str(ROOT)},
  )
  assert done.returncode == 0, done.stderr
  assert "5.885e+23 FLOPs" in done.stdout
