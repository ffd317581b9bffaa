"""Every model through the same laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from sweep.errors import SpecError, SweepError
from sweep.problem.dropout import KeyedDropout, dropout_key
from sweep.problem.models import (
    build_model,
    parameter_count,
    penalized,
    rows_interact,
    structure_key,
)
from sweep.problem.networks import ACTIVATIONS
from sweep.spec.models import BUILT_IN, CNNModel, GatedModel, LinearModel, MLPModel, RNNModel

HERE = Path(__file__).parent
SPECS = {
    "linear": LinearModel,
    "mlp": MLPModel,
    "cnn": CNNModel,
    "rnn": RNNModel,
    "gru": GatedModel,
    "lstm": GatedModel,
}
# (name, knobs other than the defaults, shape of a row); the name's first word is the kind.
CASES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("linear", {}, (7,)),
    ("linear of images", {"init": "xavier", "bias": False}, (2, 4, 4)),
    ("mlp", {}, (7,)),
    ("mlp with batch normalization", {"hidden": [6, 5], "normalization": "batch"}, (7,)),
    ("mlp with layer normalization", {"hidden": [6, 5], "normalization": "layer"}, (7,)),
    ("mlp with dropout", {"hidden": 6, "dropout": 0.4, "activation": "gelu"}, (3, 4)),
    ("mlp without hidden layers", {"hidden": []}, (7,)),
    ("cnn", {"channels": [3, 4], "hidden": 6}, (1, 8, 8)),
    ("cnn of small gray images", {"channels": [2, 3, 4], "dropout": 0.3, "hidden": 6}, (4, 5)),
    ("cnn with batch normalization", {"channels": 3, "normalization": "batch"}, (2, 6, 6)),
    ("rnn", {"hidden": 5}, (6, 3)),
    ("rnn of two layers", {"hidden": 5, "layers": 2, "activation": "relu", "dropout": 0.3}, (6, 3)),
    ("gru", {"hidden": 5, "bias": False}, (6, 3)),
    ("gru of two layers", {"hidden": 5, "layers": 2, "dropout": 0.3}, (6, 3)),
    ("lstm", {"hidden": 5}, (6, 3)),
    ("lstm of two layers", {"hidden": 5, "layers": 2, "init": "orthogonal"}, (6, 3)),
]
over_cases = pytest.mark.parametrize("case", CASES, ids=[name for name, _, _ in CASES])


def build(case: Any, *, seed: int = 0, fold: int = 0, **more: Any) -> nn.Module:
    """A case as a study file would have it, all its defaults included."""
    name, knobs, shape = case
    kind = name.split(" ")[0]
    spec = SPECS[kind].model_validate({"kind": kind, **knobs, **more.pop("knobs", {})})
    return build_model(
        kind,
        spec.model_dump(exclude={"kind"}),
        shape,
        3,
        seed=seed,
        fold=fold,
        dtype=more.pop("dtype", torch.float64),
        directory=HERE,
    )


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_built_in_kind_is_a_case():
    assert {name.split(" ")[0] for name, _, _ in CASES} == set(BUILT_IN) == set(SPECS)


@over_cases
@pytest.mark.parametrize("n", [1, 5])
def test_outputs_have_a_row_each_and_a_column_an_output(case: Any, n: int):
    module = build(case, dtype=torch.float32).eval()
    assert module(torch.randn(n, *case[2])).shape == (n, 3)


@over_cases
def test_a_member_among_three_has_the_gradient_it_has_alone(case: Any):
    modules = [build(case, fold=fold) for fold in range(3)]
    for i, module in enumerate(modules):
        for parameter in module.parameters():
            # linear starts at zeros, where members would not differ
            parameter.data += torch.linspace(-0.1, 0.1 + i, parameter.numel()).view(parameter.shape)
        for part in module.modules():
            if isinstance(part, KeyedDropout):
                part.key.fill_(dropout_key(0, i, 17))
    parameters, buffers = stack_module_state(modules)
    x = torch.randn(3, 5, *case[2], generator=torch.Generator().manual_seed(0)).double()

    def loss(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        outputs = functional_call(modules[0], (parameters, buffers), (x,))
        return (outputs**2).sum(1).mean()

    buffers = {name: buffer.clone() for name, buffer in buffers.items()}
    together = vmap(grad(loss))(parameters, buffers, x)
    for i, module in enumerate(modules):
        module.zero_grad()
        (module(x[i]) ** 2).sum(1).mean().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
            torch.testing.assert_close(together[name][i], parameter.grad, rtol=1e-9, atol=1e-12)
        for name, buffer in module.named_buffers():
            torch.testing.assert_close(buffers[name][i], buffer, rtol=1e-9, atol=1e-12)


@over_cases
def test_the_start_follows_from_seed_and_fold(case: Any):
    knobs = {"knobs": {"init": {"normal": 0.1}}} if case[0] == "linear" else {}
    first = state(build(case, seed=3, fold=1, **knobs))
    assert same(first, state(build(case, seed=3, fold=1, **knobs)))
    assert not same(first, state(build(case, seed=3, fold=2, **knobs)))
    assert not same(first, state(build(case, seed=4, fold=1, **knobs)))


@over_cases
def test_the_start_is_the_same_in_both_dtypes(case: Any):
    single, double = build(case, dtype=torch.float32), build(case, dtype=torch.float64)
    rounded = {name: value.double() for name, value in state(single).items()}
    assert same(rounded, {name: value.double() for name, value in state(double).items()})
    floats = [t for t in [*double.parameters(), *double.buffers()] if t.is_floating_point()]
    assert {t.dtype for t in floats} == {torch.float64}


@pytest.mark.parametrize("case", CASES[2:], ids=[name for name, _, _ in CASES[2:]])
def test_dropout_changes_neither_the_start_nor_a_name(case: Any):
    starts = [state(build(case, knobs={"dropout": rate})) for rate in (0.0, 0.2, 0.7)]
    assert same(starts[0], starts[1]) and same(starts[0], starts[2])


@over_cases
def test_building_leaves_the_global_random_state_alone(case: Any):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    build(case)
    assert torch.equal(torch.rand(4), expected)


@over_cases
def test_trials_of_one_structure_differ_in_values_only(case: Any):
    """Equal keys: every parameter and buffer has its partner; so vmap may run one for the other."""
    name, knobs, _ = case
    kind = name.split(" ")[0]
    other = {"init": 0.25} | ({"dropout": 0.2} if knobs.get("dropout") else {})
    assert structure_key(kind, knobs) == structure_key(kind, knobs | other)
    a, b = build(case), build(case, knobs=other)
    shapes = [{n: t.shape for n, t in [*m.named_parameters(), *m.named_buffers()]} for m in (a, b)]
    assert shapes[0] == shapes[1]


def test_what_changes_the_program_changes_the_structure():
    key = structure_key("mlp", {"hidden": [6], "activation": "relu", "dropout": 0.0})
    for change in ({"hidden": [7]}, {"hidden": [6, 6]}, {"activation": "tanh"}, {"dropout": 0.1}):
        knobs = {"hidden": [6], "activation": "relu", "dropout": 0.0} | change
        assert structure_key("mlp", knobs) != key
    assert structure_key("mlp", {"hidden": 6, "activation": "relu", "dropout": 0.0}) == key
    assert structure_key("python:a:b", {"x": 1}) != structure_key("python:a:b", {"x": 2})


def is_bias(name: str) -> bool:
    return "bias" in name.rpartition(".")[2]


@over_cases
@pytest.mark.parametrize(
    "init", ["default", "zeros", "xavier", "orthogonal", 0.5, -2, {"normal": 0.01}], ids=str
)
def test_init_sets_weights_and_leaves_biases_at_zero(case: Any, init: Any):
    module = build(case, knobs={"init": float(init) if isinstance(init, int) else init})
    weights = penalized(module)
    for name, value in module.named_parameters():
        if name not in weights:
            if init != "default" and is_bias(name):
                assert (value == 0).all(), name
        elif init == "zeros" or (init == "default" and case[0].startswith("linear")):
            assert (value == 0).all(), name
        elif isinstance(init, float | int):
            assert (value == init).all(), name
        elif init == {"normal": 0.01}:
            assert 0.002 < value.std() < 0.03 and value.abs().max() < 0.06, name
        elif init == "orthogonal" and value.ndim == 2 and "_l" not in name:
            small = value if len(value) <= value.shape[1] else value.T
            torch.testing.assert_close(
                small @ small.T, torch.eye(len(small)).double(), rtol=0, atol=1e-5
            )
        else:
            assert value.abs().max() > 0, name


def test_orthogonal_recurrent_weights_are_so_gate_by_gate():
    module = build(("lstm", {"hidden": 5, "init": "orthogonal"}, (6, 3)))
    for gate in module.get_parameter("recurrent.0.weight_hh_l0").split(5):
        torch.testing.assert_close(gate @ gate.T, torch.eye(5).double(), rtol=0, atol=1e-5)


def test_pytorchs_own_defaults_stand():
    module = build(("mlp", {"hidden": [50]}, (400,)))
    assert module.get_parameter("hidden.0.weight").abs().max() <= 400**-0.5
    assert 0.55 < module.get_parameter("hidden.0.weight").std() * 400**0.5 < 0.6


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_pytorchs_own(name: str):
    x = torch.linspace(-3, 3, 13)
    modules = {
        "relu": nn.ReLU(),
        "tanh": nn.Tanh(),
        "gelu": nn.GELU(),
        "silu": nn.SiLU(),
        "sigmoid": nn.Sigmoid(),
        "elu": nn.ELU(),
        "leaky_relu": nn.LeakyReLU(),
        "identity": nn.Identity(),
    }
    assert torch.equal(ACTIVATIONS[name](x), modules[name](x))


@pytest.mark.parametrize(
    ("kind", "torch_kind"), [("rnn", nn.RNN), ("gru", nn.GRU), ("lstm", nn.LSTM)]
)
def test_a_recurrent_network_is_torchs_with_the_last_state_read_out(kind: str, torch_kind: Any):
    module = build((kind, {"hidden": 5, "layers": 2}, (6, 3)))
    plain = torch_kind(3, 5, num_layers=2, batch_first=True).double()
    for layer in range(2):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            value = module.get_parameter(f"recurrent.{layer}.{name}_l0")
            plain.get_parameter(f"{name}_l{layer}").data.copy_(value)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(module(x), module.get_submodule("head")(plain(x)[0][:, -1]))


def test_parameter_counts_are_the_textbooks():
    assert parameter_count(build(("linear", {}, (64,)))) == 64 * 3 + 3
    count = 64 * 64 + 64 + 64 * 32 + 32 + 32 * 3 + 3
    assert parameter_count(build(("mlp", {"hidden": [64, 32]}, (64,)))) == count
    assert parameter_count(build(("gru", {"hidden": 8}, (6, 3)))) == 3 * 8 * (3 + 8 + 2) + 8 * 3 + 3


@over_cases
def test_only_batch_normalization_makes_rows_interact(case: Any):
    assert rows_interact(build(case)) == ("batch" in case[0])


class Everything(nn.Module):
    """One of each thing whose parameters a regularizer may or may not act on."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 4)
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.batch = nn.BatchNorm1d(4)
        self.layer = nn.LayerNorm(4)
        self.group = nn.GroupNorm(2, 4)
        self.rms = nn.RMSNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.out = nn.Linear(4, 2)


def test_weights_are_penalized_and_nothing_else():
    assert penalized(Everything()) == [
        "embed.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "out.weight",
    ]


def test_with_penalize_bias_everything_that_learns_is():
    module = Everything()
    expected = [name for name, p in module.named_parameters() if p.requires_grad]
    assert penalized(module, penalize_bias=True) == expected


def test_patterns_choose_among_the_weights():
    module = build(("rnn", {}, (6, 3)))
    assert penalized(module, patterns=["*weight_hh*"]) == ["recurrent.0.weight_hh_l0"]
    assert penalized(module, patterns=["head.*", "*_ih_*"]) == [
        "recurrent.0.weight_ih_l0",
        "head.weight",
    ]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("hiden.*", "'hiden.*' matches no parameter. Parameters that can be penalized: hidden.0."),
        ("*bias", "'*bias' matches only biases"),
    ],
)
def test_a_pattern_that_selects_nothing_is_refused(pattern: str, words: str):
    with pytest.raises(SpecError) as caught:
        penalized(build(("mlp", {}, (7,))), patterns=["*", pattern])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (("cnn", {"kernel_size": 4}, (8, 8)), "kernel_size: 4 is even"),
        (("cnn", {"kernel_size": 2}, (8, 8)), "use 1 or 3"),
        (("cnn", {}, (64,)), "needs images"),
        (("cnn", {}, (2, 3, 8, 8)), "needs images"),
        (("rnn", {}, (64,)), "rnn needs sequences"),
        (("lstm", {}, (1, 8, 8)), "lstm needs sequences"),
    ],
    ids=str,
)
def test_a_network_that_does_not_fit_the_data_is_refused(case: Any, words: str):
    with pytest.raises(SpecError) as caught:
        build(case)
    assert words in str(caught.value)


NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, n_features, n_outputs, width=4, rate=0.5):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_features, width), nn.Dropout(rate), nn.ReLU())
        self.head = nn.Linear(width, n_outputs)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)))


def lazy(n_outputs):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(n_outputs))


def anything(**given):
    assert set(given) == {"input_shape", "n_features", "n_inputs", "n_outputs", "depth"}, given
    return nn.Linear(given["n_inputs"], given["n_outputs"])


def needs(n_inputs, n_outputs, width):
    return nn.Linear(n_inputs, n_outputs)


def fails(n_inputs):
    raise ZeroDivisionError("no such width")


def returns_text():
    return "net"


number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_nets.py").write_text(NETS)
    return tmp_path


def custom(name: str, folder: Path, fold: int = 0, **knobs: Any) -> nn.Module:
    return build_model(
        f"python:my_nets:{name}",
        knobs,
        (2, 3),
        4,
        seed=0,
        fold=fold,
        dtype=torch.float64,
        directory=folder,
    )


def test_a_users_module_gets_what_its_signature_has_and_its_knobs(folder: Path):
    module = custom("Net", folder, width=7, rate=0.25)
    assert module.get_parameter("body.0.weight").shape == (7, 6)
    assert module(torch.randn(5, 2, 3).double()).shape == (5, 4)
    assert isinstance(custom("anything", folder, depth=2), nn.Linear)


def test_a_users_module_starts_and_drops_by_the_same_laws(folder: Path):
    module = custom("Net", folder)
    assert same(state(module), state(custom("Net", folder)))
    assert not same(state(module), state(custom("Net", folder, fold=1)))
    assert same(state(module), state(custom("Net", folder, rate=0.1)))
    (dropout,) = [part for part in module.modules() if isinstance(part, KeyedDropout)]
    assert float(dropout.rate) == 0.5 and dropout.rate.dtype == torch.float64


def test_lazy_layers_take_their_shape_from_the_data(folder: Path):
    module = custom("lazy", folder)
    assert module.training and parameter_count(module) == 6 * 4 + 4
    assert same(state(module), state(custom("lazy", folder)))


@pytest.mark.parametrize(
    ("name", "knobs", "words"),
    [
        (
            "Net",
            {"widht": 3},
            "model.widht: python:my_nets:Net takes no such argument. Did you mean",
        ),
        ("needs", {}, "missing a required argument: 'width'"),
        ("returns_text", {}, "type str; it must return a torch.nn.Module"),
        ("number", {}, "is of type int, which cannot be called"),
    ],
)
def test_a_callable_that_does_not_fit_the_study_file_is_refused(
    folder: Path, name: str, knobs: dict[str, Any], words: str
):
    with pytest.raises(SpecError) as caught:
        custom(name, folder, **knobs)
    assert words in str(caught.value)


def test_an_exception_in_a_users_callable_is_told_with_type_and_message(folder: Path):
    with pytest.raises(SweepError, match="ZeroDivisionError: no such width"):
        custom("fails", folder)
