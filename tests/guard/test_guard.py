"""The guard of any training loop, against bounds that are known and layers that are planted."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
import sys

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import sweep
from sweep.errors import Diverged, RequestError
from sweep.guard.gradients import _norms, measure
from sweep.guard.judge import Judge
from sweep.guard.loop import MOST_SKIPS
from sweep.spec import DivergenceSpec
from sweep.training.divergence import new_watch, observe
from tests.training import planted_nets, toy_data

from .loops import H, Planted, batch, descend, loss_of, quadratic, squared


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("every", [1, 16])
def test_raises_above_the_bound_only_and_advises_it(momentum, nesterov, every):
    most = (2 * (1 + momentum) / (1 + 2 * momentum)) if nesterov else 2 * (1 + momentum)
    for times in (0.99, 1.01):
        model = quadratic()
        kind = {"momentum": momentum, "nesterov": nesterov}
        optimizer = torch.optim.SGD(model.parameters(), lr=times * most / H, **kind)
        failure = descend(model, optimizer, sweep.watch(model, optimizer, every=every), 1500)
        assert (failure is not None) == (times > 1)
    assert failure["reason"] == "loss_explosion" and failure["layer"] == "weight"
    rate = float(failure["advice"].split("learning_rate below ")[1].split(",")[0])
    assert rate == pytest.approx(most / H, rel=0.01)


def test_the_first_bad_step_is_reported_however_seldom_one_looks():
    failures = []
    for every in (1, 7, 16):
        model = quadratic()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.3)
        failures.append(descend(model, optimizer, sweep.watch(model, optimizer, every=every), 500))
    assert failures[0] == failures[1] == failures[2] and failures[0] is not None


@pytest.mark.parametrize("dtype, step", [(torch.float32, 39), (torch.float64, 321)])
def test_the_first_nonfinite_loss_is_that_of_the_engines(dtype, step):
    """Diabetes at twice the bound, w0 = 0: a fact that `test_divergence` holds the engines to."""
    from tests.training.toy_data import _diabetes

    x, y = (torch.from_numpy(a).to(dtype) for a in _diabetes())
    model = nn.Linear(10, 1, bias=False, dtype=dtype)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=4 / 4.0242107502)
    off = {"loss_growth": None, "gradient_growth": None}
    guard = sweep.watch(model, optimizer, divergence=off)
    failure = descend(model, optimizer, guard, 500, lambda m: (m(x)[:, 0] - y).square().mean() / 2)
    assert failure["reason"] == "nonfinite_loss" and abs(failure["step"] - step) <= 2


def test_an_overflow_of_the_norm_is_seen_before_clipping_hides_it():
    """Four entries of 1e19 in float32: clip_grad_norm_ makes all gradients 0, silently."""
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for clips_first in (False, True):
        guard = sweep.watch(model, optimizer)
        model.weight.grad = torch.ones(1, 4)
        guard.check(1.0)
        model.weight.grad = torch.full((1, 4), 1e19)
        if clips_first:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            assert not model.weight.grad.any()
            guard.check(1.0)
        else:
            with pytest.raises(Diverged) as caught:
                guard.check(1.0)
            failure = caught.value.failure
            assert failure["reason"] == "gradient_explosion"
            assert failure["grad_norm"] == pytest.approx(2e19)


@pytest.mark.parametrize("name", ["first", "second", "third"])
@pytest.mark.parametrize("how", ["rate", "gradient", "decay", "nan"])
def test_the_layer_that_was_planted_is_named(name, how):
    torch.manual_seed(0)
    model = Planted()
    planted = getattr(model, name)
    rest = [p for n, p in model.named_parameters() if not n.startswith((name, "spare"))]
    own = {"params": list(planted.parameters())}
    if how == "rate":
        own["lr"] = 20.0
    if how == "decay":
        own["weight_decay"] = 45.0
    if how == "gradient":
        planted.weight.register_hook(lambda g: 300 * g)
    optimizer = torch.optim.SGD([{"params": rest}, own], lr=0.05)
    guard = sweep.watch(model, optimizer)
    if how == "nan":
        planted.weight.register_hook(lambda g: g * math.nan if guard.step == 5 else g)
    failure = descend(model, optimizer, guard, 800, squared)
    assert failure["layer"].startswith(f"{name}."), failure
    if how == "decay":
        assert "learning_rate below 0.04" in failure["advice"], "at most 2 / 45"
    if how == "nan":
        assert failure["step"] == 5 and "nothing grew before it" in failure["advice"]


def test_the_weight_that_an_update_broke_is_named():
    model = Planted()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = sweep.watch(model, optimizer)
    assert descend(model, optimizer, guard, 5, squared) is None
    with torch.no_grad():
        model.second.bias.fill_(math.inf)
    assert descend(model, optimizer, guard, 1, squared)["layer"] == "second.bias"


class Odd(nn.Module):
    """A line, beside parameters that are infinite, empty, whole numbers, of sparse gradient, and
    never used."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 1)
        self.mask = nn.Parameter(torch.tensor([0.0, 0.0, -math.inf]))
        self.scores = nn.Parameter(torch.arange(3.0))
        self.empty = nn.Parameter(torch.zeros(0))
        self.table = nn.Embedding(10, 1, sparse=True)
        self.codes = nn.Parameter(torch.arange(3), requires_grad=False)
        self.unused = nn.Linear(4, 1)

    def forward(self, x):
        share = (self.mask + self.scores).softmax(0)
        rows = self.table(torch.zeros(len(x), dtype=torch.long))
        return self.line(x) * share.sum() + self.empty.sum() + rows


def test_parameters_that_cannot_be_measured_do_no_harm():
    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    guard = sweep.watch(model, optimizer)
    assert descend(model, optimizer, guard, 50, squared) is None
    assert guard.step == 50 and model.empty.grad is not None and model.table.weight.grad.is_sparse
    assert model.mask.grad is not None and model.mask[2] == -math.inf
    with torch.no_grad():
        model.line.weight.mul_(1e9)
    assert descend(model, optimizer, guard, 1, squared)["layer"] == "line.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_weights_size_is_that_of_its_largest_entry_either_way_it_is_found(dtype):
    """On the CPU from largest and smallest entry, on an accelerator as a norm."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, 3, generator=generator).to(dtype) - n for n in (1, 5)]
    tensors += [torch.tensor([1.0, entry], dtype=dtype) for entry in (-7, math.nan, -math.inf)]
    parameters = [nn.Parameter(t) for t in tensors]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    expected = torch.stack([t.abs().amax() for t in tensors]).double()
    found = measure(parameters).weights.double()
    norms = torch.stack(_norms(parameters, math.inf)).detach().double()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(norms, expected, rtol=0, atol=0, equal_nan=True)


def test_a_parameter_that_is_no_longer_finite_is_found_where_the_loss_does_not_show_it():
    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    guard = sweep.watch(model, optimizer)
    assert descend(model, optimizer, guard, 5, squared) is None
    with torch.no_grad():
        model.scores[0] = -math.inf
    failure = descend(model, optimizer, guard, 1, squared)
    assert (failure["reason"], failure["layer"]) == ("nonfinite_parameter", "scores")
    assert math.isfinite(failure["loss"]) and failure["step"] == 5


def test_accumulated_gradients_are_one_update():
    x, y = batch()
    whole = Planted()
    parts = copy.deepcopy(whole)
    failures = []
    for model, pieces in ((whole, 1), (parts, 4)):
        optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
        guard = sweep.watch(model, optimizer)
        for _ in range(300):
            optimizer.zero_grad()
            loss = 0.0
            for part, target in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                value = (model(part) - target).square().mean() / 2 / pieces
                value.backward()
                loss = loss + value.detach()
            try:
                guard.check(loss)
            except Diverged as diverged:
                failures.append(diverged.failure)
                break
            optimizer.step()
    assert failures[0]["step"] == failures[1]["step"] and len(failures) == 2


def test_frozen_and_unused_parameters_do_no_harm():
    model = Planted()
    model.first.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    assert descend(model, optimizer, sweep.watch(model, optimizer), 50, squared) is None
    assert model.spare.weight.grad is None
    model.first.requires_grad_(True)
    optimizer.add_param_group({"params": model.first.parameters(), "lr": 50.0})
    failure = descend(model, optimizer, sweep.watch(model, optimizer), 200, squared)
    assert failure["layer"].startswith("first.")


def test_several_optimizers_share_a_guard():
    model = Planted()
    optimizers = [
        torch.optim.Adam(model.first.parameters(), lr=1e-3),
        torch.optim.SGD(model.second.parameters(), lr=30.0),
    ]
    guard = sweep.watch(model, optimizers)
    with pytest.raises(Diverged) as caught:
        for _ in range(300):
            model.zero_grad()
            loss = squared(model)
            loss.backward()
            guard.check(float(loss.detach()))
            for optimizer in optimizers:
                optimizer.step()
    assert caught.value.failure["layer"].startswith("second.")
    assert "lower learning_rate below" in caught.value.failure["advice"]


def test_a_gradient_that_a_grad_scaler_skips_is_no_divergence():
    model = quadratic(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    guard = sweep.watch(model, optimizer, scaler=scaler)
    scales = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_of(model)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        guard.check(loss)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales[0] < 2.0**127 and guard.step < 30, "the first gradients overflowed"
    assert loss.item() < 1e-3


def test_a_gradient_that_stays_infinite_under_a_grad_scaler_is_one():
    model = quadratic(torch.float32)
    model.weight.grad = torch.full_like(model.weight, math.inf)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = sweep.watch(model, optimizer, scaler=torch.amp.GradScaler("cpu"))
    for _ in range(MOST_SKIPS):
        guard.check(1.0)
    with pytest.raises(Diverged) as caught:
        guard.check(1.0)
    assert caught.value.failure["reason"] == "nonfinite_gradient"


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_is_checked_after_its_step(search):
    model = Planted()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, line_search_fn=search)
    guard = sweep.watch(model, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = squared(model)
        loss.backward()
        return loss

    for _ in range(20):
        guard.check(optimizer.step(closure))
    assert guard.failure is None and closure().item() < 1e-6


def test_a_resumed_training_is_watched_as_if_it_had_not_stopped():
    def fresh():
        model = quadratic()
        return model, torch.optim.SGD(model.parameters(), lr=1.1 * 2 / H)

    model, optimizer = fresh()
    whole = descend(model, optimizer, sweep.watch(model, optimizer), 500)
    model, optimizer = fresh()
    guard = sweep.watch(model, optimizer)
    assert descend(model, optimizer, guard, 20) is None
    state = json.loads(json.dumps(guard.state_dict()))
    again = sweep.watch(model, optimizer)
    again.load_state_dict(state)
    assert descend(model, optimizer, again, 500) == whole
    other = Planted()
    with pytest.raises(RequestError, match="of another model: it has 1 parameter"):
        sweep.watch(other, torch.optim.SGD(other.parameters(), lr=1.0)).load_state_dict(state)


def test_a_diverged_run_keeps_raising_and_its_error_can_be_sent_between_processes():
    model = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=9.0)
    guard = sweep.watch(model, optimizer)
    failure = descend(model, optimizer, guard, 500)
    with pytest.raises(Diverged) as caught:
        guard.check(0.0)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert copied.failure == failure and str(copied) == str(caught.value)
    assert failure["advice"] in str(copied) and json.loads(json.dumps(failure)) == failure


NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.5, 1.0, 20.0, 2e6])
PAIRS = st.lists(NUMBERS, min_size=2, max_size=2)
WEIGHTS = st.lists(st.floats(0, 1e3), min_size=2, max_size=2)


@given(
    st.lists(st.tuples(NUMBERS, PAIRS, WEIGHTS), max_size=60),
    st.sampled_from([None, 5.0, 1e6]),
    st.integers(1, 5),
)
@example(
    [(0.0, [0.0, norm], [0.0, 0.0]) for norm in (sys.float_info.max / 5, 0.0, math.inf)], None, 1
)
def test_the_judge_finds_what_the_rules_find(rows, growth, patience):
    """Its shortcut while training is calm changes nothing, nor does it that it sees the weights
    after an update one check later than the engines."""
    rules = DivergenceSpec(loss_growth=growth, gradient_growth=growth, patience=patience)
    judge = Judge(2, rules, torch.finfo(torch.float64).max)
    watch = new_watch(torch.tensor(rows[0][2] if rows else [0, 0], dtype=torch.float64))
    after = [*(weights for _, _, weights in rows[1:]), [0.0, 0.0]]
    for (loss, norms, weights), updated in zip(rows, after, strict=False):
        bad = judge.take(loss, [abs(n) for n in norms], weights, (0.1,))
        peaks = torch.tensor(norms, dtype=torch.float64).abs()
        norm = torch.tensor(math.hypot(*norms), dtype=torch.float64)
        value = torch.tensor(loss, dtype=torch.float64)
        before, sizes = watch, torch.tensor(updated, dtype=torch.float64)
        watch = observe(watch, value, norm, peaks, sizes, rules)
        assert bad == bool(watch.code) and judge.step == int(watch.step)
        if bad:
            assert judge.watch.code == watch.code
            assert torch.equal(judge.watch.peaks, watch.peaks)
            torch.testing.assert_close(judge.watch.growth, before.growth, rtol=1e-12, atol=0)
            torch.testing.assert_close(judge.watch.sizes, before.sizes, rtol=1e-12, atol=0)
            return


NETS = {
    "mlp": (planted_nets.Planted, toy_data.numbers),
    "rnn": (planted_nets.PlantedRecurrence, toy_data.sequences),
}
RULES = {
    "gradient": {"loss_growth": None, "gradient_growth": 1e3},
    "loss": {"gradient_growth": None, "loss_growth": 1e3},
    "not finite": {"loss_growth": None, "gradient_growth": None},
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("a, rate", [(30.0, 0.05), (60.0, 0.0125)])
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("every", [1, 16])
def test_the_layer_of_too_large_a_curvature_is_named_at_every_place(every, rules, a, rate, net):
    """What it grows into multiplies the gradients of the others, which are soon larger than its
    own; as of the engines in `tests/training/test_planted.py`."""
    kind, data = NETS[net]
    x, y = (torch.from_numpy(values).float() for values in data())
    layers = list(dict(kind(x.shape[1:], 1, "none").named_children()))
    assert len(layers) == 3
    for planted in [*layers, "none"]:
        torch.manual_seed(0)
        model = kind(x.shape[1:], 1, planted, a=a)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        guard = sweep.watch(model, optimizer, divergence=RULES[rules], every=every)
        batches = itertools.cycle(torch.arange(len(x)).split(4))

        def loss(net, batches=batches):
            rows = next(batches)
            return (net(x[rows])[:, 0] - y[rows]).square().mean() / 2

        failure = descend(model, optimizer, guard, 100, loss)
        if planted == "none":
            assert failure is None, "the same network without a plant is stable"
        else:
            assert failure["layer"].startswith(f"{planted}."), (planted, failure["message"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda m: (m, "sgd"), "a str as optimizer; give a torch.optim.Optimizer"),
        (lambda m: ("net", torch.optim.SGD(m.parameters(), lr=1.0)), "a str; give an nn.Module"),
        (lambda m: (nn.Linear, torch.optim.SGD(m.parameters(), lr=1.0)), "the class Linear; give"),
        (lambda m: (nn.ReLU(), torch.optim.SGD(m.parameters(), lr=1.0)), "ReLU has no parameters"),
        (lambda m: (nn.Linear(1, 1), torch.optim.SGD(m.parameters(), lr=1.0)), "none of the model"),
    ],
)
def test_what_cannot_be_watched_is_refused(arguments, words):
    with pytest.raises(RequestError, match=words):
        sweep.watch(*arguments(quadratic()))


def test_rules_are_those_of_a_study_file():
    model = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(RequestError, match=r"divergence\.patence: unknown key\. Did you mean pat"):
        sweep.watch(model, optimizer, divergence={"patence": 3})


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"every": 2.5},
        {"every": "3"},
        {"clip_norm": "1"},
        {"clip_norm": 0},
        {"scaler": "on"},
        {"trial": 3},
        {"divergence": "none"},
    ],
    ids=str,
)
def test_an_option_that_would_fail_later_is_refused_at_once(options):
    model = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    [(name, value)] = options.items()
    with pytest.raises(RequestError, match=f"^{name}={value!r} was given; give "):
        sweep.watch(model, optimizer, **options)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (torch.zeros(3), r"a loss of shape \(3,\); give one number"),
        (torch.zeros(0), r"a loss of shape \(0,\); give one number"),
        (None, "a NoneType as loss; give a number"),
        ("0.1", "a str as loss"),
        ([0.1], "a list as loss"),
    ],
)
def test_a_loss_that_is_no_number_is_refused(loss, words):
    model = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RequestError, match=words):
        sweep.watch(model, optimizer).check(loss)


def test_a_check_before_the_first_backward_is_refused():
    """There, and after zero_grad, are no gradients: nothing would ever be found in them."""
    model = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = sweep.watch(model, optimizer)
    loss = loss_of(model)
    with pytest.raises(RequestError, match=r"no gradient: call it after loss\.backward"):
        guard.check(loss)
    loss.backward()
    guard.check(loss)
    assert guard.step == 1


def test_a_state_that_is_no_guards_is_refused():
    model = quadratic()
    guard = sweep.watch(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RequestError, match="not one that guard"):
        guard.load_state_dict({"names": ["weight"]})
