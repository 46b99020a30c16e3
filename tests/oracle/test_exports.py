"""What the transformers library and lm-eval do with an exported run is what the run itself does.

pip install torch==2.13.0 transformers 'lm-eval[hf]'
python -m pytest tests/oracle
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import sampling
from train import restore
from train.objectives import registry

transformers = pytest.importorskip("transformers", reason="needs torch and transformers")
torch = pytest.importorskip("torch", reason="needs torch and transformers")

TEXTS = ["the day", "a<|eos|>b", "once upon a time"]  # what spells out a special token is text
EXPORTS = {"decoder": "qwen3", "gpt2": "gpt2", "gpt_neox": "gpt_neox"}


@pytest.fixture
def exported(isoflop, trained, tmp_path):
  """Exports a trained preset; returns its folder, and the run as we read it."""

  def export(preset, architecture):
    argv = (f"--checkpoint={trained(preset)}", f"--architecture={architecture}")
    code, _, err = isoflop("export", *argv, f"--output={tmp_path / 'out'}")
    assert code == 0, err
    return str(tmp_path / "out"), restore.restore(str(trained(preset)))

  return export


def log_probs(run, ids):
  """Returns those of the tokens after the first, given the ones before them."""
  logits_TV = run.model(jnp.asarray([ids]))[0]
  return np.asarray(jax.nn.log_softmax(logits_TV))[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize("preset", EXPORTS)
def test_a_padded_batch_has_the_runs_logits_and_continuations(exported, preset):
  folder, run = exported(preset, EXPORTS[preset])
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  assert tokenizer.model_max_length == run.context
  batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
  with torch.no_grad():
    logits_BTV = model(**batch).logits
  rows = [run.tokenizer.encode(text).ids for text in TEXTS]
  for row, ids, mask, logits in zip(
    rows, batch["input_ids"], batch["attention_mask"], logits_BTV, strict=True
  ):
    assert ids[mask == 1].tolist() == row
    ours = run.model(jnp.asarray([row]))[0]
    np.testing.assert_allclose(logits[: len(row)], ours, atol=1e-5 * np.abs(ours).max())
  tokenizer.padding_side = "left"
  batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
  drawn = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, -4:]
  lengths = [len(row) for row in rows]
  tokens_BT = np.zeros((len(rows), max(lengths)), np.int32)
  for i, row in enumerate(rows):
    tokens_BT[i, : len(row)] = row
  ours, counts = sampling.generate(
    run.model,
    tokens_BT,
    lengths,
    4,
    jax.random.key(0),
    context=run.context,
    temperature=0,
    stop_token=run.stop,
  )
  for row, tokens, count in zip(drawn, ours, counts, strict=True):
    assert row[:count].tolist() == tokens[:count].tolist()
    assert set(row[count:].tolist()) <= {run.stop}


def test_fill_mask_has_the_runs_candidates(exported):
  folder, run = exported("bert", "bert")
  fill = transformers.pipeline("fill-mask", model=folder, top_k=5)
  mask = run.tokenizer.token_to_id(registry.MASK)
  for prompt in ("the [MASK] day", "once upon a [MASK]", "[MASK]"):
    row = np.array([run.tokenizer.encode(prompt).ids])
    blanks = sampling.fill_mask(run.model, row, mask, context=run.context, top=5)
    candidates = fill(prompt)
    assert [x["token"] for x in candidates] == blanks.tokens_XK[0].tolist()
    scores = np.array([x["score"] for x in candidates])  # beside that of [MASK] itself
    ours = blanks.probs_XK[0]
    np.testing.assert_allclose(scores / scores[0], ours / ours[0], rtol=1e-4)


def test_lm_eval_has_the_runs_likelihoods(exported):
  api = pytest.importorskip("lm_eval.api.instance", reason="needs lm-eval")
  from lm_eval.models import huggingface

  def ask(kind, *arguments):
    rows = enumerate(arguments)
    return [api.Instance(kind, {}, arguments=x, idx=i) for i, x in rows]

  folder, run = exported("decoder", "qwen3")
  options = {"pretrained": folder, "device": "cpu", "dtype": "float32", "batch_size": 3}
  harness = huggingface.HFLM(**options)
  assert (harness.max_length, harness.prefix_token_id) == (run.context, run.stop)
  pairs = [("the", " day"), ("once upon", " a time"), ("", "day")]
  scores = harness.loglikelihood(ask("loglikelihood", *pairs))
  for (context, continuation), (score, _) in zip(pairs, scores, strict=True):
    log_probs_T = log_probs(run, run.tokenizer.encode(context + continuation).ids)
    assert score == pytest.approx(log_probs_T[-len(continuation) :].sum(), rel=1e-5)
  # Perplexities have a prefix of lm-eval's own: the tokenizer need not add it again.
  harness = huggingface.HFLM(**options, add_bos_token=False)
  scores = harness.loglikelihood_rolling(ask("loglikelihood_rolling", ("the day",), ("once",)))
  for text, score in zip(("the day", "once"), scores, strict=True):
    assert score == pytest.approx(log_probs(run, run.tokenizer.encode(text).ids).sum(), rel=1e-5)
  until = ("the", {"until": ["\n\n"], "max_gen_toks": 3, "do_sample": False})
  assert len(harness.generate_until(ask("generate_until", until))) == 1
