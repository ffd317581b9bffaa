"""docs/sampler.md says what the code does, and has a row for every pair that is measured."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from sweep.search.divergence_aware import CAUTION, FLOOR, REDRAWS
from tests.benchmarks.test_sampler_divergence import MISSED, PROBLEMS
from tests.command_lines import ROOT
from tests.search.landscapes import PLAIN

PAGE = (ROOT / "docs" / "sampler.md").read_text("utf-8")
ALL = re.findall(r"^\| ([\w-]+) \| (\w+) \| (?:[\d.]+%|not measured) \|", PAGE, re.M)
ROWS = re.findall(r"^\| ([\w-]+) \| ([\w-]+) \| ([\d.]+)% \| ([\d.]+)% \| ([\d.]+) \|", PAGE, re.M)


def test_every_sampler_on_every_problem_has_a_row() -> None:
    assert sorted((name, problem) for problem, name in ALL) == sorted(
        (name, problem) for name in PLAIN for problem in PROBLEMS
    )


def test_the_rows_above_a_third_are_those_that_the_benchmark_lets_through() -> None:
    above = {(name, problem): float(to) for problem, name, *_, to in ROWS if float(to) > 1 / 3}
    assert above.keys() == MISSED.keys()
    assert all(to <= MISSED[pair] for pair, to in above.items())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_rows_ratio_is_that_of_its_shares(row: tuple[str, ...]) -> None:
    plain, aware, to = map(float, row[2:])
    # The shares are rounded to a tenth of a percent, the ratio to a hundredth.
    assert abs(aware / plain - to) < 0.005 + 0.1 / plain


def test_the_formula_is_the_one_computed() -> None:
    assert f"(1 - p)^{CAUTION}" in PAGE
    assert f"at most {REDRAWS} times" in PAGE
    assert f"one trial in {round(1 / FLOOR)}" in PAGE


def test_its_command_selects_the_whole_benchmark() -> None:
    """Every pair for the diverged trials, every sampler for the best scores."""
    (line,) = re.findall(r"^pytest .*$", PAGE, re.M)
    command = [sys.executable, "-m", *shlex.split(line), "--collect-only"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.count("::test_") == len(PLAIN) * (len(PROBLEMS) + 1)
