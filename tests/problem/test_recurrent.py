"""The written-out recurrences are PyTorch's."""

import pytest
import torch
from torch import nn

from sweep.problem.recurrent import GRU, LSTM, RNN


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "own, torchs, extra",
    [
        (RNN, nn.RNN, {}),
        (RNN, nn.RNN, {"nonlinearity": "relu"}),
        (GRU, nn.GRU, {}),
        (LSTM, nn.LSTM, {}),
    ],
)
def test_states_and_gradients_are_those_of_pytorch(own, torchs, extra, bias):
    torch.manual_seed(0)
    theirs = torchs(3, 5, batch_first=True, bias=bias, **extra).double()
    ours = own(3, 5, bias=bias, **extra).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    theirs(x)[0].square().sum().backward()
    ours(x).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x)[0], rtol=1e-12, atol=1e-12)
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-10, atol=1e-12, msg=name)
