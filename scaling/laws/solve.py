"""One solver for every form: damped Newton from many starts at once, derivatives by JAX.

It minimises sum_i w_i Huber_delta(log L(x_i) - log L_i), as `estimate.minimise` does for the
Chinchilla law (which has its derivatives by hand, and needs no compilation). Starts, resamples and
held-out budgets are rows of weights, so one compilation serves them all.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from configs.errors import ConfigError, DataError
from scaling.laws.forms import FLAGS, Form, evaluate

MAX_STEPS = 200
STARTS = 48
MANY = 5000  # of more runs a random part decides between the starts


class State(NamedTuple):
  """One start on its way: its parameters [p], damping, threshold of Huber, and whether it rests."""

  theta: jax.Array
  damping: jax.Array
  width: jax.Array
  rests: jax.Array
  steps: jax.Array


@dataclasses.dataclass(frozen=True)
class FormFit:
  """A form fitted to runs.

  Attributes:
    form: the form.
    params: its parameters by name, in natural units.
    draws: of each bootstrap resample, arrays [R]; empty without resamples.
    residuals: log of observed over fitted loss [n].
    costs: where each start ended [S].
    converged: whether it is a minimum there [S].
    at_bound: parameters that ended at the edge of what is allowed.
  """

  form: Form
  params: dict[str, float]
  draws: dict[str, np.ndarray]
  residuals: np.ndarray
  costs: np.ndarray
  converged: np.ndarray
  at_bound: tuple[str, ...]


def fit_form(
  form: Form,
  variables: Mapping[str, ArrayLike],
  loss: ArrayLike,
  delta: float = 1e-3,
  starts: int = STARTS,
  resamples: int = 0,
  seed: int = 0,
) -> FormFit:
  """Fits a form to runs.

  Args:
    form: one of `forms.FORMS`, or your own.
    variables: arrays [n] by name, those of `form.variables` at least.
    loss: of the runs [n, nats per token].
    delta: Huber's threshold on log loss.
    starts: number of starts S.
    resamples: of a bootstrap over the runs.
    seed: of starts and resamples.

  Returns:
    The fit, from the start that ended lowest.

  Raises:
    UserError: a variable is missing, not positive and finite or of another length; fewer runs than
      parameters; delta is not positive; resamples of too many runs; or no start found a minimum.
  """
  problem = make_problem(form, variables, loss)
  n, size = problem.y.shape[0], len(form.kinds)
  if n <= size:
    raise DataError(f"form={form.name}: {n} runs for {size} parameters; train more")
  if not delta > 0:
    raise ConfigError(f"fit.delta={delta}: must be a positive number, 1e-3 for instance")
  rng = np.random.default_rng(seed)
  if n > MANY and resamples:
    raise DataError(f"resamples={resamples}: for {MANY} runs at most, not {n}; choose 0 or a part")
  some = part(problem, rng)
  ones = np.ones((starts, some.y.shape[0]))
  theta, costs, converged = minimise(some, ones, draw(form, starts, rng), delta)
  if not converged.any():
    raise DataError(f"form={form.name}: none of {starts} starts found a minimum on {n} runs")
  best = theta[np.argmin(np.where(converged, costs, np.inf))]
  if n > MANY:
    best = minimise(problem, np.ones((1, n)), best[None], delta)[0][0]
  draws = {}
  if resamples:
    weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    again = minimise(problem, weights, np.tile(best, (resamples, 1)), delta)[0]
    draws = natural(problem, again)
  params = {name: float(value) for name, value in natural(problem, best).items()}
  low, high = bounds(form)
  return FormFit(
    form=form,
    params=params,
    draws=draws,
    residuals=np.log(np.asarray(loss, float) / evaluate(form, params, dict(variables))),
    costs=costs,
    converged=converged,
    at_bound=tuple(
      n for n, at in zip(form.kinds, (best <= low) | (best >= high), strict=True) if at
    ),
  )


class Problem(NamedTuple):
  """Runs as the solver sees them: variables x {name: [n]} and log losses y [n], about 1 and 0."""

  form: Form
  x: dict[str, np.ndarray]
  y: np.ndarray
  units: dict[str, float]  # of each variable and of L, which their geometric mean is


def make_problem(form: Form, variables: Mapping[str, ArrayLike], loss: ArrayLike) -> Problem:
  """Returns runs in units of their geometric means; see `fit_form` for what is refused."""
  loss = np.asarray(loss, float)
  columns = {"loss": loss}
  for name in form.variables:
    if name not in variables:
      raise DataError(
        f"form={form.name}: needs {', '.join(form.variables)}, and there is no {name}; give it"
      )
    columns[name] = np.asarray(variables[name], float)
    if columns[name].shape != loss.shape:
      raise DataError(
        f"form={form.name}: {columns[name].size} values of {name} for {loss.size} losses"
      )
  for name, values in columns.items():
    least = -1e-300 if name in FLAGS else 0.0
    bad = np.flatnonzero(~(np.isfinite(values) & (values > least)))
    if len(bad):
      raise DataError(
        f"form={form.name}, run {bad[0]}, {name}: {values[bad[0]]} is not a positive finite number"
      )
  units = {k: 1.0 if k in FLAGS else float(np.exp(np.log(v).mean())) for k, v in columns.items()}
  if "U" in units:  # unique tokens are tokens
    units["U"] = units["D"]
  unit_loss = units.pop("loss")
  x = {name: columns[name] / units[name] for name in form.variables}
  return Problem(form, x, np.log(loss / unit_loss), units | {"L": unit_loss})


def part(problem: Problem, rng: np.random.Generator) -> Problem:
  """Returns the problem, or of more than `MANY` runs that of a random part of them."""
  n = problem.y.shape[0]
  if n <= MANY:
    return problem
  index = rng.choice(n, MANY, replace=False)
  x = {name: values[index] for name, values in problem.x.items()}
  return problem._replace(x=x, y=problem.y[index])


def bounds(form: Form) -> tuple[np.ndarray, np.ndarray]:
  """Returns the box [p], [p] of the parameters as they move."""
  ends = [[np.log(v) if k.log else v for v in (k.low, k.high)] for k in form.kinds.values()]
  low, high = np.array(ends, float).T
  return low, high


def draw(form: Form, size: int, rng: np.random.Generator) -> np.ndarray:
  """Returns starts [size, p]: each parameter even in its range, as in a Latin hypercube."""
  columns = []
  for kind in form.kinds.values():
    low, high = (np.log(v) if kind.log else v for v in kind.start)
    share = (rng.permutation(size) + rng.uniform(size=size)) / size
    columns.append(low + (high - low) * share)
  return np.stack(columns, axis=1)


def natural(problem: Problem, theta: np.ndarray) -> dict[str, np.ndarray]:
  """Returns parameters by name in natural units, from those that move [..., p]."""
  kinds = problem.form.kinds
  values = {
    name: np.exp(theta[..., i]) if kind.log else theta[..., i]
    for i, (name, kind) in enumerate(kinds.items())
  }
  units = problem.form.units(SimpleNamespace(**values), SimpleNamespace(**problem.units))
  return {name: value * units.get(name, 1.0) for name, value in values.items()}


def minimise(
  problem: Problem, weights: np.ndarray, theta: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Minimises the Huber loss from each of S starts.

  Args:
    problem: n runs.
    weights: how often each run counts [S, n]; 0 leaves it out.
    theta: starts [S, p], as they move.
    delta: Huber's threshold on log loss.

  Returns:
    theta [S, p], the cost [S] there, and whether it is a minimum [S]: convex, and a Newton step
    would gain less than 1e-9 of the cost.
  """
  low, high = bounds(problem.form)
  with jax.enable_x64(True):
    found = _solve(problem.form.loss, tuple(problem.form.kinds.items()), problem.x, problem.y,
                   weights, theta, low, high, delta)  # fmt: skip
    theta, cost, converged = jax.device_get(found)
  return theta, np.nan_to_num(cost, nan=np.inf), converged


# Compiled plainly: a fit runs for less long than its optimisation by the compiler takes.
@functools.partial(
  jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": "0"}
)
def _solve(loss, kinds, x, y, weights, theta, low, high, delta):
  """Runs every start to its end; all arguments as in `minimise`."""
  space = SimpleNamespace(**x)

  def residual(theta):
    values = {
      name: jnp.exp(theta[i]) if kind.log else theta[i] for i, (name, kind) in enumerate(kinds)
    }
    return jnp.log(loss(SimpleNamespace(**values), space)) - y

  def cost(r, w, width):
    clipped = jnp.minimum(jnp.abs(r), width)
    return jnp.sum(w * clipped * (jnp.abs(r) - 0.5 * clipped))

  def projected(theta, w, width):
    """Returns gradient, Hessian and a positive diagonal; parameters at their bounds are held."""
    r, slope = residual(theta), jax.jacfwd(residual)(theta)
    pull = w * jnp.clip(r, -width, width)
    bend = jax.hessian(lambda t: jnp.sum(pull * residual(t)))(theta)
    major = w * jnp.minimum(1.0, width / jnp.maximum(jnp.abs(r), 1e-300))
    scale = jnp.sum(major[:, None] * slope**2, axis=0)
    scale = scale + 1e-12 * jnp.max(scale) + 1e-300
    gradient = pull @ slope
    hessian = (slope.T * (w * (jnp.abs(r) < width))) @ slope + bend
    held = (theta <= low) & (gradient > 0) | (theta >= high) & (gradient < 0)
    hessian = jnp.where(held[:, None] | held[None, :], 0.0, hessian) + jnp.diag(held * scale)
    return gradient * ~held, hessian, scale

  def step(state, w):
    theta, damping, width, _, steps = state
    gradient, hessian, scale = projected(theta, w, width)
    move = jnp.linalg.solve(hessian + damping * jnp.diag(scale), gradient)
    trial = jnp.clip(theta - move, low, high)
    moved = jnp.max(jnp.abs(trial - theta))
    better = cost(residual(trial), w, width) <= cost(residual(theta), w, width)
    tighten = better & (moved < 0.05)
    return State(
      theta=jnp.where(better, trial, theta),
      damping=jnp.where(better, jnp.maximum(damping * 0.1, 1e-12), jnp.maximum(damping, 1e-6) * 8),
      width=jnp.where(tighten, jnp.maximum(delta, width / 4), width),
      rests=(width <= delta) & (moved <= 1e-10) | (damping > 1e30),
      steps=steps + 1,
    )

  def run(theta, w):
    theta = jnp.clip(theta, low, high)
    r = residual(theta)
    wide = jnp.maximum(delta, 3 * jnp.sqrt(jnp.sum(w * r**2) / jnp.sum(w)))
    start = State(theta, jnp.asarray(1e-3), wide, jnp.asarray(False), jnp.asarray(0))
    end = jax.lax.while_loop(
      lambda s: ~s.rests & (s.steps < MAX_STEPS), lambda s: step(s, w), start
    ).theta
    gradient, hessian, scale = projected(end, w, delta)
    root = jnp.sqrt(scale)
    curvature, axes = jnp.linalg.eigh(hessian / (root[:, None] * root[None, :]))
    decrease = jnp.sum((axes.T @ (gradient / root)) ** 2 / jnp.maximum(curvature, 1e-9))
    lowest = cost(residual(end), w, delta)
    good = (curvature[0] > -1e-6) & (decrease <= 1e-9 * lowest + 1e-20)
    return end, lowest, good

  return jax.vmap(run)(theta, weights)
