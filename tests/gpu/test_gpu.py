"""On one GPU or TPU: what the CPU tests assert by arithmetic and by interpreted kernels, for real.

pytest tests/gpu     (elsewhere each test is skipped)
"""

import json
import subprocess
import sys

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, ladders
from model import attention, flash, sharding
from model.attention import AttentionMask
from train import loop, pack
from train.objectives import registry

FAMILIES = ("decoder", "encoder", "encoder_decoder")
EPS = 2.0**-8  # of bfloat16: operands are rounded by at most half of it


@pytest.fixture(autouse=True)
def device():
  """The kind of device."""
  if jax.default_backend() == "cpu":
    pytest.skip("needs a GPU or a TPU: pytest tests/gpu on a machine that has one")
  return jax.default_backend()


# ---------------------------------------------------------------------------------- attention

DOCUMENTS = np.array([[1] * 40 + [2] * 60 + [3] * 35 + [0] * 15, [1] * 100 + [2] * 50])
PADDED = np.array([[1] * 90 + [0] * 60, [1] * 150])


@pytest.mark.parametrize(
  ("T", "S", "H", "G", "causal", "segments"),
  [
    pytest.param(256, 256, 4, 4, True, None, id="causal"),
    pytest.param(150, 150, 4, 2, False, PADDED, id="padding"),
    pytest.param(150, 150, 4, 2, True, DOCUMENTS, id="documents"),
    pytest.param(29, 149, 2, 2, False, None, id="across"),
  ],
)
def test_flash_attention_equals_plain_attention(device, T, S, H, G, causal, segments):
  """Values and gradients; both round operands to bfloat16, and sums and softmax are float32.

  Of four products one behind the other each rounds its operands once, by half an eps each.
  """
  rng = np.random.default_rng(0)
  shapes = (2, T, H, 64), (2, S, G, 64), (2, S, G, 64), (2, T, H, 64)
  *qkv, weight_BTHK = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
  ids = None if segments is None else (jnp.asarray(segments), jnp.asarray(segments))
  mask = AttentionMask(causal, segments=ids, right_padded=segments is PADDED)
  if segments is not None:  # what padding attends to is nobody's business
    weight_BTHK *= segments[:, :, None, None] > 0
  kernel = flash.choose(device, *shapes[:2], jnp.bfloat16, segments is not None, mask.right_padded)
  assert kernel in flash.KERNELS

  def outcome(use_flash, dtype):
    def total(q, k, v):
      y_BTHK = attention.attend(q, k, v, mask, 0.125, dtype, use_flash)
      return jnp.sum(y_BTHK * weight_BTHK), y_BTHK

    gradients, y_BTHK = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv)
    return y_BTHK * (weight_BTHK != 0), *gradients

  with jax.default_matmul_precision("float32"):
    exact = outcome(False, jnp.float32)
  for ours, plain in zip(outcome(True, jnp.bfloat16), exact, strict=True):
    assert jnp.linalg.norm(ours - plain) < 4 * EPS * jnp.linalg.norm(plain)


# ---------------------------------------------------------------------------------- training


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_learns_in_both_precisions(family):
  """Twenty steps; bfloat16 moves a loss by its rounding of weights, activations and gradients."""
  exact = eight_devices.run(family, {"strategy": "ddp"})["losses"]
  assert exact[-1] < exact[0] - 0.3
  mixed = {"strategy": "ddp", "dtype": "bfloat16", "weights": "bfloat16", "activations": "bfloat16"}
  for case in ({"strategy": "ddp", "dtype": "bfloat16"}, mixed):
    losses = eight_devices.run(family, case)["losses"]
    np.testing.assert_allclose(losses, exact, rtol=4 * EPS)


@pytest.mark.parametrize("strategy", sharding.STRATEGIES)
def test_every_strategy_on_one_device_is_ddp(strategy):
  fields = {"shard_factor": 1} if strategy == "hybrid" else {}
  run = eight_devices.run("decoder", {"strategy": strategy} | fields)
  plain = eight_devices.run("decoder", {"strategy": "ddp"})
  np.testing.assert_allclose(run["losses"], plain["losses"], rtol=1e-5)
  assert run["bytes"] == plain["bytes"]


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_no_loss(remat):
  plain, run = (
    eight_devices.run("decoder", {"strategy": "ddp", "dtype": "bfloat16", "remat": policy})
    for policy in ("none", remat)
  )
  np.testing.assert_allclose(run["losses"], plain["losses"], rtol=EPS)


@pytest.mark.parametrize("objective", ["clm", "mlm", "span"])
def test_a_pack_trains_what_its_runs_would_be_alone(tiny, tmp_path, objective):
  tiny.objective, tiny.model.family = objective, base.family_of(objective)
  tiny.data.isolate_documents = objective != "span"
  tiny.corruption.sentinels = 8
  tiny.train.tokens = 20 * registry.tokens_per_step(ladders.resolve(tiny))
  configs = []
  for seed in range(3):
    configs.append(tiny.copy_and_resolve_references())
    configs[-1].seed = seed
  outcomes = {}
  runs = [(config, tmp_path / f"packed{i}") for i, config in enumerate(configs)]
  pack.train(runs, lambda: False, lambda i, event: None, outcomes.__setitem__)
  for i, config in enumerate(configs):
    alone = loop.train(config, tmp_path / f"alone{i}")
    assert outcomes[i]["loss"] == pytest.approx(alone["loss"], rel=1e-3)


def test_a_sweep_ends_in_a_verdict(tmp_path):
  command = [sys.executable, "-m", "scaling.main", "sweep", f"--workdir={tmp_path}"]
  command += ["--config=configs/sweeps/smoke.py", "--config.model.dtype=bfloat16"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr
  cells = json.loads((tmp_path / "verification.json").read_text())["cells"]
  records = [json.loads(path.read_text()) for path in tmp_path.glob("cells/*/run.json")]
  assert cells
  assert {record["status"] for record in records} == {"done"}
