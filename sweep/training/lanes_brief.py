"""What a program's compiled code depends on, said without tracing it."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import torch

from sweep.spec.models import BUILT_IN
from sweep.training.experiment import Experiment
from sweep.training.lanes_member import LaneModel

_ROOT = Path(__file__).parents[1]
_ROOMS = ("spec", "problem", "training")
_NOT_IN_CODE = {"study", "trials", "concurrency", "enqueue", "sampler", "pruner", "data"}
"""Keys of a study file that no step of training looks at."""


def brief(experiment: Experiment, model: LaneModel, batch: int) -> str | None:
    """Equal only for members whose step and scoring trace to the same graphs.

    It holds this project's own code, the study file, the program's key, and the forms of the
    data and of its batches: a batch of the whole fold has as many rows as the data's folds say.
    None where a user's code takes part: nobody knows what that depends on.
    """
    problem, spec = experiment.problem, experiment.spec
    file = spec.model_dump(mode="json", by_alias=True, exclude=_NOT_IN_CODE)
    text = json.dumps(file, sort_keys=True)
    if model.member.setting.model_kind not in BUILT_IN or "python:" in text:
        return None
    data = (problem.x, problem.y, problem.weights, problem.scaling)
    forms = [
        (tuple(t.shape), str(t.dtype))
        for t in torch.utils._pytree.tree_leaves(data)
        if isinstance(t, torch.Tensor)
    ]
    about = (
        problem.kind,
        problem.n_outputs,
        len(problem.folds),
        problem.feature_names,
        problem.columns_of_features,
        experiment.score.name,
    )
    return repr((own_code(), text, model.program_key, model.start.penalized, batch, forms, about))


@cache
def own_code() -> str:
    """A digest of the code that a program is made of."""
    digest = hashlib.sha256()
    for room in _ROOMS:
        for file in sorted((_ROOT / room).glob("*.py")):
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
