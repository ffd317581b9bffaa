"""The batched engine's own laws: slots, refilling, modules that cannot be batched."""

import sys
import threading

import numpy as np
import pytest
import torch

from sweep.training import lanes_operators, lanes_program
from sweep.training.lanes import LanesEngine
from sweep.training.lanes_library import CompiledProgram
from sweep.training.lanes_member import LaneModel
from sweep.training.lanes_program import Program
from sweep.training.lanes_stepper import STEP
from sweep.training.member import Member
from sweep.training.schedule import Finished, Schedule

from .test_engines_agree import assert_agree
from .trials import BASE, experiment, merge, train


@pytest.mark.parametrize("slots", [1, 4, 7])
def test_few_slots_refilled_change_no_result(slots, scored):
    """Members that wait for a slot, in lanes at different epochs, of different lengths."""
    study = merge(BASE, train={"epochs": {"choices": [2, 5, 3]}})
    rates = [0.03, 1e300, 0.1, 1e10, 0.01, 0.2, 0.05]
    trials = {i: {"learning_rate": r, "epochs": [2, 5, 3][i % 3]} for i, r in enumerate(rates)}
    assert_agree(study, trials, slots)


def test_knobs_of_other_shapes_train_beside_each_other():
    study = merge(
        BASE,
        model={
            "kind": "mlp",
            "hidden": {"choices": [[6], [4, 3]]},
            "dropout": {"low": 0, "high": 0.5},
        },
        train={"batch_size": {"choices": [16, "full"]}, "optimizer": {"choices": ["sgd", "adam"]}},
    )  # fmt: skip
    trials = {
        i: {
            "learning_rate": 0.05,
            "hidden": ["[6]", "[4, 3]"][i % 2],
            "dropout": 0.1 * (i % 3),
            "batch_size": [16, "full"][i % 2],
            "optimizer": ["sgd", "adam"][i // 4],
        }
        for i in range(8)
    }
    assert_agree(study, trials)


def run(study, trials):
    """(results, notices) of trials that may leave the lanes."""
    exp, notices, results = experiment(study), [], {}
    schedule = Schedule(LanesEngine(exp, 64, notices.append), len(exp.problem.folds))
    for number, params in trials.items():
        schedule.start(number, exp.spec.setting(params))
    while schedule.in_flight:
        for news in schedule.advance():
            if isinstance(news, Finished):
                results[news.trial] = news.result
    return exp, results, notices


def test_a_module_that_cannot_be_batched_trains_on_the_reference_engine_visibly():
    study = merge(BASE, model={"kind": "python:toy_data:LooksAtData"})
    trials = {0: {"learning_rate": 0.05}, 1: {"learning_rate": 0.1}}
    exp, results, notices = run(study, trials)
    assert len(notices) == 1 and "python:toy_data:LooksAtData" in notices[0]
    alone = train(exp, trials, "reference")
    for number, result in alone.items():
        np.testing.assert_array_equal(results[number].fold_scores, result.fold_scores)


def test_a_module_that_raises_in_one_trial_fails_that_trial_alone():
    study = merge(BASE, model={"kind": "python:toy_data:BreaksLate"})
    _, results, _ = run(study, {0: {"learning_rate": 0.01}, 1: {"learning_rate": 50.0}})
    assert results[0].failure is None
    failure = results[1].failure
    assert failure is not None and failure.kind == "error"
    assert failure.reason == "RuntimeError" and "the head is too large" in failure.message


@pytest.mark.parametrize("patience", [None, 1])
def test_every_end_of_a_member_is_that_of_one_model(patience, scored):
    """Explosions of all sizes, limits of their siblings, stopping early; more scores than one."""
    stopping = {} if patience is None else {"early_stopping": {"patience": patience}}
    study = merge(BASE, train={"epochs": 6, **stopping}, scores=["accuracy", "f1_macro"])
    rates = [0.03, 1e300, 3.0, 1e10, 0.01, 20.0, 0.05, 1e150, 1.5, 0.2]
    assert_agree(study, {i: {"learning_rate": rate} for i, rate in enumerate(rates)}, 6)


@pytest.mark.parametrize("after", [0, 8, 40])
@pytest.mark.parametrize("patience", [None, 1])
@pytest.mark.parametrize("slots", [4, 7])
def test_lanes_that_come_to_be_in_two_banks_end_as_one_model(
    after, patience, slots, scored, monkeypatch
):
    """After so many updates: at once, in an epoch, when some have a best epoch to go back to."""
    divided = []

    def is_worth_two(program):
        divided.extend([program] * (program.trained >= after))
        return program.trained >= after

    monkeypatch.setattr(Program, "_is_worth_two", is_worth_two)
    stopping = {} if patience is None else {"early_stopping": {"patience": patience}}
    study = merge(BASE, train={"epochs": {"choices": [2, 6]}, **stopping})
    rates = [0.03, 1e300, 3.0, 1e10, 0.01, 20.0, 0.05]
    trials = {i: {"learning_rate": r, "epochs": [2, 6][i % 2]} for i, r in enumerate(rates)}
    assert_agree(study, trials, slots)
    (program,) = divided
    assert len(program.banks) == 2


def test_an_epoch_before_a_limit_is_known_before_its_member_ends(scored):
    """Its trial has failed, and reports the epochs before that."""
    exp = experiment(BASE)
    engine = LanesEngine(exp, 2)
    engine.add(Member(0, 0, exp.spec.setting({"learning_rate": 0.05})))
    (plan,) = (model.plan for program in engine.programs for model in program.models())
    engine.limit((0, 0), 2 * plan.steps_per_epoch)
    events = []
    while engine.pending:
        events += engine.advance()
    assert [getattr(event, "epoch", None) for event in events] == [0, 1, None]
    assert events[-1].outcome.stopped


def test_a_member_that_is_removed_leaves_the_others_as_they_are(scored):
    exp = experiment(BASE)
    trials = {i: {"learning_rate": 0.02 * (i + 1)} for i in range(3)}
    alone = train(exp, trials, "reference")
    schedule = Schedule(LanesEngine(exp, 64), 3)
    for number, params in trials.items():
        schedule.start(number, exp.spec.setting(params))
    schedule.advance()
    schedule.cancel(1)
    results = {}
    while schedule.in_flight:
        for news in schedule.advance():
            if isinstance(news, Finished):
                results[news.trial] = news.result
    assert results.keys() == {0, 2}
    for number, result in results.items():
        np.testing.assert_allclose(result.fold_scores, alone[number].fold_scores, rtol=1e-9)


COMPILED = {
    "mlp with everything": {
        # Weights enough for the compiler to have numbers kept.
        "model": {"kind": "mlp", "hidden": [16, 6], "dropout": 0.2},
        "regularizer": {"choices": ["none", "l1", "l2", "elastic_net"]},
        "lambda": {"low": 1e-6, "high": 1, "log": True},
        "train": {**BASE["train"], "momentum": 0.8, "clip_norm": {"choices": [None, 0.5]}},
    },
    "every cure": {
        "model": {"kind": "rnn", "hidden": 4},
        "data": {"source": "python:toy_data:sequences"},
        "task": "regression",
        "regularizer": {"choices": ["none", "spectral", "orthogonal", "vanishing"]},
        "lambda": {"low": 1e-6, "high": 1, "log": True},
        "train": {
            **BASE["train"],
            "optimizer": "normalized_sgd",
            "weight_decay": 0.01,
            "decoupled_weight_decay": True,
            "clip_norm": {"choices": [None, 0.5]},
            "clip_layer": 0.3,
            "clip_percentile": 40,
        },
    },
    "mlp that stops early": {
        "model": {"kind": "mlp", "hidden": [16, 6], "dropout": 0.2},
        "regularizer": {"choices": ["none", "l1", "l2", "elastic_net"]},
        "lambda": {"low": 1e-6, "high": 1, "log": True},
        "train": {
            **BASE["train"],
            "momentum": 0.8,
            "clip_norm": {"choices": [None, 0.5]},
            "early_stopping": {"patience": 1},
        },
    },
    "batch normalisation and adam": {
        "model": {"kind": "python:toy_data:Normalized"},
        "regularizer": {"choices": ["none", "group_lasso"]},
        "lambda": {"low": 1e-6, "high": 1, "log": True},
        "train": {**BASE["train"], "optimizer": "adam"},
    },
    "lstm": {
        "model": {"kind": "lstm", "hidden": 4},
        "data": {"source": "python:toy_data:sequences"},
        "task": "regression",
    },
    "cnn": {
        "model": {"kind": "cnn", "channels": [3, 2], "hidden": 5},
        "data": {"source": "python:toy_data:images"},
    },
    "convolution with groups": {
        "model": {"kind": "python:toy_data:Grouped"},
        "data": {"source": "python:toy_data:images"},
    },
}


SLOW = ("every cure", "batch normalisation and adam", "lstm", "cnn", "convolution with groups")


@pytest.mark.parametrize(
    "case", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in COMPILED]
)
@pytest.mark.parametrize("banks", [1, 2])
def test_a_compiled_step_changes_no_result(case, banks, monkeypatch):
    monkeypatch.setattr(lanes_program, "LEAST_LANES", 4 / torch.get_num_threads() / banks**2)
    exp = experiment({**BASE, **COMPILED[case]})
    penalties = COMPILED[case].get("regularizer", {"choices": ["none"]})["choices"]
    trials = {
        i: {
            "learning_rate": [0.03, 1e200, 0.1, 0.05][i % 4],
            "lambda": 0.01,
            "regularizer": penalties[i % len(penalties)],
            "clip_norm": [None, 0.5][i % 2],
        }
        for i in range(5)
    }
    notices = []
    engine = LanesEngine(exp, 6, notices.append, compile_when="always")
    schedule = Schedule(engine, 3)
    for number, params in trials.items():
        schedule.start(number, exp.spec.setting(params))
    results, compiled = {}, False
    while schedule.in_flight:
        for news in schedule.advance():
            if isinstance(news, Finished):
                results[news.trial] = news.result
        compiled = compiled or "compiled" in engine.describe()
    programs = [program.stepper.compilation for program in engine.programs]
    has = {len(program.banks) for program in engine.programs}
    engine.close()
    if any("compiler" in text for text in notices):
        pytest.skip("no C++ compiler here: training stays eager")
    assert compiled and not notices, notices
    assert has == {banks}
    steps = [program.libraries[STEP].read_bytes() for program in programs]
    if lanes_operators._native and sys.platform == "linux":
        # With the native library's own tensors.
        assert all(b"\0aoti_sweep_empty_strided\0" in step for step in steps)
        if case.startswith("mlp"):
            assert all(b"\0aoti_sweep_cpu_lanes_kept\0" in step for step in steps)
            assert all(b"\0aoti_sweep_cpu_lanes_matmul_relu\0" in step for step in steps)
    alone = train(exp, trials, "reference")
    for number, one in alone.items():
        if one.failure is not None:
            assert results[number].failure.step == one.failure.step
            assert results[number].failure.reason == one.failure.reason
        else:
            np.testing.assert_allclose(results[number].fold_scores, one.fold_scores, rtol=1e-9)


def test_slots_follow_the_memory_and_a_model_too_large_for_two_trains_alone():
    exp = experiment(BASE)
    notices = []
    small = LanesEngine(exp, 64, notices.append, memory=1)
    large = LanesEngine(exp, 64, notices.append, memory=10**9)
    for engine in (small, large):
        schedule = Schedule(engine, 3)
        for number in range(4):
            schedule.start(number, exp.spec.setting({"learning_rate": 0.1}))
    assert small.reference.pending == 12 and "memory" in notices[0]
    assert large.reference.pending == 0


def test_a_free_slot_is_filled_when_the_others_epoch_ends_so_that_lanes_stay_in_step():
    # An epoch is longer than a chunk, or slots would fall free at its end only.
    exp = experiment(merge(BASE, train={"batch_size": 2}))
    rates = [0.05, 1e200, 0.05, 0.05]
    models = [
        LaneModel.build(exp, Member(trial, 0, exp.spec.setting({"learning_rate": rate})))
        for trial, rate in enumerate(rates)
    ]
    program = Program(exp, models[0], 3)
    program.waiting.extend(models)
    left, joined = False, False
    while program.pending:
        program.advance()
        seated = [lane for lane in program.banks[0].seats.lanes if lane is not None]
        left = left or all(lane.model is not models[1] for lane in seated)
        if left and any(lane.model is models[3] for lane in seated):
            joined = True
        at = program.banks[0].seats.table[program.banks[0].seats.taken]
        assert len(set(at["step"] % at["per_epoch"])) <= 1
    assert left and joined


def test_a_free_slot_is_filled_where_any_epoch_begins_also_between_lanes_out_of_step():
    """Some lane is always in the midst of its epoch then, and near its end."""
    # An epoch is longer than the first chunk.
    exp = experiment(merge(BASE, train={"batch_size": 2}))
    rates = [0.05, 1e200, 1e200, 1e200, 0.05, 1e200, 1e200, 0.05]
    setting = exp.spec.setting
    models = [
        LaneModel.build(exp, Member(trial, 0, setting({"learning_rate": rate})))
        for trial, rate in enumerate(rates)
    ]
    program = Program(exp, models[0], 4)
    program.waiting.extend(models)
    phases = set()
    while program.waiting:
        program.advance()
        at = program.banks[0].seats.table[program.banks[0].seats.taken]
        phases.add(len(set(at["step"] % at["per_epoch"])))
    seated = [lane.model for lane in program.banks[0].seats.lanes if lane is not None]
    assert 2 in phases
    assert models[0] in seated and models[4] in seated and models[7] in seated


def test_compiled_steps_go_on_while_what_came_of_the_last_ones_is_dealt_with(monkeypatch):
    exp = experiment(merge({**BASE, **COMPILED["mlp with everything"]}, train={"epochs": 8}))
    notices = []
    engine = LanesEngine(exp, 6, notices.append, compile_when="always")
    params = {"learning_rate": 0.05, "lambda": 0.01, "regularizer": "l2", "clip_norm": None}
    for fold in range(3):
        engine.add(Member(0, fold, exp.spec.setting(params)))
    while not (events := engine.advance()):
        pass
    if any("compiler" in text for text in notices):
        pytest.skip("no C++ compiler here: training stays eager")
    (program,) = engine.programs
    (bank,) = program.banks
    # Scores that are not compiled are awaited before the next steps begin.
    program.stepper.compilation.wait("scoring")
    while not program.evaluation.compiled:
        events += engine.advance()
    program.stepper.wait()
    begun, may_go_on, steps = threading.Event(), threading.Event(), CompiledProgram.steps

    def held_up(self, state, inputs, *more):
        if inputs and bank.seats.nearest_end() == 0:
            begun.set()
            assert may_go_on.wait(60)
        steps(self, state, inputs, *more)

    monkeypatch.setattr(CompiledProgram, "steps", held_up)
    known = len({event.epoch for event in events})
    while len({event.epoch for event in events}) == known:
        events += engine.advance()
    # What another epoch came to is known, and the one after it has begun.
    assert begun.wait(60) and not may_go_on.is_set()
    # Nor has the engine given the program up, since its steps came to no end.
    assert not notices
    may_go_on.set()
    while engine.pending:
        events += engine.advance()
    engine.close()
    outcomes = {e.member.fold: e.outcome.score for e in events if not hasattr(e, "epoch")}
    alone = train(exp, {0: params}, "reference")[0]
    np.testing.assert_allclose([outcomes[k] for k in range(3)], alone.fold_scores, rtol=1e-9)
