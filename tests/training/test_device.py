"""A step leaves nothing on another device than its data's: it is put through on torch's `meta`
device, which computes nothing and, like a GPU, takes no tensor of the CPU beside its own.
"""

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from .trials import BASE, begun, experiment, merge

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
    program, inputs = begun(exp, {"learning_rate": 0.1}, LANES)

    def there(leaf):
        return leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf

    step = program.stepper.step
    step.module.to("meta")
    given = tree_map(there, (program.state, inputs, program.stepper.table))
    after = [leaf for leaf in tree_leaves(step(*given)) if isinstance(leaf, torch.Tensor)]
    assert len(after) > 10 and {leaf.device.type for leaf in after} == {"meta"}
