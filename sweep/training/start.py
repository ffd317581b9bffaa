"""A model as it starts, and what follows from its structure."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor, nn

from sweep.training.divergence import tensor_sizes
from sweep.training.optimizers import trainable
from sweep.training.probe import Traits


@dataclass(frozen=True, eq=False)
class Start:
    """For looking at, and copying from, alone: members that start alike share one.

    `structure`: models of equal structure can be stacked. `penalized`: the names of the parameters
    that a regularizer acts on.
    """

    module: nn.Module
    structure: Hashable
    traits: Traits
    penalized: tuple[str, ...]

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Those that training changes."""
        return {name: p.detach() for name, p in trainable(self.module).items()}

    @cached_property
    def buffers(self) -> dict[str, Tensor]:
        """All other tensors of the module: frozen parameters, then its buffers."""
        named = self.module.named_parameters()
        frozen = {name: p.detach() for name, p in named if name not in self.parameters}
        return {**frozen, **dict(self.module.named_buffers())}

    @cached_property
    def sizes(self) -> Float[Tensor, " P"]:
        """Of the parameters, as `tensor_sizes` has them."""
        return tensor_sizes(self.parameters)
