"""How long a reader waits at 5,000 trials: commands as whole processes, beside one import.

The unit is a process that imports SQLAlchemy and nothing else, measured in the same run: seconds
differ between machines, the ratio hardly. On two cores of 2023 the unit was 0.16 s.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_lines import SWEEP
from tests.service.test_dashboard import dashboard
from tests.stored_studies import digits_trials, fill

pytestmark = pytest.mark.benchmark

ROUNDS = 5
UNIT = [sys.executable, "-c", "import sqlalchemy"]


def run(command: list[str]) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def best_of(action: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The least seconds of several rounds."""
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        took.append(time.perf_counter() - start)
    return min(took)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with 5,000 trials."""
    path: Path = tmp_path_factory.mktemp("reading") / "sweep.db"
    url = f"sqlite:///{path}"
    fill(url, "digits", digits_trials() * 125)
    return url


@pytest.mark.parametrize(
    ("arguments", "at_most"),
    [
        (["--help"], 2.5),
        (["studies"], 5.0),
        (["trials", "digits"], 5.0),
        (["trials", "digits", "--format", "json"], 5.0),
        (["trials", "digits", "--where", "state = 'FAIL'", "--sort", "lambda"], 5.0),
        (["sql", "SELECT regularizer, min(score) FROM sweep_trials GROUP BY regularizer"], 5.0),
        (["best", "digits"], 10.0),
        (["path", "digits"], 10.0),
        (["path", "digits", "--map"], 10.0),
        (["cures", "digits"], 10.0),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_a_command_answers_in_a_few_imports_of_sqlalchemy(
    arguments: list[str], at_most: float, url: str
) -> None:
    place = [] if arguments == ["--help"] else ["--storage", url]
    unit = best_of(lambda: run(UNIT))
    took = best_of(lambda: run([SWEEP, *arguments, *place]))
    print(f"\nsweep {' '.join(arguments)[:50]}: {took:.2f} s, {took / unit:.1f} of {unit:.2f} s")
    assert took <= at_most * unit


def test_the_dashboard_refreshes_in_a_few_imports_of_sqlalchemy(url: str) -> None:
    unit = best_of(lambda: run(UNIT))
    with dashboard(url) as server:
        first = best_of(lambda: server.ask("GET", "/api/studies/1"), rounds=1)
        whole = best_of(lambda: server.ask("GET", "/api/studies/1"))
        # What an open page asks for every few seconds: the trials it has not seen.
        refresh = best_of(lambda: server.ask("GET", "/api/studies/1?after=4990"))
    print(f"\ndashboard: first {first:.2f} s, again {whole:.2f} s, refresh {refresh:.2f} s")
    assert refresh <= 3 * unit and whole <= 6 * unit
