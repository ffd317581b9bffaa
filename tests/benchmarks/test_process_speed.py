"""What a second process is worth to a model that cannot be batched.

    pytest -m benchmark -n 0 -s tests/benchmarks/test_process_speed.py

Both sides train the same members, one after the other in one run; the time that processes take
to start, once a run, is printed beside the ratio.
"""

import time

import pytest

from sweep.training.member import Member
from sweep.training.pool import ReferencePool
from tests.training.trials import BASE, experiment, merge

pytestmark = pytest.mark.benchmark

STUDY = merge(
    BASE,
    data={"source": "sklearn:digits"},
    model={"kind": "python:toy_data:LooksAtData", "width": 64},
    train={"batch_size": 64, "epochs": 5, "dtype": "float32"},
    cross_validation={"folds": 5},
)


def seconds_to_train(engine, trials):
    setting = engine.experiment.spec.setting({"learning_rate": 0.01})
    for trial in trials:
        for fold in range(5):
            engine.add(Member(trial, fold, setting))
    began = time.perf_counter()
    events = []
    while engine.pending:
        events += engine.advance()
    return time.perf_counter() - began, [event[1:] for event in events]


def test_two_processes_against_one():
    exp = experiment(STUDY)
    ratios = []
    one, two = ReferencePool(exp, processes=1), ReferencePool(exp, processes=2, start="always")
    try:
        seconds_to_train(one, range(1))
        started, _ = seconds_to_train(two, range(1))
        for first in (10, 20, 30):
            alone, expected = seconds_to_train(one, range(first, first + 4))
            both, same = seconds_to_train(two, range(first, first + 4))
            assert repr(same) == repr(expected)
            ratios.append(alone / both)
    finally:
        two.close()
    print(f"\n2 processes: {[f'{ratio:.2f}x' for ratio in ratios]}, started in {started:.1f} s")
    assert max(ratios) >= 1.4
