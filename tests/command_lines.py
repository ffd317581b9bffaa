"""Command lines as documents show them, put through the parser of the real command line."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parents[1]
SWEEP = str(Path(sys.executable).with_name("sweep"))
"""The installed console script."""


def simple_commands(script: str) -> list[list[str]]:
    """The words of every simple command in a shell script, without pipes and redirections."""
    commands: list[list[str]] = [[]]
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        # Else a colon ends a word.
        lexer.whitespace_split = True
        lexer.commenters = "#" if line.lstrip().startswith("#") else ""
        skip = False
        for word in lexer:
            if re.fullmatch(r"[|&;()]+", word):
                commands.append([])
            elif re.fullmatch(r"[<>]+&?", word):
                skip = True
            elif not skip:
                commands[-1].append(word)
            else:
                skip = False
        commands.append([])
    return [command for command in commands if command]


def sweep_arguments(command: list[str]) -> list[str] | None:
    """What follows `sweep`, also after VARIABLE=value and inside `docker compose run SERVICE`."""
    while command and re.match(r"[A-Z_]+=", command[0]):
        command = command[1:]
    if command[:1] == ["docker"]:
        # The last `sweep` with words after it: the image and the database user are called so too.
        places = [i for i, word in enumerate(command[:-1]) if word == "sweep"]
        places = [i for i in places if not command[i - 1].startswith("-")]
        command = command[places[-1] :] if places else []
    return command[1:] if command[:1] == ["sweep"] else None


def command_group() -> Any:
    from sweep.cli import app

    return typer.main.get_command(app)


def parse(arguments: list[str]) -> None:
    """Parses as the command line would and runs nothing; raises its usage error."""
    group = command_group()
    try:
        if not arguments or arguments[0].startswith("-"):
            group.make_context("sweep", list(arguments))
            return
        assert arguments[0] in group.commands, f"no command {arguments[0]!r}: sweep {arguments}"
        group.commands[arguments[0]].make_context(f"sweep {arguments[0]}", arguments[1:])
    except typer.Exit:
        pass  # --help and --version end the parsing
