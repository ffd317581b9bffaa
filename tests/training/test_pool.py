"""The law of the reference engine in several processes: the events of one, whoever dies."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sweep.problem.prepare import prepare
from sweep.spec import load_spec
from sweep.store import queries
from sweep.training.experiment import Experiment
from sweep.training.member import Done, Member
from sweep.training.pool import ReferencePool
from sweep.training.reference import ReferenceEngine
from sweep.training.schedule import Finished, Schedule
from tests import warm

from .trials import BASE, HERE, experiment, merge

RATES = [0.03, 1e10, 0.1, 1e300, 0.01, 0.05]


@pytest.fixture(autouse=True)
def warm_processes(monkeypatch):
    """But for those that the commands here start, which are new interpreters."""
    known = SimpleNamespace(Popen=warm.Popen, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr("sweep.training.processes.subprocess", known)


CASES = {
    "unbatchable, own regularizer": {
        "model": {"kind": "python:toy_data:LooksAtData"},
        "regularizer": "python:toy_data:Cauchy",
        "lam": 0.05,
    },
    "weights, dropout, early stopping": {
        "model": {"kind": "mlp", "hidden": [4], "dropout": 0.2},
        "data": {"source": "python:toy_data:weighted"},
        "task": "regression",
        "train": {"dtype": "float32", "early_stopping": {"patience": 1}, "epochs": 8},
    },
    "raises in a trial, folds in waves": {
        "model": {"kind": "python:toy_data:BreaksLate"},
        "pruner": "wilcoxon",
        "cross_validation": {"folds": 5},
    },
}


class Recorded:
    """An engine, and every event that came of it."""

    def __init__(self, engine):
        self.engine, self.events = engine, []

    def advance(self):
        events = self.engine.advance()
        self.events += events
        return events

    def __getattr__(self, name):
        return getattr(self.engine, name)


def run(exp, engine, rates=RATES, cancel=None):
    """(events, results by trial); trial `cancel` is pruned after its first epoch."""
    recorded, results = Recorded(engine), {}
    schedule = Schedule(recorded, len(exp.problem.folds), waves=exp.spec.pruner == "wilcoxon")
    for number, rate in enumerate(rates):
        schedule.start(number, exp.spec.setting({"learning_rate": rate}))
    while schedule.in_flight:
        for news in schedule.advance():
            if isinstance(news, Finished):
                results[news.trial] = news.result
            elif news.trial == cancel:
                schedule.cancel(cancel)
    assert engine.pending == 0
    # How soon a trial is pruned is up to who watches.
    return [event for event in recorded.events if event.member.trial != cancel], results


@contextmanager
def pool(exp, processes=2, start="always"):
    notices = []
    made = ReferencePool(exp, notices.append, processes, start)
    made.notices = notices
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("case", CASES)
def test_several_processes_give_the_events_of_one_bit_for_bit_and_in_its_order(case):
    exp = experiment(merge(BASE, **CASES[case]))
    events, results = run(exp, ReferenceEngine(exp), cancel=2)
    with pool(exp) as engine:
        same_events, same_results = run(exp, engine, cancel=2)
        assert engine.describe() == "reference, 2 processes"
    # As text: NaN differs from itself.
    assert repr(same_events) == repr(events)
    assert repr(same_results) == repr(results)
    assert any(result.failure for result in results.values()) and len(results) == 5


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("Dies", "ended by itself, with exit code 3"),
        ("Crashes", f"was ended by signal {signal.SIGSEGV:d} (SIGSEGV)"),
    ],
)
def test_a_process_that_dies_fails_the_member_that_it_trained_alone_and_is_replaced(name, how):
    rates = [0.01, 50.0, 0.02, 50.0, 0.03]
    exp = experiment(merge(BASE, model={"kind": f"python:toy_data:{name}"}))
    alone = experiment(merge(BASE, model={"kind": "python:toy_data:BreaksLate"}))
    _, expected = run(alone, ReferenceEngine(alone), rates)
    with pool(exp) as engine:
        _, results = run(exp, engine, rates)
        assert len(engine.workers) == 2
    for number, result in results.items():
        if number in (1, 3):
            failure = result.failure
            assert (failure.kind, failure.reason) == ("error", "process_died")
            assert how in failure.message
        else:
            assert repr(result) == repr(expected[number])


def test_a_process_that_the_system_kills_is_replaced_and_nothing_else_changes():
    exp = experiment(merge(BASE, model={"kind": "python:toy_data:Slow"}))
    _, expected = run(exp, ReferenceEngine(exp), RATES[:1])
    with pool(exp) as engine:
        schedule = Schedule(engine, 3)
        schedule.start(0, exp.spec.setting({"learning_rate": RATES[0]}))
        while not any(worker.trains is not None for worker in engine.workers):
            schedule.advance()
        lost = next(worker for worker in engine.workers if worker.trains is not None)
        victim = lost.held[lost.trains]
        os.kill(lost.process, signal.SIGKILL)
        outcomes = {}
        while engine.pending:
            for event in engine.advance():
                if isinstance(event, Done):
                    outcomes[event.member.name] = event.outcome
        assert lost not in engine.workers and len(engine.workers) == 2
    assert "SIGKILL" in outcomes.pop(victim).failure.message
    for (_, fold), outcome in outcomes.items():
        assert outcome.score == expected[0].fold_scores[fold]


def test_training_returns_to_its_caller_at_once():
    exp = experiment(merge(BASE, model={"kind": "python:toy_data:Slow"}, train={"batch_size": 2}))
    assert len(exp.problem.folds[0].train) / 2 * 0.02 > 0.4, "an epoch takes longer than a slice"
    for processes in (1, 2):
        with pool(exp, processes) as engine:
            schedule = Schedule(engine, 3)
            schedule.start(0, exp.spec.setting({"learning_rate": 0.1}))
            schedule.advance()
            took = []
            for _ in range(5):
                began = time.perf_counter()
                schedule.advance()
                took.append(time.perf_counter() - began)
            assert min(took) < 0.2, "a slice: a busy machine may hold up some, not all"


def test_little_work_or_a_single_core_starts_no_process():
    exp = experiment(merge(BASE, model={"kind": "python:toy_data:LooksAtData"}))
    for processes, start in ((2, "auto"), (1, "always")):
        with pool(exp, processes, start) as engine:
            run(exp, engine)
            assert not engine.workers and engine.describe() == "reference, one model at a time"


def test_much_work_starts_processes_when_it_is_measured(monkeypatch):
    monkeypatch.setattr("sweep.training.pool.GLANCE_SECONDS", 0.2)
    exp = experiment(merge(BASE, model={"kind": "python:toy_data:Slow"}))
    with pool(exp, start="auto") as engine:
        for member in members(exp, 40):
            engine.add(member)
        until = time.monotonic() + 20
        while not engine.workers and time.monotonic() < until:
            engine.advance()
        assert engine.workers and engine.notices == [
            "reference engine: 2 processes train from now on"
        ]


def members(exp, trials):
    setting = exp.spec.setting({"learning_rate": 0.1})
    return [Member(trial, fold, setting) for trial in range(trials) for fold in range(3)]


def test_no_more_processes_than_the_memory_holds():
    exp = experiment(BASE)
    engine = ReferencePool(exp, lambda text: None, 8, "always", memory=500 << 20)
    try:
        run(exp, engine)
        assert len(engine.workers) == 2
    finally:
        engine.close()


def test_code_that_other_processes_cannot_import_trains_in_this_one(monkeypatch):
    """As a class that was typed into a notebook."""
    import types

    from .toy_data import LooksAtData

    typed = types.ModuleType("typed_in")
    typed.Net = LooksAtData
    monkeypatch.setitem(sys.modules, "typed_in", typed)
    exp = experiment(merge(BASE, model={"kind": "python:typed_in:Net"}))
    with pool(exp) as engine:
        _, results = run(exp, engine, RATES[:1])
    assert results[0].fold_scores and "typed_in" in engine.notices[0]


def test_all_that_an_experiment_holds_arrives():
    import socket
    import threading
    from multiprocessing.connection import Connection

    from sweep.training.processes import send
    from sweep.training.worker import receive

    for path in sorted((HERE.parents[1] / "studies").glob("*.yaml")):
        spec = load_spec(path).spec
        exp = Experiment(prepare(spec, path.parent), spec, path.parent)
        here, there = socket.socketpair()
        with here, there:
            ends = [Connection(os.dup(end.fileno())) for end in (here, there)]
            thread = threading.Thread(target=send, args=(exp, here, ends[0]))
            thread.start()
            arrived = receive(there, ends[1])
            thread.join()
        assert arrived.spec == exp.spec and arrived.directory == exp.directory
        assert torch.equal(arrived.problem.x, exp.problem.x)
        assert arrived.problem.fingerprint == exp.problem.fingerprint


SCRIPT = """
import sys
from sweep.training.pool import ReferencePool
from tests.training.test_pool import run
from tests.training.trials import BASE, experiment, merge

print("the script runs")
exp = experiment(merge(BASE, model={"kind": "python:toy_data:Slow"}))
engine = ReferencePool(exp, print, 2, "always")
_, results = run(exp, engine, [0.1])
print(results[0].fold_scores is not None, len(engine.workers))
"""


def test_a_script_without_a_main_guard_runs_once_and_leaves_no_process(tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the script runs") == 1 and done.stdout.endswith("True 2\n")


STUDY = """
study: slow
data: {source: python:toy_data:three_classes}
task: classification
model: {kind: python:toy_data:Slow}
train: {learning_rate: {low: 0.01, high: 0.1}, batch_size: 16, epochs: 50}
cross_validation: {folds: 3}
trials: 50
"""


def processes_of(group):
    """Live processes in a process group, by their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, in_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(in_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def nurseries(parent):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_ends_soon_with_all_its_processes(number, tmp_path):
    (tmp_path / "slow.yaml").write_text(STUDY)
    (tmp_path / "toy_data.py").write_text((HERE / "toy_data.py").read_text())
    running = warm.Popen(
        [sys.executable, "-m", "sweep", "run", "slow.yaml", "--storage", "sqlite:///s.db"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in running.stdout:
            if line == "Engine: reference, 2 processes: model uses .item()\n":
                break
        else:
            raise AssertionError("no processes were started")
        (nursery,) = nurseries(running.pid)
        assert len(processes_of(nursery)) == 3
        running.send_signal(number)
        began = time.monotonic()
        code = running.wait(10)
        while processes_of(nursery) and time.monotonic() - began < 5:
            time.sleep(0.05)
        assert not processes_of(nursery) and time.monotonic() - began < 5
        assert code == (-number if number == signal.SIGKILL else 128 + number)
        if number != signal.SIGKILL:
            (row,) = queries.studies(f"sqlite:///{tmp_path / 's.db'}").dicts()
            assert (row["running"], row["failed"]) == (0, 0) and row["waiting"] > 0
    finally:
        running.kill()
        running.stdout.close()
        running.wait()
