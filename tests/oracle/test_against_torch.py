"""Our logits are those of the torch models of the transformers library.

pip install torch==2.13.0 transformers
python -m pytest tests/oracle
"""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from documents import WAYS, difference, documents, logits

from model.huggingface import convert

transformers = pytest.importorskip("transformers", reason="needs torch and transformers")
torch = pytest.importorskip("torch", reason="needs torch and transformers")
import torch_models  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
BATCH = documents(torch_models.V)
BOUND = 1e-5  # the largest that was seen is 4e-6


@pytest.fixture(scope="module", params=torch_models.VARIANTS)
def variant(request, tmp_path_factory):
  """(name, imported model, torch model)."""
  folder = tmp_path_factory.mktemp("torch")
  model = torch_models.build(*torch_models.VARIANTS[request.param])
  model.save_pretrained(folder)
  return request.param, convert.import_folder(folder), model


@pytest.mark.parametrize("way", WAYS)
def test_imported_logits(variant, way):
  _, imported, model = variant
  # A packed document's logits are those of the document alone.
  theirs = torch_models.logits(model, BATCH, "padded" if way == "padded" else "ragged")
  assert difference(logits(imported, BATCH, way), theirs) < BOUND


def test_exported_logits(variant, tmp_path):
  name, imported, _ = variant
  rng = np.random.default_rng(0)
  params = {
    path: w + 0.1 * rng.standard_normal(w.shape, np.float32) for path, w in imported.params.items()
  }
  imported = imported._replace(params=params)
  convert.export_folder(tmp_path / "out", *imported[:4], name.split(",")[0])
  theirs = torch_models.logits(torch_models.load(tmp_path / "out"), BATCH, "padded")
  assert difference(logits(imported, BATCH, "padded"), theirs) < BOUND


def test_the_output_of_a_bert_without_a_head(tmp_path):
  model = torch_models.build("Bert", "BertModel", torch_models.BERT)
  model.save_pretrained(tmp_path)
  ours = logits(convert.import_folder(tmp_path), BATCH, "ragged")
  table = model.double().embeddings.word_embeddings.weight
  for document, row in zip(BATCH, ours, strict=True):
    ids, types = (torch.tensor(x)[None] for x in (document.tokens, document.types))
    with torch.no_grad():
      theirs = model(ids, token_type_ids=types).last_hidden_state[0] @ table.T
    assert difference([row], [theirs.numpy()]) < BOUND


@pytest.mark.parametrize("name", torch_models.GOLDEN)
def test_the_golden_logits_are_torchs(name):
  theirs = torch_models.logits(torch_models.load(GOLDEN / name), BATCH, "ragged")
  golden = np.load(GOLDEN / name / "logits.npz")["logits"]
  assert difference([golden], theirs) < 1e-6


@pytest.mark.parametrize("name", torch_models.GOLDEN)
def test_an_exported_tokenizer_gives_the_same_ids(name, tmp_path):
  library = tokenizers.Tokenizer(tokenizers.models.BPE())
  library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=262, initial_alphabet=alphabet)
  library.train_from_iterator(["hello world"] * 9, trainer)
  imported = convert.import_folder(GOLDEN / name)
  convert.export_folder(tmp_path / "out", *imported[:4], name, library.to_str())
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  text = "hello, Wörld"
  assert theirs(text)["input_ids"] == library.encode(text).ids
