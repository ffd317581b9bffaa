"""The exact solver: what it returns is the optimum, whoever computes it."""

import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge

from sweep.errors import SpecError
from sweep.problem.losses import loss_per_sample
from sweep.problem.regularizers import REGULARIZERS, make_regularizer
from sweep.spec.exact import NOT_SOLVED
from sweep.training.convex_member import ConvexMembers
from sweep.training.convex_penalty import Separable, stack_separable
from sweep.training.convex_support import solve_on_supports
from sweep.training.fista import Point, guess, solve, start_point
from sweep.training.lanes import LanesEngine
from sweep.training.member import Failure, Member
from sweep.training.preflight import preflight
from sweep.training.schedule import Schedule

from .test_engines_agree import assert_agree
from .trials import HERE, experiment, merge, train

STUDY = {
    "study": "exact",
    "data": {"source": "python:toy_data:numbers", "standardize": "none"},
    "task": "regression",
    "model": {"kind": "linear"},
    "train": {"optimizer": "fista", "dtype": "float64"},
    "cross_validation": {"kind": "kfold", "folds": 3},
}
TASKS = {
    "regression": {},
    "weighted": {"data": {"source": "python:toy_data:weighted"}},
    "wide": {"data": {"source": "python:toy_data:wide"}},
    "binary": {"data": {"source": "python:toy_data:two_classes"}, "task": "classification"},
    "softmax": {"data": {"source": "python:toy_data:three_classes"}, "task": "classification"},
}
PENALTIES = {
    "none": {"regularizer": "none"},
    "l1": {"regularizer": "l1", "lam": 0.03},
    "l2": {"regularizer": "l2", "lam": 0.1},
    "elastic_net": {"regularizer": "elastic_net", "lam": 0.05, "l1_ratio": 0.3},
    "group_lasso": {"regularizer": "group_lasso", "lam": 0.02},
    "python": {"regularizer": "python:toy_data:SoftThreshold", "lam": 0.03},
}
FREE = {"none": [], "bias": ["linear.bias"], "weight": ["linear.weight"]}


def test_every_regularizer_is_a_case():
    assert set(REGULARIZERS) - set(NOT_SOLVED) <= set(PENALTIES)


def optimum(exp, fold=0, **params):
    """(weight, bias or None) of one member, as its module would hold them."""
    members = ConvexMembers(exp)
    task = members.make(Member(0, fold, exp.spec.setting(params)))
    *_, found = solve(task)
    assert not isinstance(found, Failure), found.message
    return task.problem.design.model_weights(found)


def gradients(exp, weight, bias, fold=0):
    """Of the mean weighted loss on the rows as they are, with respect to weight and bias."""
    problem = exp.problem
    rows = torch.from_numpy(problem.folds[fold].train)
    x, y = problem.x_of(fold)[rows].double(), problem.y_of(fold)[rows]
    weight = weight.clone().requires_grad_()
    bias = torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias.clone()
    bias.requires_grad_()
    losses = loss_per_sample(problem.kind, x @ weight.T + bias, y)
    shares = exp.row_weights[fold]
    (losses if shares is None else losses * shares[rows]).mean().backward()
    return weight.grad, bias.grad


def check_optimality(exp, setting, weight, bias, penalize_bias=False):
    """w = prox_t(w - t * gradient) for any t, whatever is not penalized with a gradient of 0."""
    step = torch.tensor(0.7, dtype=torch.float64)
    for part, slope, is_penalized in zip(
        (weight, bias), gradients(exp, weight, bias), (True, penalize_bias), strict=True
    ):
        if part is None:
            continue
        moved = part - step * slope
        if is_penalized and setting.regularizer != "none":
            lam, ratio = (
                torch.tensor(v, dtype=torch.float64) for v in (setting.lam, setting.l1_ratio)
            )
            penalty = make_regularizer(setting.regularizer, lam, ratio, directory=HERE)
            moved = penalty.prox(moved, step)
        torch.testing.assert_close(part, moved, rtol=0, atol=1e-7)


@pytest.mark.parametrize("bias", ["free", "penalized", "none"])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("task", TASKS)
def test_the_optimality_conditions_hold(task, penalty, bias):
    study = merge(
        STUDY,
        **TASKS[task],
        **PENALTIES[penalty],
        model={"kind": "linear", "bias": bias != "none"},
        penalize_bias=bias == "penalized",
    )
    exp = experiment(study)
    weight, intercept = optimum(exp)
    assert (intercept is None) == (bias == "none")
    check_optimality(exp, exp.spec.setting({}), weight, intercept, bias == "penalized")


SCIKIT_LEARN = {
    "l1": Lasso(0.03, tol=1e-14, max_iter=100_000),
    "elastic_net": ElasticNet(0.05, l1_ratio=0.3, tol=1e-14, max_iter=100_000),
    "l2": Ridge(0.1 * 41),
}


@pytest.mark.parametrize("penalty", SCIKIT_LEARN)
def test_regressions_are_those_of_scikit_learn(penalty):
    exp = experiment(merge(STUDY, **PENALTIES[penalty]))
    rows = exp.problem.folds[0].train
    assert len(rows) == 41
    weight, bias = optimum(exp)
    model = SCIKIT_LEARN[penalty].fit(exp.problem.x_of(0)[rows], exp.problem.y_of(0)[rows])
    np.testing.assert_allclose(weight[0], model.coef_, rtol=0, atol=1e-8)
    np.testing.assert_allclose(bias[0], model.intercept_, rtol=0, atol=1e-8)


@pytest.mark.parametrize("penalty", ["l1", "l2", "elastic_net"])
@pytest.mark.parametrize("task", ["binary", "softmax"])
def test_classifiers_are_those_of_scikit_learn(task, penalty):
    exp = experiment(merge(STUDY, **TASKS[task], **PENALTIES[penalty]))
    setting, rows = exp.spec.setting({}), exp.problem.folds[0].train
    ratio = {"l1": 1.0, "l2": 0.0}.get(penalty, setting.l1_ratio)
    x, y = exp.problem.x_of(0)[rows], exp.problem.y_of(0)[rows]
    model = LogisticRegression(
        C=1 / (setting.lam * len(rows)),
        l1_ratio=ratio,
        solver="saga",
        tol=1e-10,
        max_iter=100_000,
        random_state=0,
    ).fit(x, y)
    weight, bias = optimum(exp)
    # Of all biases that predict the same, scikit-learn has another one.
    centre = (lambda b: b - b.mean()) if task == "softmax" else (lambda b: b)
    np.testing.assert_allclose(weight, model.coef_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(centre(bias.numpy()), centre(model.intercept_), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("task", TASKS)
def test_a_lane_equals_the_reference(task, penalty, dtype):
    if (task, penalty) == ("softmax", "none"):
        pytest.skip("these classes are separable: there is no optimum to agree on")
    if penalty == "python" and (dtype == "float64" or task == "wide"):
        pytest.skip("without Newton's method no two runs agree to nine digits")
    changes = {key: value for key, value in PENALTIES[penalty].items() if key != "lam"}
    study = merge(STUDY, **TASKS[task], **changes, train={"dtype": dtype})
    study["lambda"] = {"low": 1e-4, "high": 10.0, "log": True}
    results = assert_agree(study, {i: {"lambda": 10.0**-i} for i in range(4)}, 8, 1e-7)
    assert all(result.fold_scores for result in results.values())
    assert all(list(result.intermediate) == [0] for result in results.values())


def test_a_guess_is_right_on_the_right_support_only():
    """Its residual says which: of three lanes one lacks a weight, one has a wrong sign."""
    exp = experiment(merge(STUDY, **PENALTIES["l1"]))
    task = ConvexMembers(exp).make(Member(0, 0, exp.spec.setting({})))
    *_, w = solve(task)
    first = int(w[0].nonzero()[0])
    rough, less, flipped = w * 1.3, w.clone(), w.clone()
    less[0, first], flipped[0, first] = 0.0, -w[0, first]
    at = start_point(task.problem, w, 0.5)
    lanes = Point(*(torch.stack([part] * 3) for part in at))
    lanes = lanes._replace(w=torch.stack([rough, less, flipped]))
    new = guess([task] * 3, stack_separable([task.penalty] * 3), lanes)
    torch.testing.assert_close(new.w[0], w, rtol=0, atol=1e-10)
    torch.testing.assert_close(new.w_image[0], task.problem.loss.image(w), rtol=0, atol=1e-10)
    assert new.residual[0] <= task.tolerance
    for i in (1, 2):
        assert torch.equal(new.w[i], lanes.w[i]) and new.residual[i] == torch.inf


def test_supports_of_any_width_are_solved_together_as_each_alone():
    """Singular ones included, whose weights are not determined."""
    exp = experiment(merge(STUDY, **PENALTIES["l1"]))
    task = ConvexMembers(exp).make(Member(0, 0, exp.spec.setting({})))
    loss, columns = task.problem.loss, task.problem.start.shape[1]
    loss.gram[:, -2], loss.gram[-2] = loss.gram[:, -1], loss.gram[-1]
    loss.gram[-2, -2] = loss.gram[-1, -1]
    w = torch.tril(torch.ones(columns + 1, columns, dtype=torch.float64), -1).flip(1).unsqueeze(1)
    w[:, 0, -2] = 0.0
    w[-1, 0, -2] = 1.0
    penalties = stack_separable([task.penalty] * len(w))
    step = torch.full((len(w),), 0.5, dtype=torch.float64)
    together = solve_on_supports(loss, penalties, w, step)
    for i in range(len(w)):
        lane = slice(i, i + 1)
        one = Separable(*(part[lane] for part in penalties))
        alone = solve_on_supports(loss, one, w[lane], step[lane])
        for many, single in zip(together, alone, strict=True):
            torch.testing.assert_close(many[lane], single, rtol=1e-9, atol=1e-12, equal_nan=True)
    undetermined = together[2].isnan()
    assert undetermined[-1] and not undetermined[:-1].any()


def test_groups_of_features_leave_together():
    names = {"group": ["x0", "x1"], "other": ["x2", "x3", "x4"]}
    study = merge(STUDY, regularizer="group_lasso", lam=0.5, feature_groups=names)
    exp = experiment(study)
    weight, _ = optimum(exp)
    assert weight[0, :2].all() and not weight[0, 2:].any()
    assert_agree(study, {0: {}})


def test_a_lane_of_nothing_to_learn_is_at_its_optimum_at_once():
    exp = experiment(merge(STUDY, regularizer="l1", lam=1e3))
    weight, bias = optimum(exp)
    assert not weight.any()
    y = exp.problem.y_of(0)[torch.from_numpy(exp.problem.folds[0].train)]
    torch.testing.assert_close(bias[0], y.mean())


# Problems without an optimum, or without one that can be found.


@pytest.mark.parametrize("engine", ["lanes", "reference"])
def test_iterations_that_do_not_suffice_fail_the_trial_and_say_so(engine):
    study = merge(STUDY, **TASKS["binary"], regularizer="l1", lam=1e-3, train={"epochs": 7})
    failure = train(experiment(study), {0: {}}, engine)[0].failure
    assert (failure.kind, failure.reason, failure.fold, failure.step) == (
        "error",
        "not_converged",
        0,
        7,
    )
    assert "after 7 iterations" in failure.message and "train.tolerance" in failure.message


@pytest.mark.parametrize("engine", ["lanes", "reference"])
@pytest.mark.parametrize("source", ["wide", "separable_twice"])
def test_without_a_unique_optimum_it_ends(source, engine):
    """More columns than rows: every residual vanishes. Separable classes: the gradient does."""
    study = merge(STUDY, data={"source": f"python:toy_data:{source}"})
    if source == "separable_twice":
        study = merge(study, task="classification", cross_validation={"kind": "column"})
    result = train(experiment(study), {0: {}}, engine)[0]
    assert result.failure is None and max(result.train_scores) < 1e-6


@pytest.mark.parametrize("engine", ["lanes", "reference"])
def test_a_penalty_that_is_no_number_fails_its_own_trials_only(engine):
    changes = {"low": 0.01, "high": 10.0}
    study = merge(STUDY, regularizer="python:toy_data:NotANumber", train={"epochs": 200})
    study["lambda"] = changes
    results = train(experiment(study), {0: {"lambda": 0.1}, 1: {"lambda": 2.0}}, engine)
    assert results[0].failure is None
    failure = results[1].failure
    assert (failure.kind, failure.reason) == ("divergence", "nonfinite_parameter")


def test_a_regularizer_without_prox_is_refused_before_anything_is_trained():
    exp = experiment(merge(STUDY, regularizer="python:toy_data:Cauchy", lam=0.1))
    with pytest.raises(SpecError, match=r"has no prox\(w, step\), which train.optimizer fista"):
        preflight(exp)


def test_members_can_be_removed_and_stopped():
    study = merge(STUDY, **TASKS["softmax"], regularizer="l1", train={"tolerance": 1e-14})
    study["lambda"] = {"low": 1e-9, "high": 1.0, "log": True}
    exp = experiment(study)
    engine = LanesEngine(exp, 4)
    for trial in range(4):
        engine.add(Member(trial, 0, exp.spec.setting({"lambda": 1e-6})))
    engine.remove((0, 0))
    engine.limit((1, 0), 3)
    done = {}
    while engine.pending:
        done.update({event.member.trial: event for event in engine.advance()})
    assert set(done) == {1, 2, 3}
    assert done[1].outcome.stopped


def test_advance_returns_soon():
    """Ctrl-C and the live display wait for it."""
    study = merge(STUDY, data={"source": "sklearn:digits"}, task="classification", regularizer="l1")
    study["lambda"] = {"low": 1e-6, "high": 1.0, "log": True}
    exp = experiment(study)
    schedule = Schedule(LanesEngine(exp, 64), 3)
    for trial in range(8):
        schedule.start(trial, exp.spec.setting({"lambda": 10.0 ** (-2 - trial / 2)}))
    longest = 0.0
    for _ in range(30):
        began = time.thread_time()
        schedule.advance()
        longest = max(longest, time.thread_time() - began)
    assert longest < 0.5
