"""The optimizers, what they train, the learning-rate rule in N, and the schedules.

The learning rate of a step is computed on the host and is an argument of the compiled step, so that
one program serves every rate, schedule and length.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from configs.errors import ConfigError
from model.block import depth_ratio


def base_learning_rate(optim: ConfigDict, n_params: int) -> float:
  """Returns `optim.lr`, or where that is 0 the rule lr_ref (N / lr_ref_params)^lr_exponent.

  N is body + head. The exponent -1/3 is that of Porian et al. 2024 (arXiv:2406.19146), section 4.
  """
  if optim.lr:
    return float(optim.lr)
  return float(optim.lr_ref * (n_params / optim.lr_ref_params) ** optim.lr_exponent)


def cooldown_start(optim: ConfigDict, steps: int) -> int:
  """Returns the first step of the decay of a `wsd` run of `steps` steps (0-based)."""
  return steps - max(1, round(optim.cooldown_fraction * steps))


def learning_rate(
  optim: ConfigDict, base: float, step: int, steps: int, tokens_per_step: int
) -> float:
  """Returns the learning rate of update `step` (0-based) in a run of `steps` updates.

  All schedules warm up linearly over `warmup_tokens`. `constant` stays; `cosine` decays over the
  whole run; `wsd` stays until `cooldown_start` and then decays as 1 - sqrt(x), with x from 0 to 1
  over the cooldown (Haegele et al. 2024, arXiv:2405.18392). While it stays, `wsd` is `constant` bit
  for bit: a trunk at a constant rate serves the cooldown of any length.
  """
  warmup = max(1, math.ceil(optim.warmup_tokens / tokens_per_step))
  lr = base * min(1.0, (step + 1) / warmup)
  if optim.schedule == "constant":
    return lr
  if optim.schedule == "cosine":
    decay = 0.5 * (1 + math.cos(math.pi * step / steps))
  else:
    start = cooldown_start(optim, steps)
    decay = 1 - math.sqrt(max(0, step - start) / (steps - start))
  return lr * (optim.final_lr_fraction + (1 - optim.final_lr_fraction) * decay)


def trainable(patterns: Sequence[str], paths: Collection[str]) -> set[str]:
  """Returns those of all parameters' paths that `patterns` (`train.trainable`) match whole."""
  trained = set[str]()
  for pattern in patterns:
    try:
      matched = {path for path in paths if re.fullmatch(pattern, path)}
    except re.error as error:
      raise ConfigError(f"train.trainable={patterns}: {pattern!r}: {error}") from None
    if not matched:
      raise ConfigError(
        f"train.trainable={patterns}: {pattern!r} matches no parameter; there are "
        f"{', '.join(sorted(paths))}"
      )
    trained |= matched
  if not trained:
    raise ConfigError("train.trainable=(): trains nothing; '.*' trains every parameter")
  return trained


def arrays(
  optim: FrozenConfigDict, shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, int]]:
  """Counts the float32 arrays of a trained parameter's shape, by its path: kept, and made.

  An optimizer that needs whole matrices makes two in an update: what goes in, and what comes out.
  """
  params = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
  state = jax.tree_util.tree_leaves_with_path(jax.eval_shape(optimizer(optim).init, params))
  kept, rule = Counter(parameter_of(path) for path, _ in state), OPTIMIZERS[optim.name]
  return {path: (kept[path], 2 * bool(rule.of_whole and taken(rule, path))) for path in shapes}


def parameter_of(state_path: tuple) -> str:
  """Returns the path of the parameter that an optimizer's array belongs to; "": to none."""
  # A parameter's path is nested dicts' keys; optax's states are named tuples around them.
  keys = itertools.takewhile(lambda key: hasattr(key, "key"), reversed(state_path))
  return "/".join(str(key.key) for key in reversed([*keys]))


def _matrices(params: Any) -> Any:
  """Returns which leaves are matrices: not norms, biases or embeddings."""
  return _map_paths(lambda path, _: path.endswith("kernel"), params)


def _map_paths(function: Callable[[str, Any], Any], params: Any) -> Any:
  def of(path: tuple, x: Any) -> Any:
    return function(jax.tree_util.keystr(path, simple=True, separator="/"), x)

  return jax.tree_util.tree_map_with_path(of, params)


def matrix_rate(model: FrozenConfigDict) -> float:
  """Returns the learning rate of matrices as a multiple of the run's, by `model.width_scaling`.

  muP: the rate of a matrix falls as 1 / fan in, those of embeddings, norms and biases stay, so that
  the best rate at `mup_base_width` is the best at every width (Yang et al. 2022, arXiv:2203.03466,
  table 3). It replaces the rule in N: set `optim.lr_exponent` to 0 with it.
  """
  return model.mup_base_width / model.width if model.width_scaling == "mup" else 1.0


def block_scales(model: FrozenConfigDict, path: str) -> tuple[float, float]:
  """Returns what multiplies the update and the epsilon of a parameter of a block; else 1.

  With m_L = depth / mup_base_depth and m_N = width / mup_base_width, beside `matrix_rate`: the
  update and its decay by m_L^(alpha - 1), which is 1 in CompleteP, epsilon by m_N^-1 m_L^-alpha
  (Dey et al. 2025, arXiv:2505.01618, table 1; alpha = 1/2: Yang et al. 2023, arXiv:2310.02244).
  """
  stack, block, _ = (*path.split("/"), "", "")[:3]
  if block != "block":
    return 1.0, 1.0
  own = stack == "encoder" and model.family == "encoder_decoder"
  ratio = depth_ratio(model, model.encoder_depth if own else model.depth)
  alpha = model.completep_alpha
  return ratio ** (alpha - 1), matrix_rate(model) * ratio**-alpha


class Rule(NamedTuple):
  """An optimizer: how gradients become the direction of an update."""

  # Of what a device holds, entry by entry; its state is arrays of the parameters' shapes.
  moments: Callable[[FrozenConfigDict], optax.GradientTransformation]
  takes: str = ".*"  # a regex of whole parameter paths; the rest is AdamW's
  of_whole: Callable[[jax.Array], jax.Array] | None = None  # then, of each layer's array, whole


def orthogonalize(momentum_IO: jax.Array) -> jax.Array:
  """Replaces the singular values of a matrix by about 1, and scales its entries to an RMS of 0.2.

  That is AdamW's, so that one learning rate and weight decay serve both (Liu et al. 2025,
  arXiv:2502.16982, section 2.2). Five Newton-Schulz steps (Jordan et al. 2024,
  kellerjordan.github.io/posts/muon) leave singular values between 0.7 and 1.2.
  """
  newton_schulz = optax.contrib.scale_by_muon(beta=0.0, nesterov=False)
  direction_IO, _ = newton_schulz.update(momentum_IO, newton_schulz.init(momentum_IO))
  return 0.2 * math.sqrt(max(momentum_IO.shape)) * direction_IO


OPTIMIZERS: dict[str, Rule] = {
  "adamw": Rule(lambda optim: optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)),
  "muon": Rule(
    lambda optim: optax.trace(optim.momentum, nesterov=True),
    takes=".*/block/.*/kernel",
    of_whole=orthogonalize,
  ),
}

OnWhole = Callable[[Callable[[jax.Array], jax.Array], Any], Any]  # see `Layout.on_whole`


def optimizer(
  optim: FrozenConfigDict, model: FrozenConfigDict | None = None, on_whole: OnWhole = jax.tree.map
) -> optax.GradientTransformation:
  """Makes the direction of `optim.name`; an update is `params - learning_rate * direction`.

  Weight decay is decoupled from the gradient and masked to matrices (Loshchilov and Hutter 2019);
  `matrix_rate` of `model` (resolved; None: not scaled) multiplies their step, not their decay.
  """
  rule = OPTIMIZERS[optim.name]
  direction = rule.moments(optim)
  if rule.of_whole:
    apply = optax.stateless(lambda updates, _: on_whole(rule.of_whole, updates))
    direction = optax.chain(direction, apply)
  if rule.takes != ".*":
    labels = partial(_map_paths, lambda path, _: optim.name if taken(rule, path) else "adamw")
    adamw = OPTIMIZERS["adamw"].moments(optim)
    direction = optax.partition({optim.name: direction, "adamw": adamw}, labels)
  scale = optax.identity()
  if model is not None and matrix_rate(model) != 1.0:
    scale = optax.masked(optax.scale(matrix_rate(model)), _matrices)
  decay = optax.add_decayed_weights(optim.weight_decay, mask=_matrices)
  chain = optax.chain(direction, scale, decay)
  if model is None:
    return chain

  def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    # Adam's g / (|g| + c eps) is that of the gradient g / c with eps.
    grads = _map_paths(lambda path, g: g / block_scales(model, path)[1], grads)
    direction, state = chain.update(grads, state, params)
    return _map_paths(lambda path, d: d * block_scales(model, path)[0], direction), state

  return optax.GradientTransformation(chain.init, update)


def taken(rule: Rule, path: str) -> bool:
  """Returns whether a rule updates the parameter at a path."""
  return re.fullmatch(rule.takes, path) is not None


def describe(config: ConfigDict, shapes: Mapping[str, Sequence[int]]) -> str:
  """Says how much of a resolved config's parameters is trained, and by which optimizer."""
  name, rule = config.optim.name, OPTIMIZERS[config.optim.name]
  sizes = {path: math.prod(shape) for path, shape in shapes.items()}
  trained = trainable(config.train.trainable, shapes)
  share = sum(sizes[path] for path in trained) / sum(sizes.values())
  mine = [path for path in trained if taken(rule, path)]
  by = sum(sizes[path] for path in mine) / sum(sizes[path] for path in trained)
  line = f"{name}: {len(mine)} of {len(trained)} leaves, {by:.0%} of parameters"
  line += "; adamw the rest" if len(mine) < len(trained) else ""
  return line + (f"; trained are {share:.1%} of all" if len(trained) < len(shapes) else "")
