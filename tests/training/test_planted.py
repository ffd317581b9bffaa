"""The diagnosis names the layer that was made to blow up first, on both engines alike."""

import pytest

from .trials import experiment, merge, train

OWN = {
    "mlp": ("Planted", "numbers", ["first", "second", "head"]),
    "rnn": ("PlantedRecurrence", "sequences", ["reads", "recurs", "head"]),
}
BUILT_IN = {
    "mlp": ({"kind": "mlp", "hidden": [6, 6]}, "numbers", ["hidden.0", "hidden.1", "head"]),
    "rnn": (
        {"kind": "rnn", "hidden": 6},
        "sequences",
        ["recurrent.0.weight_ih_l0", "recurrent.0.weight_hh_l0", "head"],
    ),
}
BASE = {
    "study": "planted",
    "task": "regression",
    "train": {"learning_rate": 0.02, "batch_size": 4, "epochs": 6, "dtype": "float32"},
    "cross_validation": {"kind": "kfold", "folds": 3},
}
OFF = {"loss_growth": None, "gradient_growth": None}
# The rules, and the reasons that may come of them.
RUNAWAYS = {
    "gradient_explosion": ({"loss_growth": None, "gradient_growth": 1e3}, {"gradient_explosion"}),
    "loss_explosion": ({"gradient_growth": None, "loss_growth": 1e3}, {"loss_explosion"}),
    # A norm beyond the format's numbers is an explosion under any rules.
    "not finite": (OFF, {"nonfinite_loss", "gradient_explosion"}),
}


def diagnoses(study: dict, trials: dict[int, dict]) -> dict[int, tuple]:
    """(layer, reason, fold, step) of each trial, None where none failed; the same on both."""
    exp = experiment(study)
    found = []
    for engine in ("lanes", "reference"):
        failures = {i: result.failure for i, result in train(exp, trials, engine).items()}
        found.append({i: f and (f.layer, f.reason, f.fold, f.step) for i, f in failures.items()})
    assert found[0] == found[1]
    return found[0]


def own(net: str, **changes) -> tuple[dict, list[str]]:
    name, data, layers = OWN[net]
    how = {key: changes.pop(key) for key in ("a", "limit") if key in changes}
    model = {
        "kind": f"python:planted_nets:{name}",
        "planted": {"choices": [*layers, "none"]},
        **how,
    }
    return merge(BASE, data={"source": f"python:toy_data:{data}"}, model=model, **changes), layers


@pytest.mark.parametrize("net", OWN)
@pytest.mark.parametrize("a, learning_rate", [(30.0, 0.02), (60.0, 0.004)])
@pytest.mark.parametrize("case", RUNAWAYS)
def test_the_layer_of_too_large_a_curvature_is_named_at_every_place(case, a, learning_rate, net):
    """Of all layers only that one's learning rate is above 2 / curvature. What it grows into
    multiplies the gradients of the others, which are soon larger than its own."""
    rules, reasons = RUNAWAYS[case]
    training = {"learning_rate": learning_rate}
    study, layers = own(net, a=a, divergence=rules, train=training)
    found = diagnoses(study, {i: {"planted": p} for i, p in enumerate([*layers, "none"])})
    assert found[3] is None, "the same network without a plant is stable"
    for i, layer in enumerate(layers):
        assert found[i][0].startswith(f"{layer}."), (layer, found[i])
        assert found[i][1] in reasons, found[i]


@pytest.mark.parametrize("net", OWN)
def test_the_layer_whose_backward_pass_is_not_a_number_is_named_at_every_place(net):
    """The layers before it get that handed on; those after it have a finite gradient."""
    study, layers = own(net, limit=0.5)
    found = diagnoses(study, {i: {"planted": p} for i, p in enumerate([*layers, "none"])})
    assert found[3] is None
    for i, layer in enumerate(layers):
        assert found[i][0].startswith(f"{layer}."), (layer, found[i])
        assert found[i][1] == "nonfinite_gradient"


@pytest.mark.parametrize("net", BUILT_IN)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("how", ["l2", "decoupled", "prox"])
def test_the_layer_that_alone_is_penalized_to_death_is_named(how, place, net):
    """learning_rate * lambda is above 2 where a penalty is put on one layer; or its prox is not a
    number, of which its gradient, finite and not the largest, tells nothing."""
    model, data, layers = BUILT_IN[net]
    layer = layers[place]
    study = merge(BASE, data={"source": f"python:toy_data:{data}"}, model=model)
    changes = {
        "l2": {"regularizer": "l2", "lam": 150.0},
        "decoupled": {
            "regularizer": "l2",
            "lam": 20000.0,
            "train": {"optimizer": "adamw", "learning_rate": 0.001, "epochs": 20},
        },
        "prox": {"regularizer": "python:toy_data:NotANumber", "lam": 1.0},
    }[how]
    for penalized, fails in ((f"{layer}*", True), ("nothing*", False)):
        if not fails:
            changes = {**changes, "regularizer": "none"}
            penalized = "*"
        found = diagnoses(merge(study, **changes, penalize=[penalized]), {0: {}})
        assert (found[0] is not None) == fails
        if fails:
            assert found[0][0].startswith(layer), found[0]
            assert how != "prox" or found[0][1] == "nonfinite_parameter"


def test_where_nothing_is_known_no_layer_is_named():
    """The first loss is not finite already: every gradient is not a number, and none was before."""
    study = merge(
        BASE,
        data={"source": "python:toy_data:numbers"},
        model={"kind": "mlp", "hidden": [6], "activation": "identity", "init": {"normal": 1e30}},
    )
    assert diagnoses(study, {0: {}})[0] == (None, "nonfinite_loss", 0, 0)
