"""The complete schema: every field once, with its default, its unit and its meaning.

`get_config()` is locked: a field that is not here is an error, here and on the command line
(`--config.model.size=3`). Every other config starts from this one and changes what it must.

A 0 in `model.width`, `model.depth` or `model.heads` means: take it from the ladder
(`configs/ladders.py`) at `model.size`. Nothing else has a hidden default.
"""

from ml_collections import ConfigDict

from configs.errors import UsageError


def model() -> ConfigDict:
  """The transformer. Shape by one dial (`size`), or by hand (`width`, `depth`, `heads`)."""
  c = ConfigDict()
  c.family = "decoder"  # decoder | encoder | encoder_decoder
  c.ladder = "small"  # the family of shapes that `size` indexes: small | standard
  c.size = 8  # the one dial: rung of the ladder
  c.width = 0  # D, model width; 0: from the ladder
  c.depth = 0  # L, number of blocks; 0: from the ladder
  c.encoder_depth = 0  # blocks of an encoder-decoder's encoder; 0: as many as the decoder has
  c.heads = 0  # H, attention heads; 0: from the ladder
  c.kv_heads = 0  # heads of keys and values (grouped-query attention); 0: as many as heads
  c.head_width = 0  # K; 0: width / heads
  c.mlp_ratio = 4.0  # F / D; gated MLPs use 2/3 of it, so that the parameters are the same
  c.mlp_width = 0  # F; 0: from mlp_ratio
  c.mlp = "swiglu"  # gelu (tanh) | gelu_exact | relu | geglu | swiglu
  c.norm = "rms"  # rms | layer
  c.norm_position = "pre"  # pre | post (the norm follows the residual sum; there is no last one)
  c.norm_eps = 1e-6  # added to the variance
  c.embedding_norm = False  # a norm after the embeddings (BERT)
  c.positions = "rotary"  # rotary | learned | sinusoidal | relative (T5's buckets) | none
  c.rotary_base = 10_000.0  # rotary: the slowest wavelength is 2 pi times this [tokens]
  c.relative_buckets = 32  # relative: rows of the table of biases
  c.relative_distance = 128  # relative: from here on all distances share a bucket [tokens]
  c.token_types = 0  # rows of a table of segment types, added to the embedding (BERT: 2)
  c.biases = False  # biases in the dense layers (and in layer norms)
  c.qk_norm = True  # normalise queries and keys per head
  c.scale_attention = True  # scores are divided by sqrt(K) (mup: by K); T5 does not
  c.scale_embedding = False  # embeddings are multiplied by sqrt(D) (Vaswani et al. 2017)
  c.tied = False  # the head is the transposed embedding
  c.scale_logits = False  # the input of the head is divided by sqrt(D) (T5 v1.0, with a tied head)
  c.head_transform = False  # dense, activation and norm before the head (BERT)
  c.head_bias = False  # a bias on the logits (BERT)
  c.dropout = 0.0  # probability, on embeddings, attention's and MLP's outputs
  c.init_std = 1.0  # embedding scale; dense layers use 1/sqrt(fan_in)
  c.width_scaling = "standard"  # standard | mup (Yang et al. 2022): rates follow mup_base_width
  c.mup_base_width = 64  # mup: the width at which the learning rate is as given
  c.dtype = "float32"  # of the products' operands: float32 | bfloat16
  c.weights = "float32"  # float32 | bfloat16 (gradients too; the optimizer keeps a float32 copy)
  c.activations = "float32"  # of what lies between products: float32 | bfloat16 (accelerators)
  c.remat = "none"  # rematerialisation of a block: none | dots | full
  c.flash = True  # on a GPU cuDNN's flash attention, where it serves; False: XLA's
  c.logits_at_once = 2**26  # of more than these a part exists at a time; 0: all do
  c.scan = True  # one scanned block (compiles as fast at any depth), or unrolled (faster on a CPU)
  return c


def data() -> ConfigDict:
  """The corpus, its tokens, and the shape of a batch."""
  c = ConfigDict()
  c.source = "python_stdlib"  # python_stdlib | text:PATH | tfds:NAME[/CONFIG][:VERSION] | markov
  c.text_field = "text"  # the field that holds the text, in .jsonl files and TFDS examples
  c.tokenizer = "bytes"  # bytes | bpe:SIZE (trained on the training split)
  c.cache = ""  # folder for prepared corpora; "": $ISOFLOP_CACHE, else ~/.cache/isoflop
  c.validation_percent = 5.0  # share of documents held out, by a hash of their content [%]
  c.seq_len = 128  # T [tokens]; span, ul2: the length of the encoder's inputs
  c.batch_size = 8  # sequences per step, over all hosts
  c.isolate_documents = True  # attention stays inside a document; False: it crosses boundaries
  c.max_epochs = 4.0  # a run that repeats its data more often than this is refused
  c.markov_tokens = 8_000_000  # size of the Markov source [tokens]
  c.markov_symbols = 256  # symbols of the Markov source
  return c


def corruption() -> ConfigDict:
  """What the objectives hide: see `train/objectives.py`."""
  c = ConfigDict()
  c.mlm_rate = 0.15  # mlm: share of positions that are predicted
  c.mlm_mask = 0.8  # mlm: of those, share that becomes the mask token
  c.mlm_random = 0.1  # mlm: share that becomes a random token; the rest stays as it is
  c.span_density = 0.15  # span: share of the text that is hidden
  c.span_length = 3.0  # span: mean length of a hidden span [tokens]
  c.sentinels = 100  # span, ul2: sentinel ids, the last of the vocabulary
  c.denoisers = ("r", "s", "x")  # ul2: drawn from with equal probability for each sequence
  return c


def optim() -> ConfigDict:
  """AdamW, its schedule, and its learning-rate rule."""
  c = ConfigDict()
  c.lr = 0.0  # peak learning rate; 0: lr_ref * (N / lr_ref_params) ** lr_exponent
  c.lr_ref = 6e-3  # learning rate at N = lr_ref_params
  c.lr_ref_params = 100_000  # N (body + head) at which lr_ref holds [parameters]
  c.lr_exponent = -1 / 3  # Porian et al. 2024 (arXiv:2406.19146): -1/3
  c.schedule = "wsd"  # constant | cosine | wsd (warmup, stable, 1-sqrt decay)
  c.warmup_tokens = 20_000  # linear warmup from 0 [tokens]
  c.cooldown_fraction = 0.2  # wsd: the last share of the run that decays
  c.final_lr_fraction = 0.0  # cosine and wsd: final / peak learning rate
  c.b1 = 0.9  # Adam: decay of the mean of the gradient
  c.b2 = 0.98  # Adam: decay of the mean of its square
  c.eps = 1e-8  # Adam: added to the root of that mean
  c.weight_decay = 0.1  # decoupled; on matrices only (not on norms, biases, embeddings)
  c.clip_norm = 1.0  # global gradient norm; 0: no clipping
  c.z_loss = 0.0  # weight of log^2 Z, which keeps logits from drifting (T5X uses 1e-4)
  return c


def sharding() -> ConfigDict:
  """How a run lies on its devices: see `model/sharding.py`."""
  c = ConfigDict()
  c.strategy = "ddp"  # ddp | zero1 | zero2 | zero3 (= fsdp) | hybrid
  c.shard_factor = 0  # hybrid: devices that share one copy of the model; 0 otherwise
  c.tensor = 1  # devices that share the products inside a layer
  c.microbatches = 1  # parts of a batch that are run one after the other (gradient accumulation)
  c.halve_microbatches = True  # those that do not fit a device are halved, the batch stays
  c.device_memory = 0.0  # what a run may use of each device [bytes]; 0: all that there is
  return c


def train() -> ConfigDict:
  """The loop: how long, how often it looks up, and where it starts."""
  c = ConfigDict()
  c.tokens = 1_000_000  # D, tokens to process [tokens]
  c.log_every_steps = 10  # a row in metrics.jsonl
  c.eval_every_steps = 0  # validation during training; 0: only at the end
  c.eval_tokens = 65_536  # fixed validation set, the first tokens of the validation split [tokens]
  c.eval_batch_size = 32  # sequences per evaluation step
  c.checkpoint_every_seconds = 60.0  # a temporary checkpoint to resume from [s]
  c.stop_at_step = 0  # end here without changing the schedule; 0: at the last step
  c.keep_steps = ()  # steps whose checkpoints are kept for good (branch points)
  c.branch_from = ""  # a checkpoint folder to start from at its step (cooldown from a trunk)
  return c


def sweep() -> ConfigDict:
  """Many runs: the design, the probe, the seeds, and the held-out budget."""
  c = ConfigDict()
  c.name = "sweep"  # title of the report
  c.objectives = ()  # several: each is a sweep in a folder of its name; (): only config.objective
  c.overrides = ()  # what an objective has for itself: ("mlm.optim.lr_ref=1e-2", ...)
  c.design = "isoflop"  # isoflop: sizes x budgets; grid: sizes x token_counts
  c.sizes = (4, 6, 8, 10, 12)  # rungs of model.ladder
  c.budgets = (1e10, 2e10, 4e10, 8e10)  # isoflop: training compute of a cell [FLOPs]
  c.token_counts = ()  # grid: D of each cell [tokens]
  c.min_tokens_per_param = 0.0  # cells with a smaller D / N are left out of the design
  c.max_tokens_per_param = 1e9  # and those with a larger one
  c.trunk = True  # one constant-rate trunk per size, a cooldown branched per cell
  c.seed_sizes = ()  # sizes that are repeated with other seeds
  c.seed_budgets = ()  # isoflop: the budgets of those repeats; (): all
  c.seeds = 3  # seeds at seed_sizes, the first included
  c.probe_sizes = (8,)  # sizes at which the learning rate is probed; (): no probe
  c.probe_tokens = 200_000  # length of a probe [tokens]
  c.probe_factors = (0.5, 1.0, 2.0)  # multiples of the rule's learning rate; extended at an edge
  c.adaptive_flops = 0.0  # --adaptive: compute for cells chosen by the fit so far [FLOPs]
  c.heldout_factor = 3.0  # held-out budget / largest fitted budget
  c.heldout_sizes = (0.5, 1.0, 2.0)  # multiples of the predicted N* that are trained
  c.heldout_budget = 0.0  # grid: held-out compute [FLOPs]; 0: heldout_factor x the largest cell
  c.pack = 0  # at most so many runs of a size are trained together on a device; 0: the planner's
  c.workers = 0  # local processes, one core each; 0: one per core
  return c


def fit() -> ConfigDict:
  """The law and how its uncertainty is estimated."""
  c = ConfigDict()
  c.params = "body_head"  # what N counts: body_head | body | total
  c.flops = "exact"  # what C counts: exact | 6nd
  c.delta = 1e-3  # Huber threshold on log loss (Hoffmann et al. 2022)
  c.bootstraps = 1000  # resamples of the runs
  c.level = 0.9  # probability content of every interval
  c.resampling = "pairs"  # pairs: of all runs; stratified: as many of each budget as it has
  c.seed = 0  # of the resampling
  c.target_tokens_per_param = 20.0  # the rule of thumb that the verdict compares with
  return c


def get_config() -> ConfigDict:
  """Returns the complete, locked schema at its defaults."""
  c = ConfigDict()
  c.seed = 0  # of initialisation and data order
  c.objective = "clm"  # clm | mlm | span | prefix | ul2
  c.model = model()
  c.data = data()
  c.corruption = corruption()
  c.optim = optim()
  c.sharding = sharding()
  c.train = train()
  c.sweep = sweep()
  c.fit = fit()
  return c.lock()


def from_json(tree: dict) -> ConfigDict:
  """Returns the config that a run or a sweep has stored, under today's schema.

  Raises:
    UsageError: a field of it is not in the schema, or has another type there.
  """

  def with_tuples(value):
    if isinstance(value, dict):
      return {key: with_tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value

  config = get_config()
  try:
    config.update(with_tuples(tree))
  except (AttributeError, KeyError, TypeError) as error:
    reason = str(error.args[0]).partition(" and cannot be")[0]  # the rest lists the whole schema
    raise UsageError(
      f"the stored config is of another version of isoflop ({reason}); use the one that wrote it"
    ) from None
  return config
