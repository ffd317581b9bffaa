"""How weights start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_NORMALIZATION = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def weights_and_biases(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """(name, parameter, is a weight) of every parameter.

    Not weights are biases (a part of the name is `bias`: bias, bias_ih_l0, in_proj_bias) and all
    parameters of normalisation modules.
    """
    normalization = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, _NORMALIZATION)
        for parameter in part.parameters(recurse=False)
    }
    for name, parameter in module.named_parameters():
        bias = "bias" in name.rpartition(".")[2].split("_")
        yield name, parameter, not bias and id(parameter) not in normalization


@torch.no_grad()
def initialize(module: nn.Module, init: Any) -> None:
    """Sets weights and biases in place; normalisation parameters stay 1 and 0.

    default        what the modules did by themselves
    zeros          every weight 0, every bias 0
    xavier         uniform, Glorot and Bengio (2010); biases 0
    orthogonal     Saxe et al. (2014), arXiv 1312.6120; biases 0
    number         every weight that number, biases 0
    {normal: std}  every weight drawn from N(0, std^2), biases 0

    A recurrent layer's gates (each `hidden` rows of its matrices) are drawn one by one.
    """
    if init == "default":
        return
    gates = {
        id(parameter): part.hidden_size
        for part in module.modules()
        if isinstance(part, nn.RNNBase)
        for parameter in part.parameters(recurse=False)
    }
    for name, parameter, is_weight in weights_and_biases(module):
        if not is_weight:
            if "bias" in name.rpartition(".")[2].split("_"):
                parameter.zero_()
        elif init in ("xavier", "orthogonal"):
            draw = nn.init.xavier_uniform_ if init == "xavier" else nn.init.orthogonal_
            for gate in torch.split(parameter, gates.get(id(parameter), len(parameter))):
                draw(gate)
        elif isinstance(init, Mapping):
            parameter.normal_(0.0, float(init["normal"]))
        else:
            parameter.fill_(0.0 if init == "zeros" else float(init))
