"""What to change after a divergence, in one sentence that follows from the recorded numbers.

The law behind the number. On a quadratic of largest curvature h, gradient descent at rate lr
multiplies the error along that direction by 1 - lr*h each step; when it diverges, the gradient's
norm grows by r = lr*h - 1 a step, so that h = (1 + r) / lr, and the rate has to be below

    2 / h = 2 lr / (1 + r).

With momentum b the error follows a two-step recurrence; the unstable root is -r, and

    heavy ball   z^2 - (1 + b - lr h) z + b = 0         lr h = (r + 1)(r + b) / r
    Nesterov     z^2 - (1 + b)(1 - lr h) z + b (1 - lr h) = 0
                                                        lr h = 1 + r^2 / ((1 + b) r + b)

are stable below lr h = 2 (1 + b) and 2 (1 + b) / (1 + 2 b) (Polyak 1964,
doi:10.1016/0041-5553(64)90137-5, and the roots at -1). h includes lambda and weight_decay. Where
the loss is no quadratic, h is its curvature where training blew up.

A decay outside the clipped gradient multiplies the weights by 1 - lr * weight_decay by itself.
Where neither law holds (a step that is normalised or clipped, growth that is not geometric), the
sentence says that its number is a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

LEAST_STEPS, LEAST_GROWTH = 3, 3.0
"""What counts as growth of the norm: over so many steps, to so many times where it began."""
STEADY = 0.15
"""Growth is geometric where both halves of its last part have log r within this share of it."""
SAME_RATE = 0.02
JUMP = 10.0
GUESS = 1 / 3
USUAL_RATE = {"adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-2}
"""torch's own defaults."""


class Recipe(NamedTuple):
    """How the updates were made. `rates` are the learning rates of the recorded steps.

    `weight_decay` is what no clipping touches: torch's own, decoupled or not.
    """

    optimizer: str
    rates: Sequence[float]
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    clips_otherwise: bool = False
    """By layer, or by a percentile of the norms so far."""
    decoupled: bool = False

    @property
    def clips(self) -> bool:
        return self.clip_norm is not None or self.clip_value is not None or self.clips_otherwise

    @property
    def bound_is_known(self) -> bool:
        """Whether the growth of the norm tells the largest stable rate."""
        return self.optimizer == "sgd" and not self.clips and not self.decays_beside_momentum

    @property
    def decays_beside_momentum(self) -> bool:
        """Then the recurrence is none of those whose bound is known."""
        return self.decoupled and self.momentum > 0 and self.weight_decay > 0

    @property
    def most_decay(self) -> float:
        """What lr * weight_decay must stay below: the decay is a quadratic of curvature 1."""
        if self.decoupled or self.optimizer == "adamw":
            return 2.0
        if self.optimizer == "sgd":
            return _most_curvature(self.momentum, self.nesterov)
        return math.inf


class Growth(NamedTuple):
    """The norm grew `rate`-fold a step over `steps` steps, geometrically if `steady`."""

    rate: float
    steps: int
    steady: bool


def growth(norms: Sequence[float], rates: Sequence[float]) -> Growth | None:
    """How the gradient's norm grew up to its last finite value, None if it did not.

    Counted from its least value on, while the learning rate was that of the end (to 2%). Where
    the growth is steady its rate is that of the last half, in which the fastest mode has outgrown
    the others; else the average.
    """
    end = len(norms)
    while end and not 0 < norms[end - 1] < math.inf:
        end -= 1
    start = end
    while start and 0 < norms[start - 1] < math.inf:
        if abs(rates[start - 1] - rates[end - 1]) > SAME_RATE * rates[end - 1]:
            break
        start -= 1
    logs = [math.log(norm) for norm in norms[start:end]]
    if not logs:
        return None
    logs = logs[len(logs) - 1 - logs[::-1].index(min(logs)) :]
    steps = len(logs) - 1
    if steps < LEAST_STEPS or logs[-1] - logs[0] < math.log(LEAST_GROWTH):
        return None
    middle, late = steps - (steps + 1) // 2, steps - (steps + 3) // 4
    slope = (logs[-1] - logs[middle]) / (steps - middle)
    first = (logs[late] - logs[middle]) / (late - middle)
    second = (logs[-1] - logs[late]) / (steps - late)
    steady = slope > 0 and abs(first - second) <= STEADY * slope
    if not steady:
        slope = (logs[-1] - logs[0]) / steps
    return Growth(math.exp(min(slope, 700.0)), steps, steady)


def stable_rate(rate: float, momentum: float, nesterov: bool, r: float) -> float:
    """The learning rate below which a quadratic is stable on which sgd at `rate` grows r-fold.

    r > 1 is the growth of the gradient's norm a step; formulas at the top of this file.
    """
    if nesterov:
        curvature = 1 + r * r / ((1 + momentum) * r + momentum)
    else:
        curvature = (r + 1) * (1 + momentum / r)
    return rate * _most_curvature(momentum, nesterov) / curvature


def _most_curvature(momentum: float, nesterov: bool) -> float:
    """The greatest stable lr * h."""
    return 2 * (1 + momentum) / (1 + 2 * momentum) if nesterov else 2 * (1 + momentum)


def advise(
    reason: str, layer: str | None, norms: Sequence[float], recipe: Recipe, first_norm: float
) -> str:
    """One sentence: what grew, how fast, from which layer, and what to set instead.

    `norms` are those of the recorded steps, the bad one last; `first_norm` is the run's first.
    """
    rate, found = recipe.rates[-1], growth(norms, recipe.rates)
    bound = math.inf
    if found is not None and recipe.bound_is_known:
        bound = stable_rate(rate, recipe.momentum, recipe.nesterov, found.rate)
    steady = found is not None and found.steady and bound < math.inf
    most = recipe.most_decay
    if rate * recipe.weight_decay > most and not (steady and bound < most / recipe.weight_decay):
        return (
            f"learning_rate times weight_decay is {rate * recipe.weight_decay:.3g}, above "
            f"{most:.3g}: the decay alone makes the weights grow, clipped or not; lower "
            f"weight_decay below {below(most / rate)}, or learning_rate below "
            f"{below(most / recipe.weight_decay)}"
        )
    if recipe.optimizer == "lbfgs":
        return (
            "lbfgs takes steps of any length along its guess of the curvature: set "
            f"line_search_fn='strong_wolfe', or {_guess(recipe, bound)} (a guess)"
        )
    if len(norms) == 1 and reason != "nonfinite_parameter":
        where = f" in layer {layer}" if layer else ""
        return (
            f"it happened at the first step, before any update{where}: look for the cause in "
            "the data, the initial weights or the loss, not in the learning rate"
        )
    origin = f" from layer {layer}" if layer else ""
    clip = _clip(first_norm, recipe)
    if found is not None:
        pace = "a step" if found.steady else "a step on average, unevenly,"
        seen = f"the norm grew {found.rate:.3g}x {pace} for {found.steps} steps{origin}"
        if steady:
            return f"{seen}: lower learning_rate below {below(bound)}{clip}"
        return f"{seen}: {_guess(recipe, bound)}{clip} (a guess: {_why(recipe)})"
    finite = [norm for norm in norms if 0 < norm < math.inf]
    usual = sorted(finite[:-1])[(len(finite) - 1) // 2] if len(finite) > 1 else math.inf
    if reason.startswith("nonfinite") and not (finite and finite[-1] > JUMP * usual):
        where = f" in layer {layer}" if layer else ""
        return (
            f"nothing grew before it{where}: look for a logarithm of 0, a division by 0 or an "
            "overflow in the model or the data; the learning rate may be innocent"
        )
    seen = f"no steady growth of the norm was recorded{origin}"
    if finite and finite[-1] > JUMP * usual:
        seen = f"the norm jumped from {usual:.3g} to {finite[-1]:.3g}{origin}"
        if recipe.bound_is_known:
            bound = stable_rate(rate, recipe.momentum, recipe.nesterov, finite[-1] / usual)
    return f"{seen}: {_guess(recipe, bound)}{clip} (a guess: no growth to measure)"


def _guess(recipe: Recipe, bound: float) -> str:
    """`lower learning_rate, for example to 0.3`: to `bound`, torch's default or a third."""
    rate = recipe.rates[-1]
    usual = USUAL_RATE.get(recipe.optimizer, 0.0)
    to = min(GUESS * rate, bound, usual if usual and usual < rate else math.inf)
    return f"lower learning_rate, for example to {_digits(to, 2)}"


def _why(recipe: Recipe) -> str:
    """Why growth does not tell the bound."""
    if recipe.optimizer != "sgd":
        return f"the steps of {recipe.optimizer} are not gradient steps, so growth tells no bound"
    if recipe.clips:
        return "the gradient is clipped, so growth tells no bound"
    if recipe.decays_beside_momentum:
        return "decay beside momentum bends the law, so growth tells no bound"
    return "growth that is not geometric tells no bound"


def _clip(usual: float, recipe: Recipe) -> str:
    """`, or set clip_norm 1`: the usual norm, rounded up to 1, 2 or 5 times a power of ten."""
    if recipe.clip_norm is not None or recipe.optimizer != "sgd" or not 0 < usual < math.inf:
        return ""
    power = 10.0 ** math.floor(math.log10(usual))
    nice = next(power * m for m in (1, 2, 5, 10) if power * m >= usual * (1 - 1e-9))
    return f", or set clip_norm {nice:.3g}"


def below(bound: float) -> str:
    """Three digits, rounded down: what is below them is below the bound."""
    return _digits(bound, 3)


def _digits(value: float, digits: int) -> str:
    """So many significant digits of a positive number, rounded down."""
    text = f"{value:.{digits - 1}e}"
    if float(text) > value:
        last = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
        text = f"{float(text) - last:.{digits - 1}e}"
    return f"{float(text):.{digits}g}"
