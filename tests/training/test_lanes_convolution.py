"""Convolutions and poolings written out: PyTorch's own values and gradients, mapped and not."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from sweep.training import lanes_convolution
from sweep.training.lanes_convolution import WrittenOut

CONVOLUTIONS = {
    1: (F.conv1d, (3, 2, 9), (4, 2, 3)),
    2: (F.conv2d, (3, 2, 8, 7), (5, 2, 3, 2)),
    3: (F.conv3d, (2, 2, 5, 6, 7), (3, 2, 3, 2, 1)),
}
POOLINGS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def both_ways(function, *tensors, **options):
    """(value, gradients) of PyTorch's own operation, and of what it is written out as."""
    found = []
    for way in (torch.enable_grad(), WrittenOut()):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        with way:
            value = function(*leaves, **options)
        pull = torch.arange(value.numel(), dtype=value.dtype).reshape(value.shape).sin()
        found.append((value, torch.autograd.grad(value, leaves, pull)))
    return found


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("dimensions", CONVOLUTIONS)
def test_a_convolution_is_that_of_pytorch(dimensions):
    function, *shapes = CONVOLUTIONS[dimensions]
    x, weight = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    bias = torch.randn(len(weight), dtype=torch.float64)
    for stride, padding, dilation in itertools.product([1, 2], [0, 1, "same", "valid"], [1, 2]):
        if stride > 1 and padding == "same":
            continue
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        own, written = both_ways(function, x, weight, bias, **options)
        torch.testing.assert_close(written, own)
    a_side_each = {
        "stride": [2, 1, 1][:dimensions],
        "padding": (0, 2, 1)[:dimensions],
        "dilation": [1, 2, 1][:dimensions],
    }
    own, written = both_ways(function, x, weight, **a_side_each)
    torch.testing.assert_close(written, own)


@pytest.mark.parametrize("dimensions", POOLINGS)
def test_a_pooling_is_that_of_pytorch_where_entries_are_equal_too(dimensions):
    function = POOLINGS[dimensions]
    for kernel in (2, (3, 2, 1)[:dimensions]):
        # Of three numbers most windows hold the largest more than once.
        x = torch.randint(0, 3, (4, 3, 5, 6, 7)[: dimensions + 2]).double()
        own, written = both_ways(function, x, kernel_size=kernel)
        torch.testing.assert_close(written, own, rtol=0, atol=0)
        x[0, 0] = torch.nan
        with WrittenOut():
            assert function(x, kernel)[0, 0].isnan().all()


def test_they_are_written_out_where_a_module_calls_them(monkeypatch):
    """And only where the options are those that it stands for."""
    called = []
    for name in ("convolve", "max_pool"):
        own = getattr(lanes_convolution, name)
        monkeypatch.setattr(
            lanes_convolution, name, lambda *a, own=own, **k: (called.append(own), own(*a, **k))[1]
        )
    x = torch.randn(3, 2, 6, 6)
    written = [nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2), nn.MaxPool2d(3, 3)]
    left = [
        nn.MaxPool2d(3, 1),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, return_indices=True),
    ]
    for modules, count in ((written, 1), (left, 0)):
        for module in modules:
            called.clear()
            own = module(x)
            with WrittenOut():
                torch.testing.assert_close(module(x), own)
            assert len(called) == count, module
    # A row by itself has no batch.
    with WrittenOut():
        torch.testing.assert_close(F.max_pool2d(x[0], 2), F.max_pool2d(x, 2)[0])


def test_mapped_over_models_they_are_each_model_by_itself():
    module = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)).double()
    names = [name for name, _ in module.named_parameters()]
    models = {name: torch.randn(5, *module.get_parameter(name).shape).double() for name in names}
    x = torch.randn(5, 2, 1, 6, 6).double()

    def size(tensors, x):
        return functional_call(module, tensors, (x,)).square().sum()

    with WrittenOut():
        together = vmap(grad(size))(models, x)
    for i in range(5):
        alone = grad(size)({name: models[name][i] for name in names}, x[i])
        torch.testing.assert_close({name: together[name][i] for name in names}, alone)
