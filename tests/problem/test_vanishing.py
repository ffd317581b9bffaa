"""Omega of Pascanu et al. (2013): its formula, its gradient, and what descending it does."""

import pytest
import torch
from torch.func import grad

from sweep.problem.networks import Recurrent
from sweep.problem.regularizers import Vanishing

ONE = torch.tensor(1.0, dtype=torch.float64)
B, T, H = 3, 6, 4


def network(activation, layers=1):
    torch.manual_seed(0)
    return Recurrent(
        "rnn", (T, 2), 2, hidden=H, layers=layers, dropout=0.0, bias=True, activation=activation
    ).double()


def trace(module, x):
    """(d, slope) of every layer, as the engines find them."""
    nudges = [
        torch.zeros(len(x), T, H, dtype=x.dtype, requires_grad=True) for _ in module.recurrent
    ]
    outputs, slopes = module(x, nudges)
    return torch.autograd.grad(outputs.square().sum(), nudges), [s.detach() for s in slopes]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_nudged_outputs_are_the_plain_ones_and_d_is_the_gradient_by_what_goes_into_the_activation(
    activation,
):
    module = network(activation, layers=2)
    x = torch.randn(B, T, 2, dtype=torch.float64)
    plain = module(x)
    nudges = [torch.zeros(B, T, H, dtype=torch.float64) for _ in range(2)]
    torch.testing.assert_close(module(x, nudges)[0], plain)
    ds, slopes = trace(module, x)
    layer = module.recurrent[1]
    # Moving the bias of layer 1 moves a_t at every step alike.
    module(x).square().sum().backward()
    torch.testing.assert_close(ds[1].sum((0, 1)), layer.bias_ih_l0.grad)
    torch.testing.assert_close(ds[0].sum((0, 1)), module.recurrent[0].bias_hh_l0.grad)
    # The chain rule back through time, which is all of d before the last step of the top layer.
    before = (ds[1][:, 1:] @ layer.weight_hh_l0) * slopes[1][:, :-1]
    torch.testing.assert_close(before, ds[1][:, :-1])


def test_the_value_and_gradient_are_the_published_ones():
    """Equations 9 and 10, row by row and step by step, with dx_{t+1}/dx_t = W diag(act')."""
    module = network("tanh")
    (d,), (slope,) = trace(module, torch.randn(B, T, 2, dtype=torch.float64))
    w = module.recurrent[0].weight_hh_l0.detach()
    total, gradient = 0.0, torch.zeros_like(w)
    for row in range(B):
        for t in range(T - 1):
            after, s = d[row, t + 1], slope[row, t]
            before = after @ w @ torch.diag(s)
            ratio = before.norm() / after.norm()
            total += (ratio - 1) ** 2
            outer = torch.outer(after, before * s) / (before.norm() * after.norm())
            gradient += 2 * (ratio - 1) * outer
    n = B * (T - 1)
    torch.testing.assert_close(Vanishing(0.3 * ONE).value(w, d, slope), 0.3 * total / n)
    found = grad(Vanishing(0.3 * ONE).value)(w, d, slope)
    torch.testing.assert_close(found, 0.3 * gradient / n)


def test_it_is_zero_where_lengths_are_kept():
    w = torch.linalg.qr(torch.randn(H, H, dtype=torch.float64))[0]
    d = torch.randn(B, T, H, dtype=torch.float64)
    assert float(Vanishing(ONE).value(w, d, torch.ones_like(d))) < 1e-25


def test_descent_on_it_stops_the_gradient_from_vanishing():
    torch.manual_seed(1)
    w = 0.1 * torch.randn(H, H, dtype=torch.float64)
    last = torch.randn(20, H, dtype=torch.float64)

    def back(w):
        d = [last]
        for _ in range(9):
            d.append(d[-1] @ w)
        return torch.stack(d[::-1], 1)

    def kept(w):
        d = back(w)
        return float((d[:, 0].norm(dim=1) / d[:, -1].norm(dim=1)).median())

    assert kept(w) < 1e-4
    for _ in range(1000):
        d = back(w)
        w = w - 0.1 * grad(Vanishing(ONE).value)(w, d, torch.ones_like(d))
    assert 0.8 < kept(w) < 1.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_and_steps_without_a_gradient_are_left_out(dtype):
    torch.manual_seed(2)
    w, d = torch.randn(H, H, dtype=dtype), torch.randn(B, T, H, dtype=dtype)
    slope = torch.rand(B, T, H, dtype=dtype)
    more = torch.cat([d, torch.zeros(2, T, H, dtype=dtype)])
    slopes = torch.cat([slope, torch.rand(2, T, H, dtype=dtype)])
    one = Vanishing(ONE.to(dtype))
    torch.testing.assert_close(one.value(w, more, slopes), one.value(w, d, slope))
    nothing = torch.zeros_like(d)
    assert one.value(w, nothing, slope) == 0
    # Saturated units pass nothing back: the ratio is 0 and its gradient 0, not NaN.
    assert one.value(w, d, nothing) == 1
    assert torch.equal(grad(one.value)(w, d, nothing), torch.zeros_like(w))
    small = one.value(w, d * 1e-8, slope)
    torch.testing.assert_close(small, one.value(w, d, slope))


def test_at_lambda_zero_it_is_zero():
    w, d = torch.randn(H, H), torch.randn(B, T, H)
    off = Vanishing(torch.tensor(0.0))
    assert off.value(w, d, d) == 0
    assert torch.equal(grad(off.value)(w, d, d), torch.zeros_like(w))
