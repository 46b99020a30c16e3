"""Folders of the transformers library: golden logits, round trips, and everything that is refused.

`tests/golden` holds small models with random weights that the library's torch classes wrote, with
their logits; `tests/helpers/torch_models.py` makes them, and `tests/oracle` asks torch itself.
"""

import itertools
import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from documents import WAYS, difference, documents, logits
from safetensors.numpy import load_file, save_file

from configs import ladders, presets
from configs.errors import UserError
from model import positions
from model.huggingface import convert

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("gpt2", "llama", "qwen3", "gpt_neox", "bert", "t5", "t5_v1_1")


@pytest.fixture
def edit(tmp_path):
  """Copies a golden folder, with changes of its config and of its weights."""

  def make(name, config=None, weights=None, change=lambda weights: None):
    folder = tmp_path / "edited"
    shutil.copytree(GOLDEN / name, folder)
    fields = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if v != "-"}))
    stored = load_file(folder / "model.safetensors") | (weights or {})
    stored = change(stored) or stored
    save_file({k: np.ascontiguousarray(w) for k, w in stored.items()}, folder / "model.safetensors")
    return folder

  return make


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def exported(folder, imported, name, **more):
  convert.export_folder(folder, *imported[:4], name, **more)
  return folder


COVERING = {("gpt2", "packed"), ("llama", "ragged"), ("bert", "padded"), ("t5", "packed")}


@pytest.mark.parametrize(
  ("name", "way"),
  [
    pair if pair in COVERING else pytest.param(*pair, marks=pytest.mark.slow)
    for pair in itertools.product(NAMES, WAYS)
  ],
)
def test_golden_logits(name, way):
  imported = convert.import_folder(GOLDEN / name)
  batch = documents(imported.vocab_size)
  golden = np.load(GOLDEN / name / "logits.npz")["logits"]
  assert difference(logits(imported, batch, way), [golden]) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_bit_equal(name, tmp_path):
  imported = convert.import_folder(GOLDEN / name)
  folder = exported(tmp_path / "out", imported, name, tokenizer_json='{"a": "ä"}')
  again = convert.import_folder(folder)
  same(again.params, imported.params)
  assert again.model_config == imported.model_config
  assert again[2:5] == (imported.vocab_size, imported.seq_len, '{"a": "ä"}')
  # And the file is what torch wrote, weight by weight.
  same(load_file(folder / "model.safetensors"), load_file(GOLDEN / name / "model.safetensors"))


def test_shards_are_read(tmp_path):
  whole = load_file(GOLDEN / "llama" / "model.safetensors")
  files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(whole)}
  for file in set(files.values()):
    save_file({k: w for k, w in whole.items() if files[k] == file}, tmp_path / file)
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
  shutil.copy(GOLDEN / "llama" / "config.json", tmp_path)
  same(convert.import_folder(tmp_path).params, convert.import_folder(GOLDEN / "llama").params)
  for index, message in (("[]", "holds a list"), ('{"metadata": {}}', "has no weight_map")):
    folder = Path(shutil.copytree(tmp_path, tmp_path / message))
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=f"model.safetensors.index.json: {message}"):
      convert.import_folder(folder)
  (tmp_path / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(ValueError, match="model-00002-of-00002.safetensors: missing"):
    convert.import_folder(tmp_path)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_as_float32(edit, dtype):
  folder = edit("bert", change=lambda weights: {k: w.astype(dtype) for k, w in weights.items()})
  full = convert.import_folder(GOLDEN / "bert").params
  half = convert.import_folder(folder).params
  same(half, {k: w.astype(dtype).astype(np.float32) for k, w in full.items()})


def old_names(weights):
  """The names of the published BERT: TensorFlow's, and heads for other purposes."""
  weights = {
    k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): w
    for k, w in weights.items()
  }
  weights["cls.seq_relationship.weight"] = weights["bert.pooler.dense.weight"] = np.ones((2, 16))
  weights["cls.predictions.decoder.bias"] = weights.pop("cls.predictions.bias")
  return weights


def bare_names(weights):
  """The names of the published GPT-2: without the prefix, with buffers and the tied head."""
  weights = {k.removeprefix("transformer."): w for k, w in weights.items()}
  return weights | {
    "h.0.attn.bias": np.tril(np.ones((4, 4))),
    "lm_head.weight": weights["wte.weight"],
  }


@pytest.mark.parametrize(
  ("name", "config", "change"),
  [
    ("bert", {"type_vocab_size": "-", "position_embedding_type": "absolute"}, old_names),
    ("gpt2", {"scale_attn_weights": "-", "tie_word_embeddings": "-"}, bare_names),
    ("llama", {"rope_parameters": "-", "rope_theta": 300, "rope_scaling": None}, dict),
    ("t5", {"scale_decoder_outputs": "-", "tie_word_embeddings": "-"}, dict),
    ("t5_v1_1", {"scale_decoder_outputs": "-", "tie_word_embeddings": False}, dict),
  ],
)
def test_folders_of_older_versions(edit, name, config, change):
  older = convert.import_folder(edit(name, config, change=change))
  newer = convert.import_folder(GOLDEN / name)
  assert older.model_config == newer.model_config
  same(older.params, newer.params)


def test_t5_with_a_tied_head_that_is_not_scaled(edit, tmp_path):
  def drop(weights):
    del weights["lm_head.weight"]

  imported = convert.import_folder(edit("t5_v1_1", change=drop))
  assert (imported.model_config.tied, imported.model_config.scale_logits) == (True, False)
  again = convert.import_folder(exported(tmp_path / "out", imported, "t5_v1_1"))
  assert again.model_config == imported.model_config


def test_a_bert_without_a_head_is_named_so_and_its_embedding_serves_as_one(edit):
  def bare(weights):
    return {k.removeprefix("bert."): w for k, w in weights.items() if not k.startswith("cls")}

  imported = convert.import_folder(edit("bert", {"architectures": ["BertModel"]}, change=bare))
  whole = convert.import_folder(GOLDEN / "bert")
  assert (imported.model_type, whole.model_type) == ("bert without a head", "bert")
  same(imported.params, {k: w for k, w in whole.params.items() if not k.startswith("head/")})
  assert imported.model_config.tied


EMBEDDING = "model.embed_tokens.weight"
BIAS = "transformer.ln_f.bias"
Q = "model.layers.0.self_attn.q_proj.weight"
ROPE = {"rope_type": "llama3", "rope_theta": 300.0, "factor": 2.0, "low_freq_factor": 1.0}
LONG = {"max_position_embeddings": 4097}
LAYERS = {"layer_types": ["full_attention", "sliding_attention"]}


@pytest.mark.parametrize(
  ("name", "config", "message"),
  [
    ("llama", {"num_hidden_layers": 1}, "weight model.layers.1.* has no home"),
    ("llama", {"num_hidden_layers": 3}, r"weight model.layers.2.*: missing"),
    ("llama", {"tie_word_embeddings": True}, f"lm_head.weight: differs from {EMBEDDING}"),
    ("llama", {"num_key_value_heads": 4}, r"k_proj.weight: shape \(12, 16\).* \(24, 16\)"),
    ("llama", {"num_key_value_heads": 3}, "kv_heads=3"),
    ("llama", {"rope_parameters": ROPE}, "high_freq_factor: missing"),
    ("llama", {"rope_parameters": ROPE | {"high_freq_factor": 1.0}}, "low=1.0: must be less"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor: missing"),
    (
      "llama",
      {"rope_parameters": ROPE | {"rope_type": "linear", "factor": -2}},
      "rotary_factor=-2.0: must be pos",
    ),
    ("llama", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type='yarn': not supported"),
    ("llama", {"rope_parameters": "-", "rope_scaling": {"type": "dynamic"}}, "'dynamic'"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("llama", {"sliding_window": 4096}, "sliding_window=4096: not supported"),
    ("llama", {"mlp_bias": True}, "mlp_bias=True"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"hidden_act": "tanh"}, "'tanh': unknown; known are silu"),
    ("llama", {"model_type": "mamba"}, "model_type='mamba': unknown; it must be one of bert"),
    ("llama", {"model_type": "mistral", **LONG}, "sliding_window=4096: not supported below"),
    ("llama", {"model_type": "mistral", "sliding_window": 47}, "sliding_window=47: not supp"),
    ("llama", {"model_type": "mistral", "num_key_value_heads": "-"}, "value_heads: missing"),
    ("qwen3", LAYERS, "layer_types=.* not supported; our model has full attention"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 9}, "sliding_window=9: not supp"),
    ("qwen3", {"head_dim": None}, "head_dim: missing"),
    ("gpt_neox", {"attention_bias": False}, "attention_bias=False: not supported"),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.2}}, "factor=0.2: not supp"),
    ("bert", {"architectures": ["BertModel"]}, "cls.predictions.bias: has no home in this b"),
    ("llama", {"hidden_size": "-"}, "hidden_size: missing"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("bert", {"is_decoder": True}, "is_decoder=True"),
    ("t5", {"feed_forward_proj": "gated-relu"}, "'gated-relu': unknown"),
    # Of another type, or beyond their bounds.
    ("gpt2", {"n_layer": [3]}, r"n_layer='\[3\]': must be a count from 1 to 4,096"),
    ("gpt2", {"n_layer": 3.7}, "n_layer='3.7': must be a count"),
    ("gpt2", {"n_layer": 0}, "n_layer='0': must be a count"),
    ("gpt2", {"n_layer": 1_000_000_000}, "n_layer='1000000000': must be a count from 1 to 4,096"),
    ("gpt2", {"n_layer": True}, "n_layer='True': must be a count"),
    ("gpt2", {"n_inner": -64}, "n_inner='-64': must be a count"),
    ("gpt2", {"vocab_size": "257"}, "vocab_size='257': must be a count"),
    ("gpt2", {"n_positions": 10**15}, "n_positions='1000000000000000': must be a count"),
    ("gpt2", {"tie_word_embeddings": "false"}, "embeddings='false': must be true or false"),
    ("gpt2", {"scale_attn_weights": 0}, "scale_attn_weights='0': must be true or false"),
    ("gpt2", {"activation_function": ["gelu"]}, "activation_function=.*: must be a name"),
    ("gpt2", {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon='nan': must be a number"),
    ("gpt2", {"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon='1e-5': must be a number"),
    ("gpt2", {"model_type": ["gpt2"]}, "model_type=.* unknown"),
    ("gpt2", {"eos_token_id": 10**9}, "eos_token_id=1000000000: must be a token id, 0 to"),
    ("gpt2", {"bos_token_id": -7}, "bos_token_id=-7: must be a token id"),
    ("gpt2", {"bos_token_id": [1.5]}, r"bos_token_id=\[1.5\]: must be a token id"),
    ("llama", {"rope_parameters": [1]}, "rope_parameters=.*: must be an object"),
    ("llama", {"rope_parameters": {"rope_theta": "x"}}, "rope_theta='x': must be a number"),
    ("llama", {"rope_parameters": ROPE | {"factor": "8"}}, "factor='8': must be a number"),
    ("llama", {"rope_parameters": ROPE | {"low_freq_factor": [1]}}, "low_freq_factor=.* a number"),
    (
      "llama",
      {"rope_parameters": ROPE | {"original_max_position_embeddings": 2.5}},
      "original_max_position_embeddings='2.5': must be a count",
    ),
    ("qwen3", {"use_sliding_window": "yes"}, "use_sliding_window='yes': must be true or false"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": -8}, "sliding_window='-8': must be a"),
    ("qwen3", {"layer_types": 3}, "layer_types=3: not supported"),
    ("gpt_neox", {"use_parallel_residual": 1}, "use_parallel_residual='1': must be true or false"),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 2.0}}, "rotary_share=2.0: must lie"),
    ("t5", {"tie_word_embeddings": 1}, "tie_word_embeddings='1': must be true or false"),
    ("t5", {"scale_decoder_outputs": "no"}, "scale_decoder_outputs='no': must be true or false"),
  ],
)
def test_what_an_import_refuses(edit, name, config, message):
  with pytest.raises(UserError, match=message) as error:
    convert.import_folder(edit(name, config))
  assert "\n" not in str(error.value)


def test_token_ids_are_read_where_there_are_any(edit):
  ids = {"bos_token_id": [], "pad_token_id": [3, 4], "eos_token_id": None}
  imported = convert.import_folder(edit("gpt2", ids))
  assert (imported.start, imported.stop) == (3, None)


NO_NUMBERS = "has NaN or infinite values"


@pytest.mark.parametrize(
  ("name", "weight", "values", "message"),
  [
    ("gpt2", BIAS, np.resize([np.nan, 1], 16), NO_NUMBERS),
    ("gpt2", BIAS, np.resize([-np.inf, 1], 16), NO_NUMBERS),
    ("gpt2", BIAS, np.resize([1e300, 1], 16), f"{NO_NUMBERS}, or ones too large for float32"),
    ("gpt2", BIAS, np.resize([1, 2], 16), "holds int64; weights are floating-point numbers"),
    ("gpt2", BIAS, np.resize([True, False], 16), "holds bool"),
    ("llama", "model.layers.0.extra", np.ones(2), "has no home"),
    ("llama", Q, np.ones((16, 24)), r"shape \(16, 24\).* \(24, 16\)"),
    ("t5", "lm_head.weight", np.ones((64, 16)), "differs from shared.weight"),
    ("t5", "encoder.embed_tokens.weight", np.ones((64, 16)), "differs from shared.weight"),
  ],
)
def test_weights_that_an_import_refuses(edit, name, weight, values, message):
  with pytest.raises(UserError, match=f"{weight}: {message}"):
    convert.import_folder(edit(name, {}, {weight: values}))


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "a/b", 3, None])
def test_a_weight_map_does_not_lead_out_of_its_folder(edit, place):
  folder = edit("gpt2")
  (folder / convert.INDEX).write_text(json.dumps({"weight_map": {"x": place}}))
  with pytest.raises(UserError, match="is no file's name; weights lie in the folder"):
    convert.import_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(edit, name):
  folder = edit("gpt2")
  (folder / name).unlink()
  os.mkfifo(folder / name)
  with pytest.raises(UserError, match=f"{name}: missing"):
    convert.import_folder(folder)


def test_a_config_nested_too_deep_is_no_json(edit):
  folder = edit("gpt2")
  (folder / "config.json").write_text('{"a": ' * 99_999)
  with pytest.raises(UserError, match="config.json: not JSON"):
    convert.import_folder(folder)


def test_damaged_and_missing_files(edit, tmp_path):
  with pytest.raises(ValueError, match="config.json: missing"):
    convert.import_folder(tmp_path)
  folder = edit("gpt2")
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-1000])
  with pytest.raises(ValueError, match="model.safetensors: damaged"):
    convert.import_folder(folder)
  file.rename(folder / "pytorch_model.bin")
  with pytest.raises(ValueError, match="model.safetensors: missing; .* safetensors only"):
    convert.import_folder(folder)


def complete(name, **changes):
  c = presets.get_config(name)
  c.model.update({"width": 16, "depth": 2, "heads": 2, **changes})
  return ladders.resolve(c).model


@pytest.mark.parametrize(
  ("preset", "changes", "architecture", "message"),
  [
    ("decoder", {}, "llama", "model.qk_norm=True: llama has False"),
    ("decoder", {"biases": True}, "qwen3", "model.biases=True: qwen3 has False"),
    ("llama", {"attention_biases": True}, "mistral", "model.attention_biases=True: mistral has F"),
    ("gpt_neox", {"positions": "learned"}, "gpt_neox", "model.positions='learned'"),
    ("llama", {"norm": "layer"}, "llama", "model.norm='layer': llama has 'rms'"),
    ("llama", {"width_scaling": "mup"}, "llama", "model.width_scaling='mup'"),
    ("llama", {"scale_embedding": True}, "llama", "model.scale_embedding=True"),
    ("llama", {"mlp": "relu"}, "llama", "model.mlp='relu': llama has 'swiglu or geglu'"),
    ("gpt2", {"kv_heads": 1}, "gpt2", "model.kv_heads=1: gpt2 has 2"),
    ("gpt2", {"head_width": 4}, "gpt2", "model.head_width=4: gpt2 has 8"),
    ("gpt2", {"positions": "sinusoidal"}, "gpt2", "model.positions='sinusoidal'"),
    ("gpt2", {"biases": False}, "gpt2", "model.biases=False"),
    ("bert", {"norm_position": "pre"}, "bert", "model.norm_position='pre'"),
    ("bert", {"head_transform": False}, "bert", "model.head_transform=False"),
    ("t5", {"scale_attention": True}, "t5", "model.scale_attention=True"),
    ("t5", {}, "gpt2", "model.family='encoder_decoder': gpt2 has 'decoder'"),
    ("gpt2", {}, "gpt3", "architecture 'gpt3': unknown; choose one of gpt2, llama"),
  ],
)
def test_what_an_export_refuses(tmp_path, preset, changes, architecture, message):
  with pytest.raises(ValueError, match=message):
    convert.export_folder(tmp_path / "out", complete(preset, **changes), {}, 8, 8, architecture)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("head_width", [6, 12, 80])
def test_the_rotated_part_of_a_head_is_what_the_library_rounds_down_to(head_width):
  c = complete("gpt_neox", width=2 * head_width)
  _, config = convert._write("gpt_neox", c, 8, 8)
  share = config["rope_parameters"]["partial_rotary_factor"]
  assert int(head_width * share) == {6: 2, 12: 2, 80: 20}[head_width] == positions.rotary_width(c)


def test_an_export_does_not_mind_how_a_model_was_computed(tmp_path):
  imported = convert.import_folder(GOLDEN / "llama")
  imported.model_config.update(
    {"dtype": "bfloat16", "weights": "bfloat16", "flash": False, "logits_at_once": 0}
  )
  again = convert.import_folder(exported(tmp_path / "out", imported, "llama"))
  same(again.params, imported.params)


def test_an_export_wants_a_new_folder(tmp_path):
  (tmp_path / "notes.txt").touch()
  with pytest.raises(ValueError, match="exists; an export wants a new folder"):
    exported(tmp_path, convert.import_folder(GOLDEN / "gpt2"), "gpt2")


def test_token_ids_are_written(tmp_path):
  imported = convert.import_folder(GOLDEN / "t5")
  folder = exported(tmp_path / "out", imported, "t5", token_ids={"decoder_start_token_id": 7})
  assert json.loads((folder / "config.json").read_text())["decoder_start_token_id"] == 7
