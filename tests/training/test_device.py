"""Training on another device than the CPU, without one: on a device that is pretended, where a
tensor left behind on the CPU raises as it would on a GPU. What needs a real one is in test_gpu.py.
"""

from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from sweep.errors import RequestError
from sweep.problem import scaling
from sweep.spec import load_spec
from sweep.training import lanes_evaluate, lanes_graph
from sweep.training.batches import FoldTable
from sweep.training.device import CPU, choose_device
from sweep.training.engines import MAX_SLOTS, MAX_SLOTS_ON_DEVICE, slots_in_flight
from sweep.training.lanes import LanesEngine
from sweep.training.lanes_graph import NotCapturedError
from sweep.training.lanes_step import LaneStep
from sweep.training.pace import measure
from sweep.training.pool import ReferencePool
from sweep.training.schedule import Finished, Schedule

from .pretend_device import PRETEND, WAITS, pretend_device
from .test_engines_agree import CLIPPING, MODELS, OPTIMIZERS, PENALTIES, SCHEDULES
from .trials import BASE, experiment, merge, train

SHORT = {"train": {**BASE["train"], "epochs": 2}, "cross_validation": {"folds": 2}}
STUDIES = {
    **{f"model {name}": case for name, case in MODELS.items()},
    **{f"optimizer {name}": {"train": case} for name, case in OPTIMIZERS.items()},
    **{f"penalty {name}": case for name, case in PENALTIES.items()},
    **{f"clipping {name}": {"train": case} for name, case in CLIPPING.items()},
    **{f"schedule {name}": {"train": case} for name, case in SCHEDULES.items()},
    "a prox by coordinate": {
        "regularizer": "group_lasso",
        "lam": 0.02,
        "train": {"optimizer": "adam"},
    },
    "more scores": {"scores": ["accuracy", "roc_auc", "f1_macro"]},
    "a score without a formula": {"score": "balanced_accuracy"},
    "groups of columns": {
        "data": {"source": "sklearn:iris"},
        "model": {"kind": "linear"},
        "regularizer": "group_lasso",
        "lam": 0.1,
        "feature_groups": {"sepal": ["sepal length (cm)", "sepal width (cm)"]},
    },
}
TRIALS = {i: {"learning_rate": rate} for i, rate in enumerate([0.03, 1e300, 0.1])}
LANES = {"memory": 10**9, "compile_when": "auto"}


def studied(case):
    study = merge(merge(BASE, **SHORT), **STUDIES[case])
    return experiment(study)


def captured_by_hand(work, rehearse, device):
    """`capture` as far as it goes without a GPU: the graph is the work itself."""
    assert device.type == PRETEND.type
    rehearse()
    return work


@contextmanager
def elsewhere(exp, capture=captured_by_hand):
    """(the experiment on the pretended device, what made a step wait there)"""
    waits, step = [], LaneStep.__call__

    def watched(self, *inputs):
        before = len(WAITS)
        after = step(self, *inputs)
        waits.extend(WAITS[before:])
        return after

    with (
        pretend_device() as device,
        patch.object(lanes_graph, "can_capture", lambda device: capture is not None),
        patch.object(lanes_graph, "capture", capture),
        patch.object(LaneStep, "__call__", watched),
    ):
        yield replace(exp, device=device), waits


@pytest.mark.parametrize("case", STUDIES)
def test_lanes_elsewhere_come_to_what_they_come_to_here_and_no_step_waits(case):
    exp = studied(case)
    with elsewhere(exp) as (away, waits):
        results = train(away, TRIALS, **LANES)
    assert results == train(exp, TRIALS) and not waits


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * (not case.startswith("model")))
        for case in STUDIES
    ],
)
def test_the_reference_elsewhere_comes_to_what_it_comes_to_here(case):
    exp = studied(case)
    with elsewhere(exp) as (away, _):
        results = train(away, TRIALS, "reference")
    assert results == train(exp, TRIALS, "reference")


def test_a_step_that_is_not_captured_comes_to_the_same():
    exp = studied("clipping all")
    with elsewhere(exp, capture=None) as (away, _):
        results = train(away, TRIALS, **LANES)
    assert results == train(exp, TRIALS)


def test_data_that_are_standardized_as_they_are_taken_and_scored_a_few_rows_at_a_time():
    with (
        patch.object(scaling, "MOST_BYTES", 0),
        patch.object(lanes_evaluate, "NUMBERS_AT_ONCE", 100),
        patch.object(lanes_evaluate, "NUMBERS_ON_DEVICE", 100),
    ):
        exp = studied("model weighted")
        assert exp.problem.scaling is not None
        for engine, options in (("lanes", LANES), ("reference", {})):
            with elsewhere(exp) as (away, waits):
                results = train(away, TRIALS, engine, **options)
            assert results == train(exp, TRIALS, engine) and not waits


def engine_of(exp, slots, trials, **options):
    """(results, notices, how it described itself) of lanes that may have something to say."""
    notices, results = [], {}
    engine = LanesEngine(exp, slots, notices.append, **{**LANES, **options})
    schedule = Schedule(engine, len(exp.problem.folds))
    for number, params in trials.items():
        schedule.start(number, exp.spec.setting(params))
    words = set()
    while schedule.in_flight:
        for news in schedule.advance():
            if isinstance(news, Finished):
                results[news.trial] = news.result
        words.add(engine.describe())
    engine.close()
    return results, notices, words


FOUR = {i: {"learning_rate": 0.02 * (i + 1)} for i in range(4)}


def test_on_a_gpu_all_members_in_flight_train_at_once_on_a_cpu_half_of_them():
    gpu = torch.device("cuda")
    assert [slots_in_flight(32, 5, device) for device in (CPU, gpu)] == [80, 160]
    assert [slots_in_flight(1, 3, device) for device in (CPU, gpu)] == [2, 3]
    most = [slots_in_flight(10**6, 5, device) for device in (CPU, gpu)]
    assert most == [MAX_SLOTS, MAX_SLOTS_ON_DEVICE]


def test_another_number_of_lanes_is_captured_anew():
    exp, captures = studied("model mlp"), []

    def capture(*asked):
        captures.append(asked)
        return captured_by_hand(*asked)

    with elsewhere(exp, capture) as (away, _):
        results, notices, words = engine_of(away, 6, FOUR)
    assert results == train(exp, FOUR, slots=6) and len(captures) > 1 and not notices
    assert "lanes, 6 slots, captured, lazy" in words


def test_what_cannot_be_captured_goes_on_eagerly_and_says_so():
    exp = studied("model mlp")

    def capture(work, rehearse, device):
        rehearse()
        raise NotCapturedError("a number is looked at")

    with elsewhere(exp, capture) as (away, _):
        results, notices, words = engine_of(away, 8, FOUR)
    assert results == train(exp, FOUR, slots=8)
    (notice,) = notices
    assert "eagerly, since capturing it failed: NotCapturedError: a number is looked" in notice
    assert words == {"lanes, 8 slots, eager, lazy"}


def test_a_module_that_cannot_be_batched_trains_alone_on_the_device():
    exp = experiment(merge(BASE, **SHORT, model={"kind": "python:toy_data:LooksAtData"}))
    with elsewhere(exp) as (away, _):
        results, _, words = engine_of(away, 8, FOUR)
        assert ReferencePool(away, processes=4, memory=LANES["memory"]).processes == 1
    assert results == train(exp, FOUR, "reference")
    assert "reference, one model at a time, lazy: model uses .item()" in words


def test_the_time_is_measured_on_the_device():
    exp = studied("model mlp")
    settings = [exp.spec.setting(params) for params in FOUR.values()]
    with elsewhere(exp) as (away, _):
        pace = measure(away, settings, 40, memory=LANES["memory"])
    assert pace.engine.endswith("captured, lazy") and pace.training > 0


def test_a_device_whose_memory_runs_out_goes_on_with_half_as_many():
    exp = studied("model mlp")

    def capture(work, rehearse, device):
        if rehearse.__closure__[1].cell_contents[0].shape[0] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return captured_by_hand(work, rehearse, device)

    with elsewhere(exp, capture) as (away, _):
        results, notices, _ = engine_of(away, 8, FOUR)
    assert results == train(exp, FOUR, slots=4)
    assert notices == ["out of memory with 8 models at once; going on with 4"]


def test_a_tensor_left_behind_raises():
    """On the pretended device, as on a GPU; else none of the above could fail."""
    exp = studied("clipping all")
    with elsewhere(exp) as (away, _):
        here = FoldTable.of(exp)
        for attribute in ("x", "y", "x_start", "y_start"):
            table = FoldTable.of(away)._replace(**{attribute: getattr(here, attribute)})
            zero = torch.zeros(2, dtype=torch.int64, device=away.device)
            with pytest.raises(RuntimeError, match="tensors of the CPU beside some of the device"):
                table.take(zero, zero.unsqueeze(1))


def test_the_device_is_the_cpu_where_there_is_no_gpu_and_for_the_exact_solver():
    spec = load_spec(BASE).spec
    exact = load_spec({**BASE, "model": {"kind": "linear"}, "train": {"optimizer": "fista"}}).spec
    with patch.object(torch.cuda, "is_available", lambda: False):
        assert choose_device("auto", spec) == choose_device("cpu", spec) == CPU
        with pytest.raises(RequestError, match=r"cuda was asked for, but torch .*device auto or"):
            choose_device("cuda", spec)
        with pytest.raises(RequestError, match="No device 'tpu'"):
            choose_device("tpu", spec)
    with patch.object(torch.cuda, "is_available", lambda: True):
        assert choose_device("auto", spec) == choose_device("cuda", spec) == torch.device("cuda")
        assert choose_device("auto", exact) == choose_device("cpu", exact) == CPU
        with pytest.raises(RequestError, match="fista solves on the CPU"):
            choose_device("cuda", exact)
