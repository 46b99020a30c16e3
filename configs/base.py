"""The complete schema: every field once, with its default, what it may be, its unit and meaning.

`get_config()` is locked: a field that is not here is an error, here and on the command line
(`--config.model.size=3`). Every other config starts from this one and changes what it must.

`one_of(...)` lists the names a field may have, its default first; `positive(...)` and the like
bound a number; a bare default is bounded by its type alone, or where it is used. A `Mapping` has
names of your choice: `c.data.evaluate.books = "text:PATH"`, --config.data.evaluate.books=text:PATH.
A 0 in `model.width`, `model.depth` or `model.heads` means: take it from the ladder
(`configs/ladders.py`) at `model.size`. Nothing else has a hidden default.
"""

import ast
from typing import Any

from ml_collections import ConfigDict

from configs.bounds import (
  Field,
  Mapping,
  at_least_0,
  at_least_1,
  below_1,
  between_0_and_1,
  byte_symbols,
  number,
  one_of,
  percent,
  positive,
  seed,
  share,
  up_to_1,
)
from configs.errors import ConfigError, UsageError

# The families of models, and the objectives that each is trained with: the first by default.
FAMILIES = {
  "decoder": ("clm", "prefix", "completion"),
  "encoder": ("mlm",),
  "encoder_decoder": ("span", "ul2"),
}

OPTIMIZERS = ("adamw", "muon")

RUN: dict[str, Any] = {
  "seed": seed(0),  # of initialisation and data order
  "objective": one_of(*(name for names in FAMILIES.values() for name in names)),
}

# The transformer. Shape by one dial (`size`), or by hand (`width`, `depth`, `heads`).
MODEL: dict[str, Any] = {
  "family": one_of(*FAMILIES),
  "ladder": one_of("small", "standard"),  # the family of shapes that `size` indexes
  "size": 8,  # the one dial: rung of the ladder
  "width": at_least_0(0),  # D, model width; 0: from the ladder
  "depth": at_least_0(0),  # L, number of blocks; 0: from the ladder
  "encoder_depth": at_least_0(0),  # blocks of an encoder-decoder's encoder; 0: as the decoder's
  "heads": at_least_0(0),  # H, attention heads; 0: from the ladder
  "kv_heads": at_least_0(0),  # heads of keys and values (grouped-query attention); 0: as `heads`
  "head_width": at_least_0(0),  # K; 0: width / heads
  "mlp_ratio": positive(4.0),  # F / D; gated MLPs use 2/3 of it, for as many parameters
  "mlp_width": at_least_0(0),  # F; 0: from mlp_ratio
  "mlp": one_of("swiglu", "geglu", "gelu", "gelu_exact", "relu"),  # gelu: by tanh
  "norm": one_of("rms", "layer"),
  "norm_position": one_of("pre", "post"),  # post: after the residual sum, and no last norm
  "norm_eps": at_least_0(1e-6),  # added to the variance
  "embedding_norm": False,  # a norm after the embeddings (BERT)
  "positions": one_of("rotary", "learned", "sinusoidal", "relative", "none"),  # relative: T5's
  "rotary_base": positive(10_000.0),  # rotary: the slowest wavelength is 2 pi times this [tokens]
  "rotary_share": up_to_1(1.0),  # rotary: of a head's width, in steps of 2 (GPT-NeoX: 1/4)
  "rotary_factor": positive(1.0),  # rotary: wavelengths are so many times longer (linear scaling)
  "rotary_original": at_least_0(0),  # rotary_factor: length trained at before (Llama 3); 0: linear
  "rotary_low": positive(1.0),  # Llama 3: scaled fully are wavelengths above original / low,
  "rotary_high": positive(4.0),  # and not at all those below original / high
  "relative_buckets": 32,  # relative: rows of the table of biases
  "relative_distance": 128,  # relative: from here on all distances share a bucket [tokens]
  "token_types": at_least_0(0),  # rows of a table of segment types, added to embeddings (BERT: 2)
  "biases": False,  # biases in the dense layers (and in layer norms)
  "attention_biases": False,  # biases in those of attention, also without `biases`
  "qk_norm": True,  # normalise queries and keys per head
  "parallel": False,  # the MLP reads what attention reads, not its sum with attention (GPT-NeoX)
  "scale_attention": True,  # scores are divided by sqrt(K) (mup: by K); T5 does not
  "scale_embedding": False,  # embeddings are multiplied by sqrt(D) (Vaswani et al. 2017)
  "tied": False,  # the head is the transposed embedding
  "scale_logits": False,  # the input of the head is divided by sqrt(D) (T5 v1.0, with a tied head)
  "head_transform": False,  # dense, activation and norm before the head (BERT)
  "head_bias": False,  # a bias on the logits (BERT)
  "dropout": below_1(0.0),  # probability, on embeddings, attention's and MLP's outputs
  "init_std": positive(1.0),  # embedding scale; dense layers use 1/sqrt(fan_in)
  "width_scaling": one_of("standard", "mup"),  # mup (Yang et al. 2022): rates by mup_base_width
  "mup_base_width": positive(64),  # mup: the width at which the learning rate is as given
  "depth_scaling": one_of("standard", "completep"),  # completep: Dey et al. 2025
  "mup_base_depth": at_least_1(3),  # completep: the depth at which nothing is scaled
  "completep_alpha": up_to_1(1.0),  # branches by (base / depth)^alpha; 0.5: depth-muP
  "dtype": one_of("float32", "bfloat16"),  # of the products' operands
  "weights": one_of("float32", "bfloat16"),  # gradients too; the optimizer keeps a float32 copy
  "activations": one_of("float32", "bfloat16"),  # of what lies between products (accelerators)
  "remat": one_of("none", "dots", "full"),  # rematerialisation of a block
  "flash": True,  # on a GPU cuDNN's flash attention, where it serves; False: XLA's
  "logits_at_once": at_least_0(2**26),  # with more, the loss is computed in chunks; 0: never
  "scan": True,  # one scanned block (compiles as fast at any depth); False: faster on a CPU
}

# The corpus, its tokens, and the shape of a batch.
DATA: dict[str, Any] = {
  "source": "python_stdlib",  # python_stdlib | text:PATH | tfds:NAME[/CONFIG][:VERSION] | markov
  "text_field": "text",  # the field that holds the text, in .jsonl files and TFDS examples
  "prompt_field": "",  # completion: the field of the prompts, whose completions are in text_field
  "bidirectional_prompt": False,  # completion: a prompt's tokens see all of it, not only the past
  "tokenizer": "bytes",  # bytes | bpe:SIZE (trained on the training split) | file:PATH (a run's)
  "cache": "",  # folder for prepared corpora; "": $ISOFLOP_CACHE, else ~/.cache/isoflop
  "validation_percent": percent(5.0),  # documents held out, by a hash; of few, up to twice [%]
  "validation_seed": seed(0),  # which: 0 by that hash, others by another
  "seq_len": at_least_1(128),  # T [tokens]; span, ul2: the length of the encoder's inputs
  "batch_size": at_least_1(8),  # sequences per step, over all hosts
  "isolate_documents": True,  # attention stays inside a document; False: it crosses boundaries
  "max_epochs": positive(4.0),  # a run that repeats its data more often than this is refused
  "markov_tokens": at_least_1(8_000_000),  # size of the Markov source [tokens]
  "markov_symbols": byte_symbols(256),  # symbols of the Markov source
  "evaluate": Mapping("text"),  # further validation sets by name: a source, EVALUATOR@SOURCE
}

# What the objectives hide: see `train/objectives/`.
CORRUPTION: dict[str, Any] = {
  "mlm_rate": up_to_1(0.15),  # mlm: share of positions that are predicted
  "mlm_mask": share(0.8),  # mlm: of those, share that becomes the mask token
  "mlm_random": share(0.1),  # mlm: share that becomes a random token; the rest stays as it is
  "span_density": between_0_and_1(0.15),  # span: share of the text that is hidden
  "span_length": at_least_1(3.0),  # span: mean length of a hidden span [tokens]
  "sentinels": at_least_1(100),  # span, ul2: sentinel ids, the last of the vocabulary
  "denoisers": ("r", "s", "x"),  # ul2: drawn from with equal probability for each sequence
}

# The optimizer, its schedule, and its learning-rate rule: see `train/optim.py`.
OPTIM: dict[str, Any] = {
  "name": one_of(*OPTIMIZERS),  # muon: adamw for all but the matrices in blocks
  "lr": at_least_0(0.0),  # peak learning rate; 0: lr_ref * (N / lr_ref_params) ** lr_exponent
  "lr_ref": positive(6e-3),  # learning rate at N = lr_ref_params
  "lr_ref_params": positive(100_000),  # N (body + head) at which lr_ref holds [parameters]
  "lr_exponent": number(-1 / 3),  # Porian et al. 2024 (arXiv:2406.19146): -1/3
  "rule": "",  # a tune.json that gives each cell of a sweep its rate, batch, decay; "": lr_ref's
  "schedule": one_of("wsd", "cosine", "constant"),  # wsd: warmup, stable, 1-sqrt decay
  "warmup_tokens": at_least_0(20_000),  # linear warmup from 0 [tokens]
  "cooldown_fraction": up_to_1(0.2),  # wsd: the last share of the run that decays
  "final_lr_fraction": at_least_0(0.0),  # cosine and wsd: final / peak learning rate
  "b1": below_1(0.9),  # adamw, and what muon leaves to it: decay of the mean gradient
  "b2": below_1(0.98),  # likewise: decay of the mean of its square
  "eps": positive(1e-8),  # likewise: added to the root of that mean
  "momentum": below_1(0.95),  # muon: decay of the sum of gradients (Jordan et al. 2024)
  "weight_decay": at_least_0(0.1),  # decoupled; on matrices only (not on norms, biases, embeddings)
  "clip_norm": at_least_0(1.0),  # global gradient norm; 0: no clipping
  "z_loss": at_least_0(0.0),  # weight of log^2 Z, which keeps logits from drifting (T5X: 1e-4)
}

# How a run lies on its devices: see `model/sharding.py`.
SHARDING: dict[str, Any] = {
  "strategy": one_of("ddp", "zero1", "zero2", "zero3", "fsdp", "hybrid"),  # fsdp: zero3
  "shard_factor": at_least_0(0),  # hybrid: devices that share one copy of the model; 0 otherwise
  "tensor": 1,  # devices that share the products inside a layer
  "microbatches": at_least_1(1),  # parts of a batch, one after the other (gradient accumulation)
  "halve_microbatches": True,  # those that do not fit a device are halved, the batch stays
  "device_memory": at_least_0(0.0),  # what a run may use of each device [bytes]; 0: all there is
}

# The loop: how long, how often it evaluates and saves, and where it starts.
TRAIN: dict[str, Any] = {
  "tokens": at_least_1(1_000_000),  # D, tokens to process [tokens]
  "log_every_steps": at_least_1(10),  # a row in metrics.jsonl
  "eval_every_steps": at_least_0(0),  # validation during training; 0: only at the end
  "eval_tokens": at_least_1(65_536),  # of the validation split; a document is 2 % of them at most
  "eval_batch_size": at_least_1(32),  # sequences per evaluation step
  "checkpoint_every_seconds": at_least_0(60.0),  # a temporary checkpoint to resume from [s]
  "stop_at_step": at_least_0(0),  # end here without changing the schedule; 0: at the last step
  "keep_steps": (),  # steps whose checkpoints are kept for good (branch points)
  "trainable": (".*",),  # regexes, each of whole paths ("head/.*"): the rest of the weights stay
  "branch_from": "",  # a checkpoint folder to start from at its step (cooldown from a trunk)
  "warm_start": "",  # a run's folder, whose weights this one starts from; {size}: model.size
  "warm_start_rule": one_of("exact", "grow"),  # other shapes: refused; mapped (`train/transfer.py`)
}

LAUNCHERS = ("local", "command")  # rows of `scaling/launch/launchers.py`

# Many runs: the design, the probe, the seeds, and the held-out budget. `scaling/sweep/checks.py`
# bounds what depends on other fields.
SWEEP: dict[str, Any] = {
  "name": "sweep",  # title of the report
  "arms": Mapping("fields"),  # the sweep is run once per name, each with the fields that it sets
  "design": one_of("isoflop", "grid"),  # isoflop: sizes x budgets; grid: sizes x token_counts
  "sizes": (4, 6, 8, 10, 12),  # rungs of model.ladder
  "budgets": (1e10, 2e10, 4e10, 8e10),  # isoflop: training compute of a cell [FLOPs]
  "token_counts": (),  # grid: D of each cell [tokens]
  "min_tokens_per_param": 0.0,  # cells with a smaller D / N are left out of the design
  "max_tokens_per_param": 1e9,  # and those with a larger one
  "min_tokens": at_least_0(0),  # and those of a smaller D, still in their first transient
  "trunk": True,  # one constant-rate trunk per size, a cooldown branched per cell
  "seed_sizes": (),  # sizes that are repeated with other seeds
  "seed_budgets": (),  # isoflop: the budgets of those repeats; (): all
  "seeds": at_least_1(3),  # seeds at seed_sizes, the first included
  "probe_sizes": (8,),  # sizes at which the learning rate is probed; (): no probe
  "probe_tokens": 200_000,  # length of a probe [tokens]
  "probe_factors": (0.5, 1.0, 2.0),  # multiples of the rule's learning rate; extended at an edge
  "adaptive_flops": 0.0,  # --adaptive: compute for cells chosen by the fit so far [FLOPs]
  "heldout_budgets": (3.0,),  # held-out budgets, as multiples of the largest fitted one
  "heldout_sizes": (0.5, 1.0, 2.0),  # multiples of the predicted N* that are trained
  "heldout_seeds": at_least_1(1),  # seeds of each held-out cell, the first included
  "pack": at_least_0(0),  # most runs of a size trained together on a device; 0: the planner's
  "launcher": one_of(*LAUNCHERS),  # how workers are started: processes here, `command`
  "command": "",  # of launcher command, as "bash -c {command}"; {folder}, {id} are filled in too
  "workers": at_least_0(0),  # runs or packs at a time; 0: local: one per core, command: one
}

# `isoflop tune`: a grid of rates and batches at each (N, D), and one that is held out.
TUNE: dict[str, Any] = {
  "sizes": (3, 5, 8),  # rungs of model.ladder
  "token_counts": (100_000, 200_000, 400_000),  # D at each size [tokens]
  "batch_sizes": (4, 8, 16),  # sequences per step; extended where the best is at an edge
  "lr_factors": (0.5, 0.7, 1.0, 1.4, 2.0),  # of the rule's rate times sqrt(batch / data.batch_size)
  "decay_factors": (1.0,),  # of optim.weight_decay; three or more fit its timescale, too
  "seeds": at_least_1(1),  # runs of each rate, batch and decay
  "window": positive(0.02),  # runs within this share of their cell's lowest loss are fitted
  "heldout_size": at_least_0(10),  # rung at which the law is tested
  "heldout_tokens": at_least_1(800_000),  # D at which the law is tested [tokens]
}

# The law and how its uncertainty is estimated. `scaling/laws/` bounds them.
FIT: dict[str, Any] = {
  "loss": "",  # that on a set of data.evaluate, by its name; "": on the held-out tokens
  "params": one_of("body_head", "body", "total"),  # what N counts
  "flops": one_of("exact", "6nd"),  # what C counts
  "form": "chinchilla",  # of the law: one of scaling/laws/forms.py that is of N and D
  "response": one_of("log", "raw"),  # residuals are of log loss, or of the loss
  "E": "",  # the floor, where it is known [nats per token]: 1.6, 1.4..1.8, 1.6+-0.1 (mean and SD)
  "delta": 1e-3,  # Huber threshold on the residuals (Hoffmann et al. 2022: of log loss)
  "reach": at_least_0(4.0),  # times the best N for their C: runs farther off, where they bend away
  # from the form, are left out; 0: none are
  "bootstraps": 1000,  # resamples of the runs
  "level": 0.9,  # probability content of every interval
  "resampling": one_of("auto", "pairs"),  # runs, with what clusters share; as if independent
  "seed": 0,  # of the resampling
  "target_tokens_per_param": positive(20.0),  # the rule of thumb that the verdict compares with
}

SCHEMA = {
  "": RUN,
  "model": MODEL,
  "data": DATA,
  "corruption": CORRUPTION,
  "optim": OPTIM,
  "sharding": SHARDING,
  "train": TRAIN,
  "sweep": SWEEP,
  "tune": TUNE,
  "fit": FIT,
}
MAPPINGS = [
  (section, name)
  for section, fields in SCHEMA.items()
  for name, field in fields.items()
  if isinstance(field, Mapping)
]


def get_config() -> ConfigDict:
  """Makes the complete, locked config at its defaults."""

  def default(field: Any) -> Any:
    if isinstance(field, Mapping):
      return {}
    return field.default if isinstance(field, Field) else field

  def defaults(section: str) -> dict[str, Any]:
    return {name: default(field) for name, field in SCHEMA[section].items()}

  sections = {section: defaults(section) for section in SCHEMA if section}
  return lock(ConfigDict(defaults("") | sections))


def lock(config: ConfigDict) -> ConfigDict:
  """Locks a config, but for its mappings."""
  config.lock()
  for section, name in MAPPINGS:
    config[section][name].unlock()
  return config


def split_mapping(field: str) -> tuple[str, str]:
  """Splits the dotted name of a key in a mapping from that of a field in its value, or "".

  `sweep.arms.muon.optim.lr` is ("sweep.arms.muon", "optim.lr"); `model.size` is ("", "model.size").

  Raises:
    ConfigError: the key cannot be one.
  """
  section, name, rest = (*field.split(".", 2), "", "")[:3]
  mapping = SCHEMA.get(section, {}).get(name)
  if not isinstance(mapping, Mapping) or not rest:
    return "", field
  key, _, inner = rest.partition(".") if mapping.of == "fields" else (rest, "", "")
  mapping.check_key(f"{section}.{name}", key)
  return f"{section}.{name}.{key}", inner


def add_field(config: ConfigDict, field: str, value: Any) -> None:
  """Sets a field of a mapping, by its dotted name, unless it is set."""
  *path, last = field.split(".")
  for name in path:
    if name not in config:
      config[name] = {}
    config = config[name]
  if last not in config:
    config[last] = value


def set_field(config: ConfigDict, field: str, text: str) -> None:
  """Sets a field, by its dotted name, to what a text says: a Python literal, or a bare word.

  Raises:
    ConfigError: there is no such field, or it is of another type.
  """
  try:
    value = ast.literal_eval(text)
  except (SyntaxError, ValueError):
    value = text
  try:
    config.update_from_flattened_dict({field: value})
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    reason = str(error.args[0]).partition(" and cannot be")[0]  # the rest lists the whole schema
    raise ConfigError(f"{reason}; --print_config shows all fields") from None


def renamed(tree: dict) -> dict:
  """Returns a stored config with the fields that have another name today under that name."""
  sections = {name: dict(tree[name]) for name in ("sweep", "fit") if name in tree}
  sweep, fit = (sections.get(name, {}) for name in ("sweep", "fit"))
  if "heldout_factor" in sweep:
    sweep["heldout_budgets"] = [sweep.pop("heldout_factor")]
  if sweep.get("heldout_budget") == 0:  # else it was in FLOPs
    del sweep["heldout_budget"]
  if "fixed_E" in fit:
    E = fit.pop("fixed_E")
    fit["E"] = f"{E:g}" if E else ""
  return tree | sections


def from_json(tree: dict, where: str = "the stored config") -> ConfigDict:
  """Reads the config that a run or a sweep has stored, under today's schema.

  `where` names the run or the file.

  Raises:
    UsageError: a field of it is not in the schema, or has another type there.
  """

  def with_tuples(value):
    if isinstance(value, dict):
      return {key: with_tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value

  config = get_config()
  try:
    config.update(with_tuples(renamed(tree)))
  except (AttributeError, KeyError, TypeError) as error:
    reason = str(error.args[0]).partition(" and cannot be")[0]  # the rest lists the whole schema
    raise UsageError(
      f"{where}: is of another version of isoflop ({reason}); use the one that wrote it"
    ) from None
  return config


def check_fields(config: ConfigDict) -> None:
  """Raises ConfigError where a field of a config has a value that the schema does not allow."""
  for section in SCHEMA:
    check_section(section, config[section] if section else config)


def check_section(section: str, values: ConfigDict) -> None:
  """Raises ConfigError where a field of one section has a value that the schema does not allow."""
  for name, field in SCHEMA[section].items():
    if isinstance(field, Field | Mapping):
      field.check(f"{section}.{name}".lstrip("."), values[name])


def family_of(objective: str) -> str:
  """Returns the family of models that an objective trains."""
  RUN["objective"].check("objective", objective)
  return next(family for family, names in FAMILIES.items() if objective in names)
