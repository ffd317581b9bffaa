"""nn.RNN, nn.GRU and nn.LSTM, one layer, with the recurrence written out.

PyTorch's own forward calls fused kernels that can be neither mapped over a batch of models nor
compiled into a larger program. Parameters, their names and their start are PyTorch's, by the base
class that its layers share; a test holds the outputs to PyTorch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Layer(nn.RNNBase):
    """One layer of PyTorch's parameters, batch first; a subclass writes out its steps."""

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def __init__(self, mode: str, n_inputs: int, hidden: int, bias: bool) -> None:
        super().__init__(mode, n_inputs, hidden, bias=bias, batch_first=True)

    def states(self, x: Float[Tensor, "B T D"]) -> list[Float[Tensor, "B H"]]:
        """The state after each of the T steps.

        One by one: where only the last is looked at, the gradient by a tensor of all of them would
        be zeros, to be made, taken apart, and added at every step.
        """
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H"]:
        return torch.stack(self.states(x), 1)


class RNN(Layer):
    """h' = act(W_ih x + b_ih + W_hh h + b_hh), act tanh or relu. Elman (1990),
    doi:10.1207/s15516709cog1402_1
    """

    def __init__(
        self, n_inputs: int, hidden: int, *, bias: bool = True, nonlinearity: str = "tanh"
    ) -> None:
        super().__init__(
            "RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU", n_inputs, hidden, bias
        )
        self.nonlinearity = nonlinearity

    def slope(self, states: Float[Tensor, "B T H"]) -> Float[Tensor, "B T H"]:
        """act' where the states were made."""
        if self.nonlinearity == "tanh":
            return 1 - states.square()
        return (states > 0).to(states.dtype)

    def states(
        self, x: Float[Tensor, "B T D"], nudge: Float[Tensor, "B T H"] | None = None
    ) -> list[Float[Tensor, "B H"]]:
        """`nudge` is added to what goes into act: the loss's gradient by it is that by each a_t."""
        act = torch.tanh if self.nonlinearity == "tanh" else torch.relu
        bias = self.bias_ih_l0 + self.bias_hh_l0 if self.bias else None
        given = F.linear(x, self.weight_ih_l0, bias)
        if nudge is not None:
            given = given + nudge
        first, *rest = given.unbind(1)
        h = act(first)
        states = [h]
        for given_t in rest:
            h = act(given_t + F.linear(h, self.weight_hh_l0))
            states.append(h)
        return states


class GRU(Layer):
    """r, z = sigmoid(W x + U h + b); n = tanh(W_n x + b_n + r * (U_n h + c_n));
    h' = (1 - z) * n + z * h. Cho et al. (2014), arXiv 1406.1078
    """

    def __init__(self, n_inputs: int, hidden: int, *, bias: bool = True) -> None:
        super().__init__("GRU", n_inputs, hidden, bias)

    def states(self, x: Float[Tensor, "B T D"]) -> list[Float[Tensor, "B H"]]:
        own = self.bias_hh_l0 if self.bias else None
        given = F.linear(x, self.weight_ih_l0, self.bias_ih_l0 if self.bias else None)
        h = x.new_zeros(x.shape[0], self.hidden_size)
        states: list[Tensor] = []
        for given_t in given.unbind(1):
            r_in, z_in, n_in = given_t.chunk(3, dim=1)
            r_own, z_own, n_own = F.linear(h, self.weight_hh_l0, own).chunk(3, dim=1)
            z = torch.sigmoid(z_in + z_own)
            n = torch.tanh(n_in + torch.sigmoid(r_in + r_own) * n_own)
            h = n + z * (h - n)
            states.append(h)
        return states


class LSTM(Layer):
    """i, f, o = sigmoid(W x + U h + b); g = tanh(W_g x + U_g h + b_g); c' = f * c + i * g;
    h' = o * tanh(c'). Hochreiter and Schmidhuber (1997), doi:10.1162/neco.1997.9.8.1735
    """

    def __init__(self, n_inputs: int, hidden: int, *, bias: bool = True) -> None:
        super().__init__("LSTM", n_inputs, hidden, bias)

    def states(self, x: Float[Tensor, "B T D"]) -> list[Float[Tensor, "B H"]]:
        bias = self.bias_ih_l0 + self.bias_hh_l0 if self.bias else None
        given = F.linear(x, self.weight_ih_l0, bias)
        h = c = x.new_zeros(x.shape[0], self.hidden_size)
        states: list[Tensor] = []
        for given_t in given.unbind(1):
            gates = given_t + F.linear(h, self.weight_hh_l0)
            i, f, g, o = gates.chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return states
