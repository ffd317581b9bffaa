"""A user's own module or regularizer gives the same on both engines, whatever it does inside."""

import numpy as np
import pytest

from sweep.errors import DataError, SpecError
from sweep.problem.prepare import prepare
from sweep.spec import StudyFile, load_spec
from sweep.training.preflight import make_experiment

from .test_engines_agree import OPTIMIZERS, assert_agree
from .test_lanes import run
from .trials import BASE, HERE, experiment, merge, train

TRIALS = {i: {"learning_rate": rate} for i, rate in enumerate([0.03, 0.1, 0.05])}


def study_of(name, **changes):
    # 41 or 42 training rows: the last batch is short.
    return merge(BASE, model={"kind": f"python:toy_data:{name}"}, **changes)


@pytest.mark.parametrize("name", ["RunningMean", "LateMean", "instance_norm", "Unused"])
def test_modules_whose_rows_and_buffers_meet_are_trained_in_lanes_as_alone(name):
    """`assert_agree` allows no notice: these are stacked."""
    assert_agree(study_of(name), TRIALS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_that_nothing_depends_on_are_treated_alike(optimizer):
    training = {**BASE["train"], **OPTIMIZERS[optimizer], "weight_decay": 0.01}
    assert_agree(study_of("Unused", regularizer="l1", lam=0.01, train=training), TRIALS)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Scaled", "depends on the rows beside it"),
        ("Reassigned", "replaces its buffers"),
        ("Counts", "keeps outside its buffers"),
        ("CutOff", "cut off from its parameters"),
    ],
)
def test_modules_that_lanes_would_falsify_train_alone_and_it_is_said(name, why):
    exp, results, notices = run(study_of(name), TRIALS)
    assert len(notices) == 1 and why in notices[0]
    for number, alone in train(exp, TRIALS, "reference").items():
        if name == "CutOff":
            assert alone.failure.kind == results[number].failure.kind == "error"
        else:
            np.testing.assert_array_equal(results[number].fold_scores, alone.fold_scores)


@pytest.mark.parametrize("engine", ["lanes", "reference"])
def test_a_prox_that_works_in_place_solves_the_same_problem(engine):
    scores = []
    for name in ("SoftThreshold", "InPlace"):
        training = {**BASE["train"], "momentum": 0.9}
        exp = experiment(
            merge(BASE, regularizer=f"python:toy_data:{name}", lam=0.05, train=training)
        )
        scores.append(train(exp, TRIALS, engine)[0].fold_scores)
    np.testing.assert_array_equal(*scores)


def refused(study):
    loaded = load_spec(study)
    with pytest.raises(SpecError) as refusal:
        make_experiment(StudyFile(loaded.spec, loaded.text, HERE, "own.yaml"))
    assert str(refusal.value).startswith("own.yaml: ")
    return str(refusal.value)


def test_a_regularizer_that_returns_the_wrong_thing_is_refused_before_training():
    def study(name):
        return merge(BASE, regularizer=f"python:toy_data:{name}", lam=0.1)

    assert "prox(w, step) returned shape (5,) for w of shape (6, 5)" in refused(study("OneRow"))
    assert "value(w) returned shape (6, 5)" in refused(study("NoNumber"))


def test_a_penalty_that_finds_nothing_to_act_on_is_refused_before_training():
    net = {"data": {"source": "python:toy_data:sequences"}, "task": "regression", "lam": 0.1}
    rnn = {"model": {"kind": "rnn"}, "penalize": ["*weight_ih*", "head.weight"]}
    assert "penalize leaves them all out" in refused(
        merge(BASE, regularizer="vanishing", **net, **rnn)
    )
    only_biases = {"penalize_bias": True, "penalize": ["*bias"], "lam": 0.1}
    assert "is for matrices, and penalize selects none. Matrices: hidden.0.weight" in refused(
        merge(BASE, regularizer="orthogonal", **only_biases)
    )


def test_a_module_that_returns_the_wrong_thing_is_refused_before_training():
    assert "returned shape (4, 5), expected (batch, 3)" in refused(study_of("Wide"))
    assert "returned a tuple, expected a tensor" in refused(study_of("Pair"))
    assert "nothing to train" in refused(study_of("Empty"))


def test_code_that_ends_the_process_fails_its_trial_alone():
    _, results, _ = run(study_of("Leaves"), {0: {"learning_rate": 0.1}})
    assert results[0].failure.kind == "error" and results[0].failure.reason == "SystemExit"
    spec = load_spec(merge(BASE, data={"source": "python:toy_data:leaves"})).spec
    with pytest.raises(DataError, match="raised SystemExit"):
        prepare(spec, HERE)


@pytest.mark.parametrize("engine", ["lanes", "reference"])
def test_the_epoch_of_an_undefined_score_counts_from_0(engine):
    exp = experiment(
        merge(BASE, data={"source": "python:toy_data:ordered"}, score="roc_auc",
              cross_validation={"kind": "column"})
    )  # fmt: skip
    failure = train(exp, {0: {"learning_rate": 0.1}}, engine)[0].failure
    assert (failure.reason, failure.epoch, failure.step) == ("undefined_score", 0, 2)
