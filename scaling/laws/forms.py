"""Forms of scaling laws as data: a few lines each, fitted by one solver (`scaling.laws.solve`).

A form is a function of its parameters p and of the variables x of the runs, and says of each
parameter what kind it is and in which unit it is measured. Adding one is this:

  @form("N D", E=FLOOR, A=SCALE, B=SCALE, alpha=POWER, beta=POWER,
        units=lambda p, u: {"E": u.L, "A": u.L * u.N**p.alpha, "B": u.L * u.D**p.beta})
  def chinchilla(p, x):
    return p.E + p.A * x.N**-p.alpha + p.B * x.D**-p.beta

The units are what makes fitting easy: the solver sees N, D and losses of about one, and its
parameters are turned back. A parameter whose unit is not named has none. A form of N and D can be
fitted, sealed and judged (`fit.form`); its derivatives are JAX's, and its optimum along compute is
found numerically. Chinchilla's are in closed form, and need no jax: `scaling.laws.chinchilla`.

Variables: N parameters, D tokens processed, C training FLOPs, U unique tokens, P bits of the
weights, pretrained (1 where the run started from a pre-trained model, 0 from scratch).
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from configs.errors import DataError

MAD = 1.4826  # standard deviations of a normal law in one median |r|
FLAGS = ("pretrained",)  # variables that are not measured in a unit
FARSEER_N = 1e8  # parameters at which its levels and slopes are given


class Kind(NamedTuple):
  """How the solver sees a parameter, in units of its own."""

  log: bool  # whether it moves as its logarithm
  low: float  # least value
  high: float  # greatest value
  start: tuple[float, float]  # range from which starts are drawn, evenly in what moves

  def moved(self, value: ArrayLike) -> np.ndarray:
    """Turns values of the parameter into what moves."""
    return np.log(value) if self.log else np.asarray(value)


FLOOR = Kind(False, 0.0, math.inf, (0.0, 0.9))  # may vanish
SCALE = Kind(True, 1e-6, 1e30, (0.05, 2.0))  # positive
POWER = Kind(False, 1e-3, 4.0, (0.03, 1.2))  # an exponent, positive
SLOPE = Kind(False, -4.0, 4.0, (-0.4, 0.4))  # an exponent of either sign
SHAPE = Kind(True, 0.02, 50.0, (0.1, 5.0))  # positive and of order one
FACTOR = Kind(False, -50.0, 50.0, (-1.0, 1.0))  # of either sign
BEND = Kind(False, -1.0, 1.0, (-0.3, 0.3))  # an exponent of either sign, 0 among them


class Derivatives(NamedTuple):
  """The derivatives of a form's loss f in the parameters as they move, for the solver."""

  # (logs of the variables [n], theta [S, p]) -> arrays of S rows, the last of them f [S, n].
  terms: Callable[..., tuple[np.ndarray, ...]]
  gradient: Callable[..., np.ndarray]  # (logs, terms) -> df [S, p, n]
  # (logs, terms, phi, omega, major: each [S, n]) -> sums over the runs: gradient sum phi df [S, p],
  # Hessian sum omega df df' + phi ddf [S, p, p], and sum major df^2 [S, p].
  contract: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]


class Form(NamedTuple):
  """A law without its numbers: see the module's docstring."""

  name: str
  variables: tuple[str, ...]  # that it needs
  kinds: dict[str, Kind]  # of its parameters, by name
  loss: Callable[[Any, Any], Any]  # (parameters, variables) -> L [nats per token], in jax.numpy
  # (parameters, unit of each variable and of L) -> unit of each parameter that has one.
  units: Callable[[Any, Any], dict[str, Any]]
  doc: str  # the formula, its source, and what is left out
  # Variables that the solver sees in their own unit, since the form has another shape in any other.
  unscaled: tuple[str, ...] = ()
  # (logs of the variables [n], log losses [n]) -> starts [S, p]; None: a Latin hypercube.
  starts: Callable[..., np.ndarray] | None = None
  derivatives: Derivatives | None = None  # written by hand; None: JAX's

  @property
  def formula(self) -> str:
    """The right-hand side of L = ...: the first line of `doc`, up to a colon or a citation."""
    return re.split(r": | \([^()]*(?:et al|arXiv)", self.doc.splitlines()[0])[0].rstrip(".")


FORMS: dict[str, Form] = {}


def form(
  variables: str, units: Callable[[Any, Any], dict[str, Any]], name: str = "", **kinds: Kind
) -> Callable:
  """Decorates a loss function: makes a Form of it and enters it into `FORMS`, under its name."""

  def enter(loss: Callable[[Any, Any], Any]) -> Form:
    key = name or loss.__name__
    FORMS[key] = Form(key, tuple(variables.split()), kinds, loss, units, loss.__doc__ or "")
    return FORMS[key]

  return enter


def surfaces() -> list[str]:
  """Lists the forms of N and D alone, which have an optimum along compute."""
  return sorted(name for name, form in FORMS.items() if set(form.variables) == {"N", "D"})


def no_surface(form: Form) -> str:
  """Says why a form has no optimum along compute, and what can be done with it."""
  return (
    f"it is of {', '.join(form.variables)}, and not of N and D alone: it has no optimum along "
    f"compute; fit it in Python, laws.fit_runs(runs, options, FORMS[{form.name!r}])"
  )


def evaluate(form: Form, params: Mapping[str, Any], variables: Mapping[str, Any]) -> Any:
  """Computes L [nats per token] of a form, from parameters and variables in natural units.

  Raises:
    DataError: a variable is missing, as where an optimum is asked of a form of more than N and D.
  """
  import jax

  if missing := set(form.variables) - set(variables):
    raise DataError(f"form={form.name}: there is no {', '.join(missing)}: {no_surface(form)}")
  with jax.enable_x64(True):
    x = {name: jax.numpy.asarray(variables[name], float) for name in form.variables}
    return jax.device_get(form.loss(SimpleNamespace(**params), SimpleNamespace(**x)))


def robust_scale(size, weights):  # a root mean square is inflated by one run that is far off
  """Estimates the standard deviation of residuals of `size` [S, n] by their weighted median."""
  order, rows = np.argsort(size, axis=1), np.arange(len(size))
  total = np.cumsum(np.take_along_axis(weights, order, 1), axis=1)
  middle = np.argmax(total >= 0.5 * total[:, -1:], axis=1)
  return MAD * size[rows, order[rows, middle]]


def draw_starts(form: Form, size: int, rng: np.random.Generator) -> np.ndarray:
  """Draws starts [size, p]: each parameter even in its range, as in a Latin hypercube."""
  columns = []
  for kind in form.kinds.values():
    low, high = kind.moved(kind.start)
    share = (rng.permutation(size) + rng.uniform(size=size)) / size
    columns.append(low + (high - low) * share)
  return np.stack(columns, axis=1)


def _chinchilla_units(p, u):
  return {"E": u.L, "A": u.L * u.N**p.alpha, "B": u.L * u.D**p.beta}


@form("N D", _chinchilla_units, E=FLOOR, A=SCALE, B=SCALE, alpha=POWER, beta=POWER)
def chinchilla(p, x):
  """E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv:2203.15556, eq. 2)."""
  return p.E + p.A * x.N**-p.alpha + p.B * x.D**-p.beta


@form(
  "N D",
  lambda p, u: {"E": u.L, "A": u.L * u.N**p.alpha, "B": u.L * u.D**p.alpha},
  E=FLOOR, A=SCALE, B=SCALE, alpha=POWER,
)  # fmt: skip
def chinchilla_equal(p, x):
  """E + A / N^alpha + B / D^alpha: Chinchilla's law where N and D are to grow alike, as C^0.5.

  Muennighoff et al. 2023 (arXiv:2305.16264), appendix A, fit it under this constraint.
  """
  return p.E + p.A * x.N**-p.alpha + p.B * x.D**-p.alpha


@form(
  "N D",
  lambda p, u: _chinchilla_units(p, u) | {"B": u.L * u.D**p.beta * u.N**p.kappa},
  **chinchilla.kinds,
  kappa=SLOPE,
)
def cross(p, x):
  """E + A / N^alpha + B / N^kappa / D^beta: what data buys depends on size.

  Chinchilla's law is kappa = 0. After `farseer` (Li et al. 2025, arXiv:2506.10972), whose
  coefficient and exponent of D are both functions of N; here the coefficient alone, as a power.
  """
  return p.E + p.A * x.N**-p.alpha + p.B * x.N**-p.kappa * x.D**-p.beta


@form(
  "N D", lambda p, u: {"B": u.L, "G": u.L},
  A=SCALE, slope_A=FACTOR, alpha=BEND, B=SCALE, slope_B=FACTOR, beta=BEND,
  G=SCALE, slope_G=FACTOR, gamma=BEND,
)  # fmt: skip
def farseer(p, x):
  """G e^(g h(gamma)) + B e^(b h(beta)) / D^(A e^(a h(alpha))): all of D's term depends on N.

  With h(k) = (n^k - 1) / k of n = N / 1e8, it is eq. 3 of Farseer (Li et al. 2025,
  arXiv:2506.10972), exp(a3 N^gamma + b3) + exp(a2 N^beta + b2) / D^exp(a1 N^alpha + b1), written so
  that exponents near 0 are no edge: A, B and G are the values at 1e8 parameters, a, b and g
  (`slope_A`, `slope_B`, `slope_G`) the slopes of their logarithms there, in log N, and
  a1 = a / alpha / 1e8^alpha, b1 = log A - a / alpha (b2, a2 and b3, a3 likewise).
  """
  import jax.numpy as jnp

  log_n = jnp.log(x.N / FARSEER_N)

  def h(k):
    bent = jnp.abs(k) > 1e-7
    return jnp.where(bent, jnp.expm1(k * log_n) / jnp.where(bent, k, 1.0), log_n)

  data = p.slope_B * h(p.beta) - p.A * jnp.exp(p.slope_A * h(p.alpha)) * jnp.log(x.D)
  return p.G * jnp.exp(p.slope_G * h(p.gamma)) + p.B * jnp.exp(data)


def _farseer_starts(logs: Mapping[str, np.ndarray], y: np.ndarray) -> np.ndarray:
  """Makes a grid of starts [24, 9]: of D's exponent, the share of its term, and the slope of G."""
  log_n, log_d = float(np.mean(logs["N"])) - np.log(FARSEER_N), float(np.mean(logs["D"]))
  return np.array(
    [
      [np.log(exponent), 0.0, 0.05, np.log(share) + exponent * log_d, 0.0, 0.05,
       np.log(1 - share) - slope * log_n, slope, 0.05]
      for exponent, share, slope in itertools.product(
        (0.1, 0.2, 0.35, 0.6), (0.2, 0.4, 0.7), (-0.03, -0.15)
      )
    ]
  )  # fmt: skip


farseer = FORMS["farseer"] = farseer._replace(unscaled=("N", "D"), starts=_farseer_starts)


@form(
  "N D",
  lambda p, u: {"N_c": u.N * u.L ** (1 / p.alpha_N), "D_c": u.D * u.L ** (1 / p.alpha_D)},
  N_c=SCALE,
  D_c=SCALE,
  alpha_N=POWER,
  alpha_D=POWER,
)
def kaplan_nd(p, x):
  """[(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D (Kaplan et al. 2020, arXiv:2001.08361, 1.5).

  Their N leaves embeddings out, and their D is the size of a data set that is trained on until the
  test loss stops falling.
  """
  return ((p.N_c / x.N) ** (p.alpha_N / p.alpha_D) + p.D_c / x.D) ** p.alpha_D


@form("N D U", _chinchilla_units, **chinchilla.kinds, R_D=SHAPE, R_N=SHAPE)
def data_constrained(p, x):
  """Chinchilla's law of effective N and D when U unique tokens are repeated.

  With D = U (1 + R), R repeats: D' = U + U R_D (1 - exp(-R / R_D)). N' likewise from the excess of
  N over the size that U tokens are best for, with R_N (Muennighoff et al. 2023, arXiv:2305.16264,
  eqs. 5 and 6; they find R_D = 15.39, R_N = 5.31, appendix A). Left out: they tie alpha to beta,
  and fit R_D and R_N after the rest.
  """
  import jax.numpy as jnp

  unique = jnp.minimum(x.U, x.D)
  best = (p.alpha * p.A / (p.beta * p.B)) ** (1 / p.alpha) * unique ** (p.beta / p.alpha)
  size = jnp.minimum(best, x.N)

  def effective(base, total, worth):
    return base * (1 + worth * -jnp.expm1(-(total / base - 1) / worth))

  n, d = effective(size, x.N, p.R_N), effective(unique, x.D, p.R_D)
  return p.E + p.A * n**-p.alpha + p.B * d**-p.beta


@form(
  "N D P", lambda p, u: _chinchilla_units(p, u) | {"gamma": u.P}, **chinchilla.kinds, gamma=SHAPE
)
def precision(p, x):
  """E + A / (N (1 - exp(-P / gamma)))^alpha + B / D^beta: P bits in the weights while training.

  Kumar et al. 2024 (arXiv:2411.04330), eq. 3. Left out: the like factors of activations and of the
  key-value cache, and the loss that quantization after training adds (their eq. 2).
  """
  import jax.numpy as jnp

  n = x.N * -jnp.expm1(-x.P / p.gamma)
  return p.E + p.A * n**-p.alpha + p.B * x.D**-p.beta


@form(
  "N D pretrained",
  lambda p, u: kaplan_nd.units(p, u) | {"k": u.D ** (1 - p.given) * u.N**-p.size},
  **kaplan_nd.kinds,
  k=SCALE,
  given=POWER,
  size=POWER,
)
def transfer(p, x):
  """Kaplan's joint law of D + D_T, where pre-training is worth D_T = k D^given N^size tokens.

  Hernandez et al. 2021 (arXiv:2102.01293), eq. 1.1 for D_T; from text to Python they find k =
  1.9e4, given = .18, size = .38, with D and D_T in characters. Their joint law, eq. 6.1, is of D_T
  alone, for little data; D + D_T is also that of runs from scratch. It needs those and fine-tuned
  ones. Left out: the ossification of small models, where pre-training hurts.
  """
  d = x.D + x.pretrained * p.k * x.D**p.given * x.N**p.size
  return ((p.N_c / x.N) ** (p.alpha_N / p.alpha_D) + p.D_c / d) ** p.alpha_D


def _in_one_variable(v: str) -> None:
  """Enters the forms in one variable: N, D or C."""

  def of(values):
    return getattr(values, v)

  @form(
    v,
    lambda p, u: {"X_c": of(u) * u.L ** (1 / p.alpha)},
    f"kaplan_{v.lower()}",
    X_c=SCALE,
    alpha=POWER,
  )
  def kaplan(p, x):
    """(X_c / X)^alpha (Kaplan et al. 2020, arXiv:2001.08361).

    Of N it is their eq. 1.1, of D 1.2. Of C, as the runs spent it, it is their "naive" trend, alpha
    = .057; eq. 1.3, alpha = .050, is of C_min, the least compute at small batches: give that as C.
    """
    return (p.X_c / of(x)) ** p.alpha

  @form(
    v, lambda p, u: {"E": u.L, "A": u.L * of(u) ** p.alpha}, f"power_law_{v.lower()}",
    E=FLOOR, A=SCALE, alpha=POWER,
  )  # fmt: skip
  def power_law(p, x):
    """E + A / X^alpha: a power law with a floor (Henighan et al. 2020, arXiv:2010.14701)."""
    return p.E + p.A * of(x) ** -p.alpha

  @form(
    v, lambda p, u: {"E": u.L, "A": u.L * of(u) ** p.c0, "X_1": of(u)}, f"broken_{v.lower()}",
    E=FLOOR, A=SCALE, X_1=SHAPE, c0=POWER, c1=SLOPE, f=SHAPE,
  )  # fmt: skip
  def broken(p, x):
    """E + A X^-c0 (1 + (X / X_1)^(1 / f))^(-c1 f): a power law with one smooth break.

    Caballero et al. 2022 (arXiv:2210.14891), eq. 1 with n = 1. Left out: further breaks.
    """
    import jax.numpy as jnp

    bend = jnp.logaddexp(0.0, jnp.log(of(x) / p.X_1) / p.f)
    return p.E + p.A * of(x) ** -p.c0 * jnp.exp(-p.c1 * p.f * bend)


for _variable in "NDC":
  _in_one_variable(_variable)
