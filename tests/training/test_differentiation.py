"""The gradient that a step takes is that of torch.func, without torch's compiler."""

import subprocess
import sys

import pytest
import torch
from torch.func import grad_and_value, vmap

from sweep.training.differentiation import value_and_gradient


def pulled(at):
    """A value that does not depend on all of `at`, and more than a value."""
    w, unused = at["w"], at["unused"]
    hidden = torch.tanh(w @ w.T)
    return hidden.square().sum() + w.prod(), (hidden, {"doubled": 2 * unused})


@pytest.mark.parametrize("mapped", [False, True], ids=["alone", "mapped"])
def test_it_is_the_gradient_of_torch_func(mapped):
    lead = (3,) if mapped else ()
    at = {
        "w": torch.randn(*lead, 4, 2, dtype=torch.float64),
        "unused": torch.randn(*lead, 5, dtype=torch.float64),
    }

    def ours(at):
        return value_and_gradient(pulled, at)

    def theirs(at):
        gradient, (value, more) = grad_and_value(pulled, has_aux=True)(at)
        return value, more, gradient

    found, expected = ((vmap(f) if mapped else f)(at) for f in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found[2]["w"].shape == at["w"].shape
    assert not found[2]["unused"].any()
    assert not any(t.requires_grad for t in (found[0], found[1][0], *found[2].values()))


def test_what_depends_on_nothing_has_gradient_0():
    value, more, gradient = value_and_gradient(
        lambda at: (torch.ones(()), ()), (torch.ones(3), torch.ones(2))
    )
    assert (value, more) == (1, ())
    assert [g.tolist() for g in gradient] == [[0, 0, 0], [0, 0]]


def test_outer_gradients_stay_off():
    with torch.no_grad():
        value_and_gradient(pulled, {"w": torch.ones(2, 2), "unused": torch.ones(1)})
        assert not torch.is_grad_enabled()


def test_eager_steps_do_not_import_the_compiler():
    code = """
import sys
from tests.training.trials import BASE, experiment, train
train(experiment(BASE), {0: {"learning_rate": 0.1}}, "lanes")
print("torch.func" in sys.modules, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr
