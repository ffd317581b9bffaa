"""What lanes begin with: members that start alike, or are of one trial, are read but once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from sweep.training.device import moved
from sweep.training.divergence import new_watch
from sweep.training.experiment import Experiment
from sweep.training.lanes_member import LaneModel
from sweep.training.lanes_step import LaneStep, State
from sweep.training.optimizers import new_moments, numbers
from sweep.training.penalty import aligned


class Beginning:
    """How members of one program begin, `model` one of them."""

    def __init__(self, experiment: Experiment, model: LaneModel, step: LaneStep) -> None:
        self.experiment, self.template = experiment, step.template
        moments = new_moments(model.start.parameters, model.member.setting.optimizer, step.clips)
        # What every member begins with, whatever its setting.
        self._common = moved((moments, new_watch(model.start.sizes)), experiment.device)

    def of(self, models: Sequence[LaneModel]) -> State:
        """The state of these members before their first step, a lane each; to be copied from."""
        device, lanes = self.experiment.device, len(models)
        starts, of_start = _distinct(models, lambda model: id(model.start))
        trials, of_trial = _distinct(models, lambda model: id(model.member.setting))
        parameters, buffers, sizes = _spread(
            [(m.start.parameters, m.start.buffers, m.start.sizes) for m in starts], of_start, device
        )
        given, penalty = _spread(
            [
                (
                    numbers(model.member.setting, self.experiment.dtype),
                    aligned(model.penalty, self.template),
                )
                for model in trials
            ],
            of_trial,
            device,
        )
        moments, watch = tree_map_only(Tensor, lambda t: t.expand(lanes, *t.shape), self._common)
        return State(parameters, buffers, moments, watch._replace(sizes=sizes), given, penalty)


def _distinct(
    models: Sequence[LaneModel], key: Callable[[LaneModel], Hashable]
) -> tuple[list[LaneModel], Int[Tensor, " M"]]:
    """One model of each key, and for each of the models the place of its key's."""
    places: dict[Hashable, int] = {}
    found: list[LaneModel] = []
    index = []
    for model in models:
        place = places.setdefault(key(model), len(found))
        if place == len(found):
            found.append(model)
        index.append(place)
    return found, torch.tensor(index)


def _spread(trees: Sequence[Any], index: Int[Tensor, " M"], device: torch.device) -> Any:
    """One tree whose tensors hold, along a first axis, those of the trees at these places."""
    stacked = tree_map(
        lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *trees
    )
    index = index.to(device)
    return tree_map_only(Tensor, lambda t: t[index], moved(stacked, device))
