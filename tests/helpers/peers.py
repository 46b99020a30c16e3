"""Times a peer's training step beside ours and prints the ratio. A script, and not a test.

    python tests/helpers/peers.py --peer=flax --sizes=64/2,128/4 --dtypes=float32,bfloat16
    python tests/helpers/peers.py --peer=nanodo --path=nanodo-checkout
    python tests/helpers/peers.py --peer=torch --compile --python=.venv-torch/bin/python

Each side runs in a process of its own, as it would alone, and the two take turns: what else the
machine does weighs on both, and the ratio is the median over paired turns. All are decoders of the
same width, layers, heads, sequences and batch, on bytes, with gelu MLPs four times as wide, AdamW
and a clipped gradient norm; `--dtypes=float32:bfloat16` gives the peer's products another dtype
than ours. Ours trains as `isoflop train` does, on new batches (which is charged to it), with rotary
positions, qk-norm and documents apart; a peer sees one batch again and again.

flax: Linen's own attention, dense and norm layers in one jitted function that donates its state.
torch: scaled_dot_product_attention, fused AdamW, bfloat16 by autocast; --compile: torch.compile.
nanodo: its own Trainer, imported from --path; without its internal metrics. It imports grain.

Nothing is downloaded; --python names an interpreter that has the peer's library.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

VOCAB = 256
LR, CLIP = 1e-3, 1.0
TURN_SECONDS, TURN_STEPS = 0.25, (2, 8)
WARM_TURNS = 2  # before any is measured: a heap grows for a few steps


class Shape(NamedTuple):
  """What is measured."""

  width: int
  depth: int
  heads: int
  seq_len: int
  batch_size: int
  dtype: str  # of the products' operands: float32 | bfloat16

  def tokens_BT(self) -> np.ndarray:
    shape = self.batch_size, self.seq_len
    return np.random.default_rng(0).integers(1, VOCAB, shape, dtype=np.int32)


# ------------------------------------------------------------ each: a shape -> its turn [s/step]


def by_steps(step: Callable[[], object], wait: Callable[[object], object]) -> Callable[[], float]:
  """Returns a turn: a few steps, of which only the last is waited for."""

  def take(steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
      result = step()
    wait(result)
    return (time.perf_counter() - began) / steps

  take(1)  # compiles
  take(1)
  fewest, most = TURN_STEPS
  steps = min(most, max(fewest, round(TURN_SECONDS / take(fewest))))
  return lambda: take(steps)


def ours(shape: Shape, _: argparse.Namespace) -> Callable[[], float]:
  from train.system import process

  process.keep_freed_pages()  # as `isoflop` does before it trains
  from configs import base
  from scaling.bench import steps, timing
  from train.data import dataset

  config = base.get_config()
  config.model.mlp, config.model.scan = "gelu", False
  config.data.seq_len = shape.seq_len
  size = f"{shape.width}/{shape.depth}/{shape.heads}"
  tokens = shape.batch_size * shape.seq_len
  (case,) = steps.cases(config, size, "decoder", shape.dtype, tokens)
  turn, _ = timing.training(case.config, dataset.prepare(case.config))
  return lambda: turn().step


def flax(shape: Shape, _: argparse.Namespace) -> Callable[[], float]:
  import jax
  import jax.numpy as jnp
  import optax
  from flax import linen as nn

  D, dtype = shape.width, jnp.dtype(shape.dtype)

  class Decoder(nn.Module):
    @nn.compact
    def __call__(self, tokens_BT):
      places = nn.Embed(shape.seq_len, D, dtype=dtype)(jnp.arange(shape.seq_len))
      x_BTD = nn.Embed(VOCAB, D, dtype=dtype)(tokens_BT) + places[None]
      mask = nn.make_causal_mask(tokens_BT)
      for _ in range(shape.depth):
        y_BTD = nn.LayerNorm(dtype=dtype, use_bias=False)(x_BTD)
        attention = nn.MultiHeadDotProductAttention(shape.heads, dtype=dtype, use_bias=False)
        x_BTD += attention(y_BTD, mask=mask)
        y_BTD = nn.LayerNorm(dtype=dtype, use_bias=False)(x_BTD)
        y_BTF = nn.gelu(nn.Dense(4 * D, dtype=dtype, use_bias=False)(y_BTD))
        x_BTD += nn.Dense(D, dtype=dtype, use_bias=False)(y_BTF)
      x_BTD = nn.LayerNorm(dtype=dtype, use_bias=False)(x_BTD)
      return nn.Dense(VOCAB, dtype=dtype, use_bias=False)(x_BTD).astype(jnp.float32)

  model, tokens_BT = Decoder(), shape.tokens_BT()
  optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(LR, weight_decay=0.1))

  def loss_of(params, tokens_BT):
    logits_BTV = model.apply(params, tokens_BT)[:, :-1]
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return cross_entropy(logits_BTV, tokens_BT[:, 1:]).mean()

  @jax.jit
  def init():
    params = model.init(jax.random.key(0), tokens_BT)
    return params, optimizer.init(params)

  def update(params, opt_state, tokens_BT):
    loss, grads = jax.value_and_grad(loss_of)(params, tokens_BT)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  update, state = jax.jit(update, donate_argnums=(0, 1)), init()

  def step():
    nonlocal state
    *state, loss = update(*state, tokens_BT)
    return state, loss

  return by_steps(step, jax.block_until_ready)


def nanodo(shape: Shape, args: argparse.Namespace) -> Callable[[], float]:
  path = Path(args.path).expanduser()
  if not args.path or not (path / "nanodo" / "train.py").is_file():
    raise ValueError(f"--path={args.path}: no nanodo/train.py there; name a checkout of nanodo")
  sys.path.insert(0, str(path))
  # What logs (it needs TensorFlow) and what cuts text: a step uses neither.
  for name in ("clu", "clu.metric_writers", "clu.periodic_actions", "sentencepiece"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].SentencePieceProcessor = object  # an annotation names it
  import jax
  from jax.sharding import Mesh
  from nanodo import model_factory, train
  from nanodo.configs import default

  c = default.get_config()
  c.batch_size, c.log_internal_metrics = shape.batch_size, False
  c.model.update({"D": shape.width, "H": shape.heads, "L": shape.seq_len, "N": shape.depth})
  c.model.update({"F": 4 * shape.width, "dtype": shape.dtype})
  c.opt.peak_learning_rate, c.opt.clip_by_global_norm = LR, CLIP
  module, get_loss = model_factory.get_model_and_loss(c, VOCAB)
  mesh = Mesh(np.array(jax.devices()), ("data",))
  shardings, state = train._init_train_state(c, module, jax.random.PRNGKey(0), mesh)
  trainer = train.Trainer(c, state, mesh, shardings, get_loss)
  tokens_BT = shape.tokens_BT()

  def step():
    return trainer.do_step(1, tokens_BT), trainer.state

  return by_steps(step, jax.block_until_ready)


def torch(shape: Shape, args: argparse.Namespace) -> Callable[[], float]:
  import torch
  from torch import nn
  from torch.nn import functional

  D, (B, T) = shape.width, (shape.batch_size, shape.seq_len)
  device = "cuda" if torch.cuda.is_available() else "cpu"

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norms = nn.ModuleList(nn.LayerNorm(D, bias=False) for _ in range(2))
      self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
      self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, x_BTD):
      qkv = self.qkv(self.norms[0](x_BTD)).view(B, T, 3, shape.heads, -1).permute(2, 0, 3, 1, 4)
      y_BHTK = functional.scaled_dot_product_attention(*qkv, is_causal=True)
      x_BTD = x_BTD + self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))
      hidden_BTF = functional.gelu(self.up(self.norms[1](x_BTD)), approximate="tanh")
      return x_BTD + self.down(hidden_BTF)

  class Decoder(nn.Module):
    def __init__(self):
      super().__init__()
      self.tokens, self.places = nn.Embedding(VOCAB, D), nn.Embedding(T, D)
      self.blocks = nn.Sequential(*(Block() for _ in range(shape.depth)))
      self.norm, self.head = nn.LayerNorm(D, bias=False), nn.Linear(D, VOCAB, bias=False)

    def forward(self, tokens_BT, targets_N):
      with torch.autocast(device, torch.bfloat16, enabled=shape.dtype == "bfloat16"):
        x_BTD = self.tokens(tokens_BT) + self.places.weight
        logits_BTV = self.head(self.norm(self.blocks(x_BTD)))
      return functional.cross_entropy(logits_BTV.float().view(-1, VOCAB), targets_N)

  model = Decoder().to(device)
  optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.1, fused=True)
  forward = torch.compile(model) if args.compile else model
  tokens_BT = torch.tensor(shape.tokens_BT(), dtype=torch.long, device=device)
  targets_N = tokens_BT.roll(-1, 1).flatten()

  def step():
    loss = forward(tokens_BT, targets_N)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    return loss

  return by_steps(step, lambda loss: loss.item())


SIDES = {"ours": ours, "flax": flax, "nanodo": nanodo, "torch": torch}
LIBRARIES = {"ours": "jax", "flax": "flax", "nanodo": "jax", "torch": "torch"}

# ------------------------------------------------------------------------------ two processes


class Side:
  """One side in a process of its own."""

  def __init__(self, name: str, python: str, shape: Shape, args: argparse.Namespace):
    given = {"shape": shape, "path": args.path, "compile": args.compile}
    self.name = name
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if name == "ours":  # what `isoflop` gives itself
      environment |= {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    self._process = subprocess.Popen(
      [python, __file__, f"--serve={name}", f"--given={json.dumps(given)}"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=environment,
      text=True,
    )
    self.version = self._read()

  def turn(self) -> float:
    """Returns the seconds of a step in one turn."""
    self._process.stdin.write("turn\n")
    self._process.stdin.flush()
    return self._read()

  def _read(self):
    line = self._process.stdout.readline()
    answer = json.loads(line) if line else {"error": f"its process ended ({self._process.wait()})"}
    if "error" in answer:
      raise ValueError(f"{self.name}: {answer['error']}")
    return answer["value"]

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def serve(name: str, given: dict) -> None:
  """Answers each line of the standard input with a turn, until it ends."""
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # what libraries print is no answer

  def answer(**message) -> None:
    answers.write(json.dumps(message) + "\n")

  try:
    turn = SIDES[name](Shape(*given["shape"]), argparse.Namespace(**given))
    answer(value=f"{LIBRARIES[name]} {importlib.metadata.version(LIBRARIES[name])}")
    for _ in sys.stdin:
      answer(value=turn())
  except ImportError as error:
    answer(error=f"{error} in {sys.executable}; name one that has it with --python")
  except Exception as error:  # a peer can raise anything
    answer(error=" ".join(f"{type(error).__name__}: {error}".split())[:300])


def compare(shape: Shape, args: argparse.Namespace) -> dict:
  """Returns the medians of a peer and of ours, and of the ratio of paired turns."""
  from scaling.bench.timing import round_robin
  from scaling.progress import Display

  peer_dtype, our_dtype = (shape.dtype.split(":") * 2)[:2]
  pythons = {args.peer: (args.python, peer_dtype), "ours": (sys.executable, our_dtype)}
  with contextlib.ExitStack() as stack:
    display = stack.enter_context(Display(f"{shape.width}/{shape.depth} {shape.dtype}"))
    display.show("compiling both sides")
    sides = {}
    for name, (python, dtype) in pythons.items():
      sides[name] = Side(name, python, shape._replace(dtype=dtype), args)
      stack.callback(sides[name].close)
    turns = {name: side.turn for name, side in sides.items()}
    round_robin(turns, WARM_TURNS)
    seconds = round_robin(turns, args.rounds, display)
  ratios = [peer / ours for peer, ours in zip(*seconds.values(), strict=True)]
  return {
    "peer": args.peer + " compiled" * args.compile,
    "versions": [side.version for side in sides.values()],
    **shape._asdict(),
    "peer_seconds": median(seconds[args.peer]),
    "our_seconds": median(seconds["ours"]),
    "ratio": median(ratios),
    "turns": seconds,
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--peer", choices=[name for name in SIDES if name != "ours"])
  parser.add_argument("--path", default="", help="nanodo: its checkout")
  parser.add_argument("--python", default=sys.executable, help="interpreter of the peer")
  parser.add_argument("--compile", action="store_true", help="torch: torch.compile")
  parser.add_argument("--sizes", default="64/2,128/4,256/6,384/8", help="width/layers[/heads]")
  parser.add_argument("--dtypes", default="float32", help="of both sides, or PEERS:OURS")
  parser.add_argument("--tokens", type=int, default=2048, help="of a step")
  parser.add_argument("--seq_len", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--output", default="", help="a .json file of all turns")
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  parser.add_argument("--given", type=json.loads, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    serve(args.serve, args.given)
    return
  if not args.peer or args.rounds < 1 or args.tokens < args.seq_len:
    parser.error("--peer is missing, or --rounds or --tokens are too few")
  rows = []
  for size in args.sizes.split(","):
    try:
      width, depth, *heads = (int(number) for number in size.split("/"))
    except ValueError:
      parser.error(f"--sizes={size}: write width/layers or width/layers/heads, as 64/2,128/4/4")
    for dtype in args.dtypes.split(","):
      heads = heads or [max(1, width // 32)]
      shape = Shape(width, depth, *heads, args.seq_len, args.tokens // args.seq_len, dtype)
      try:
        row = compare(shape, args)
      except (ValueError, OSError) as error:
        sys.exit(f"peers: {error}")
      rows.append(row)
      times = f"{1e3 * row['peer_seconds']:9.1f} ms, ours {1e3 * row['our_seconds']:9.1f} ms"
      print(f"{size:>8} {dtype:16} {row['peer']} {times}: ours is {row['ratio']:.2f} times as fast")
  print(f"{', '.join(rows[0]['versions'])}; {args.tokens} tokens a step, {args.rounds} rounds")
  if args.output:
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    Path(args.output).write_text(json.dumps({"date": date, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
  main()
