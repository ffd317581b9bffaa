"""Fixtures that every room's tests may use."""

import os
from collections.abc import Callable

import hypothesis
import pytest

from tests.postgres_server import database_url, postgres_server, postgres_url

__all__ = ["database_url", "postgres_server", "postgres_url"]

# Two test processes on two cores; more threads each would only wait for one another. Set before
# torch is imported, and inherited by the commands that tests run.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more about what else the machine is doing.
hypothesis.settings.register_profile("sweep", deadline=None)
hypothesis.settings.load_profile("sweep")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """sweep(*arguments) -> (exit code, stdout, stderr)."""
    from sweep.cli import main

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
