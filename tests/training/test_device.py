"""A step leaves nothing on another device than its data's: it is put through on torch's `meta`
device, which computes nothing and, like a GPU, takes no tensor of the CPU beside its own.
"""

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from sweep.training.lanes_member import LaneModel
from sweep.training.lanes_program import Program
from sweep.training.lanes_step import StepInputs
from sweep.training.member import Member

from .trials import BASE, experiment, merge

LANES = 3
CASES = {
    "plain": {},
    "every clip": {
        "train": {"clip_norm": 1.0, "clip_value": 1.0, "clip_layer": 1.0, "clip_percentile": 50}
    },
    "elastic_net, adam": {
        "regularizer": "elastic_net",
        "lam": 0.1,
        "train": {"optimizer": "adam", "weight_decay": 0.1},
    },
    "orthogonal, nesterov": {
        "regularizer": "orthogonal",
        "lam": 0.1,
        "train": {"momentum": 0.9, "nesterov": True},
    },
    "group_lasso, rmsprop": {
        "regularizer": "group_lasso",
        "lam": 0.1,
        "train": {"optimizer": "rmsprop"},
    },
    "dropout, batch normalization": {
        "model": {"kind": "mlp", "hidden": [4], "dropout": 0.2, "normalization": "batch"}
    },
    "weights, numbers": {"data": {"source": "python:toy_data:weighted"}, "task": "regression"},
    "images": {"data": {"source": "python:toy_data:images"}, "model": {"kind": "cnn"}},
    "vanishing": {
        "data": {"source": "python:toy_data:sequences"},
        "task": "regression",
        "model": {"kind": "rnn", "hidden": 4},
        "regularizer": "vanishing",
        "lam": 0.1,
    },
    "gru": {
        "data": {"source": "python:toy_data:sequences"},
        "task": "regression",
        "model": {"kind": "gru", "hidden": 4},
    },
    "lstm": {
        "data": {"source": "python:toy_data:sequences"},
        "task": "regression",
        "model": {"kind": "lstm", "hidden": 4},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_step_makes_is_where_its_data_are(case):
    exp = experiment(merge(BASE, **CASES[case]))
    setting = exp.spec.setting({"learning_rate": 0.1})
    models = [LaneModel.build(exp, Member(trial, 0, setting)) for trial in range(LANES)]
    program = Program(exp, models[0], LANES)
    program.waiting.extend(models)
    program.advance()
    zero = torch.zeros(LANES, dtype=torch.int64)
    inputs = StepInputs(
        folds=zero,
        rows=torch.zeros(LANES, program.batch, dtype=torch.int32),
        n_rows=zero + program.batch,
        step=zero,
        learning_rate=torch.full((LANES,), 0.1, dtype=exp.dtype),
    )

    def there(leaf):
        return leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf

    step = program.stepper.step
    step.module.to("meta")
    given = tree_map(there, (program.state, inputs, program.stepper.table))
    after = [leaf for leaf in tree_leaves(step(*given)) if isinstance(leaf, torch.Tensor)]
    assert len(after) > 10 and {leaf.device.type for leaf in after} == {"meta"}
