"""The advice after a divergence against problems whose bound is known."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.training.advice import Recipe, advise, growth, stable_rate

from .test_divergence import CASES, DIABETES, LOGISTIC, H
from .trials import experiment, merge, train


def advised(text: str) -> float:
    return float(re.search(r"lower learning_rate below ([\d.e+-]+)", text)[1])


@pytest.mark.parametrize("case", CASES)
def test_the_rate_advised_is_the_bound_of_a_quadratic(case):
    """From the growth of the norm alone, at any rate above the bound, within 1%."""
    changes, bound = CASES[case]
    rates = dict(enumerate([1.01 * bound, 1.1 * bound, 2 * bound, 5 * bound]))
    results = train(
        experiment(merge(DIABETES, **changes)), {i: {"learning_rate": r} for i, r in rates.items()}
    )
    for i in rates:
        advice = results[i].failure.advice
        if case == "decoupled":
            # Decay beside heavy ball follows none of the laws.
            assert "a guess: decay beside momentum" in advice or "the decay alone" in advice
            continue
        assert advised(advice) == pytest.approx(bound, rel=0.01), advice
        assert "from layer linear.weight" in advice and "guess" not in advice


def test_the_rate_advised_converges_and_one_a_hundredth_above_it_does_not():
    exp = experiment(DIABETES)
    failure = train(exp, {0: {"learning_rate": 3 * 2 / H}})[0].failure
    rate = advised(failure.advice)
    results = train(exp, {0: {"learning_rate": 0.99 * rate}, 1: {"learning_rate": 1.02 * rate}})
    assert results[0].failure is None and results[1].failure is not None


@given(
    st.floats(0.01, 10), st.floats(0, 0.95), st.booleans(), st.floats(1.03, 20), st.floats(1e-3, 1)
)
@settings(max_examples=30)
def test_the_bound_is_that_of_the_recurrence(curvature, momentum, nesterov, times, start):
    """torch's own sgd on h w^2 / 2 at `times` the bound grows so that the formula gives it back."""
    nesterov = nesterov and momentum > 0
    most = 2 * (1 + momentum) / (1 + 2 * momentum) if nesterov else 2 * (1 + momentum)
    bound = most / curvature
    w = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=times * bound, momentum=momentum, nesterov=nesterov)
    norms = []
    while len(norms) < 2000 and (not norms or norms[-1] < 1e100):
        w.grad = curvature * w.detach()
        norms.append(float(w.grad.abs()))
        optimizer.step()
    r = norms[-1] / norms[-2]
    assert stable_rate(times * bound, momentum, nesterov, r) == pytest.approx(bound, rel=0.02)


SGD = Recipe("sgd", [0.5] * 40)
GROWING = [1.3**i for i in range(40)]


def test_growth_is_measured_up_to_the_last_finite_norm_and_at_one_rate():
    found = growth([5.0, 3.0, *GROWING, math.inf], [0.5] * 43)
    assert found.steady and found.steps == 39 and found.rate == pytest.approx(1.3)
    warming = [0.01 * i for i in range(30)] + [0.5] * 10
    assert growth(GROWING, warming).steps == 9
    assert growth([1.0, 2.0, 1.5, 1.8, 1.2, 1.9] * 6, [0.5] * 36) is None
    assert growth([math.nan], [0.5]) is growth([0.0], [0.5]) is None


@pytest.mark.parametrize(
    ("reason", "norms", "recipe", "words"),
    [
        ("loss_explosion", GROWING, SGD, ["grew 1.3x a step for 39 steps from layer rnn.weight_hh",
         "below 0.434", "or set clip_norm 1"]),
        ("loss_explosion", GROWING, SGD._replace(clip_norm=1.0), ["a guess: the gradient is clip"]),
        ("loss_explosion", GROWING, SGD._replace(optimizer="adam"),
         ["for example to 0.001", "a guess: the steps of adam are not gradient steps"]),
        ("loss_explosion", [1.1 ** (i * i / 8) for i in range(40)], SGD, ["unevenly", "a guess"]),
        ("loss_explosion", [1.0] * 40, SGD._replace(weight_decay=4.2),
         ["learning_rate times weight_decay is 2.1, above 2", "decay below 4,", "below 0.476"]),
        ("loss_explosion", [1.0] * 40, SGD._replace(weight_decay=4.2, momentum=0.9),
         ["no steady growth", "a guess"]),
        ("gradient_explosion", [1.0] * 39 + [1e9], SGD, ["jumped from 1 to 1e+09", "a guess"]),
        ("nonfinite_loss", [1.0] * 39 + [math.nan], SGD,
         ["nothing grew before it in layer rnn.weight_hh", "may be innocent"]),
        ("nonfinite_loss", [math.nan], SGD, ["first step, before any update", "not in the learn"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_advice_says_what_follows_from_the_numbers_and_when_nothing_does(
    reason, norms, recipe, words
):
    advice = advise(reason, "rnn.weight_hh", norms, recipe, first_norm=1.0)
    for word in words:
        assert word in advice, advice
    assert "\n" not in advice and not advice.endswith(".")


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_decay_that_explodes_by_itself_is_named_whatever_the_clipping(clip):
    study = merge(LOGISTIC, train={"weight_decay": 2.0, "clip_norm": clip, "epochs": 2500})
    advice = train(experiment(study), {0: {"learning_rate": 1.02}})[0].failure.advice
    assert "learning_rate times weight_decay is 2.04, above 2" in advice
    assert "learning_rate below 1" in advice
