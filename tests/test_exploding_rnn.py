"""docs/exploding_rnn.md: its commands run, and its tables are those of the README."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.command_lines import ROOT, SWEEP, parse, simple_commands, sweep_arguments
from tests.test_readme import README, fenced_blocks

DOCUMENT = (ROOT / "docs" / "exploding_rnn.md").read_text("utf-8")


def solved(markdown: str, *, task: str = "") -> dict[tuple[str, ...], list[str]]:
    """{(task, length): `n of 5` by cure} of the rows that have four such cells."""
    found = {}
    for line in markdown.splitlines():
        counts = re.findall(r"(\d) of 5", line) if line.startswith("|") else []
        if len(counts) == 4:
            first = [cell.strip() for cell in line.split("|")[1:-5]]
            found[tuple(first) if len(first) == 2 else (task, *first)] = counts
    return found


def test_the_readme_counts_what_the_document_counts() -> None:
    orders, adding = DOCUMENT.split("## The adding task")
    whole = solved(orders, task="temporal order") | solved(adding, task="adding")
    assert len(whole) >= 4 and solved(README) == whole


COMMANDS = [
    arguments
    for block in fenced_blocks(DOCUMENT)
    if block.language == "sh"
    for command in simple_commands(block.text)
    if (arguments := sweep_arguments(command))
]
RUNS = [arguments for arguments in COMMANDS if arguments[0] == "run"]


def test_the_commands_parse_and_every_row_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for arguments in COMMANDS:
        parse(arguments)
    assert len(RUNS) == len(solved(README)) and len(COMMANDS) == len(RUNS) + 1


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path) -> None:
    """Shortened to one update; the last one then finds four cells of each study."""
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    environment = {k: v for k, v in os.environ.items() if k != "SWEEP_STORAGE"}
    for arguments in COMMANDS:
        short = ["--quiet", "--set", "train.epochs=1", "--set", "train.batch_size=full"]
        short = short if arguments[0] == "run" else []
        done = subprocess.run(
            [SWEEP, *arguments, *short],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (arguments, done.stderr)
    assert len(done.stdout.splitlines()) == 1 + 4 * len(RUNS), done.stdout
