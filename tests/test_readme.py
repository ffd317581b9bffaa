"""README.md says what is so: its commands parse, its outputs are real, its names exist.

How outputs are written. A ```text block right after a ```sh or ```python block shows what that
block prints (both streams). Such blocks are run in the README's order in one folder that holds
studies/ and an empty database; of a shell block, the `sweep` commands. `...` stands for the rest
of a word or line, a line of `...` alone for any number of lines; runs of spaces and of line-drawing
characters may differ in length. ```text exit=2 shows a command that returns 2.
"""

from __future__ import annotations

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from sweep.spec import load_spec
from tests import warm
from tests.command_lines import (
    ROOT,
    command_group,
    parse,
    simple_commands,
    sweep_arguments,
)

README = (ROOT / "README.md").read_text("utf-8")
RUN = (
    "python -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e . "
    "&& sweep run studies/digits_mlp.yaml"
)
TEST = (
    "python -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e '.[test]' "
    "&& pytest"
)
# Words in capitals stand for the user's own.
PLACEHOLDERS = {"studies/NAME.yaml": "studies/digits_mlp.yaml"}


class Block(NamedTuple):
    """A fenced block; `after` is the text between the block before it and this one."""

    language: str
    info: str
    text: str
    line: int
    after: str


def fenced_blocks(markdown: str) -> Iterator[Block]:
    end = 0
    for match in re.finditer(r"^```(\w*) ?(.*)\n((?:.*\n)*?)```$", markdown, re.MULTILINE):
        line = markdown[: match.start()].count("\n") + 1
        yield Block(match[1], match[2], match[3], line, markdown[end : match.start()].strip())
        end = match.end()


BLOCKS = list(fenced_blocks(README))
SHELL = [block for block in BLOCKS if block.language == "sh"]
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)


def line_of(block: Block) -> str:
    return f"line {block.line}"


def test_the_first_blocks_are_the_two_commands_and_ci_runs_them_as_they_stand() -> None:
    assert [block.text for block in SHELL[:2]] == [f"{RUN}\n", f"{TEST}\n"]
    listed = subprocess.run(
        ["bash", ROOT / ".ci" / "run", "--list"], capture_output=True, text=True, check=True
    )
    assert listed.stdout.splitlines() == [RUN, TEST]


@pytest.mark.parametrize("block", SHELL, ids=line_of)
def test_a_shell_block_shows_commands_that_parse(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for command in simple_commands(block.text):
        arguments = sweep_arguments([PLACEHOLDERS.get(word, word) for word in command])
        if arguments is not None:
            parse(arguments)


def test_every_command_is_in_the_readme_and_every_command_in_the_readme_exists() -> None:
    group = command_group()
    mentioned = set(re.findall(r"\bsweep ([a-z][a-z-]*)(?=[ `\n])", "\n".join(code_in(README))))
    hidden = {name for name, command in group.commands.items() if command.hidden}
    assert mentioned - hidden == set(group.commands) - hidden


def test_every_option_shown_beside_a_command_exists() -> None:
    group = command_group()
    for code in code_in(PROSE):
        match = re.match(r"sweep ([a-z][a-z-]*)\b(.*)", code)
        if match and match[1] in group.commands:
            known = {o for p in group.commands[match[1]].params for o in p.opts + p.secondary_opts}
            shown = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", match[2]))
            assert shown <= known | {"--help"}, code


def code_in(markdown: str) -> list[str]:
    """Everything set as code: spans and the contents of shell blocks."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", markdown, flags=re.M | re.S))
    return [span + "\n" for span in spans] + [b.text for b in fenced_blocks(markdown)]


def test_every_path_named_exists() -> None:
    named = set(re.findall(r"(?<![\w/.-])(?:studies|sweep|tests|\.ci)/[\w./-]*\w", README))
    named |= set(re.findall(r"\]\((?!https?:|#)([^)#]+)", README))
    missing = {path for path in named - set(PLACEHOLDERS) if not (ROOT / path).exists()}
    assert not missing


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=line_of)
def test_a_yaml_block_is_a_study_file_or_a_part_of_one(block: Block, tmp_path: Path) -> None:
    if re.search(r"^study:", block.text, re.MULTILINE):
        (tmp_path / "study.yaml").write_text(block.text, "utf-8")
        load_spec(tmp_path / "study.yaml")
    else:
        assert isinstance(yaml.safe_load(block.text), dict)


def test_the_study_file_shown_is_the_one_that_the_first_command_runs() -> None:
    shown = next(b.text for b in BLOCKS if b.language == "yaml" and b.text.startswith("study:"))
    file = load_spec(ROOT / RUN.split()[-1])
    assert load_spec(yaml.safe_load(shown)).spec == file.spec


@pytest.mark.parametrize(
    "block",
    [b for b in BLOCKS if b.language == "python"] or [pytest.param(None, id="none")],
    ids=line_of,
)
def test_a_python_block_compiles_and_uses_public_names(block: Block | None) -> None:
    if block is None:
        return
    import sweep

    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "sweep":
            assert node.attr in sweep.__all__


@pytest.mark.parametrize("about_the_map", [True, False], ids=["the map", "all else"])
def test_shown_outputs_are_real(about_the_map: bool, tmp_path: Path) -> None:
    """The stability map takes as long as all other studies together, and shares nothing with them:
    two processes may see to both."""
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    environment = {k: v for k, v in os.environ.items() if k != "SWEEP_STORAGE"}
    environment |= {"COLUMNS": "100", "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}
    for before, shown in itertools.pairwise(BLOCKS):
        if shown.language != "text" or before.language not in ("sh", "python") or shown.after:
            continue
        if ("stability" in before.text) != about_the_map:
            continue
        if before.language == "sh":
            found = [sweep_arguments(command) for command in simple_commands(before.text)]
            program = [sys.executable, "-m", "sweep"]
            commands = [[*program, *arguments] for arguments in found if arguments is not None]
            assert commands, f"line {before.line}: no sweep command makes this output"
        else:
            commands = [[sys.executable, "-c", before.text]]
        printed, codes = "", []
        for command in commands:
            done = warm.run(
                command,
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=600,
            )
            printed += done.stdout
            codes.append(done.returncode)
        expected = int(shown.info.removeprefix("exit=") or 0)
        assert codes[-1] == expected, f"line {before.line}:\n{printed}"
        misfit = first_misfit(shown.text, printed)
        assert misfit is None, f"line {shown.line} shows {misfit!r}, really:\n{printed}"


def first_misfit(shown: str, printed: str) -> str | None:
    """The first line of `shown` that `printed` has not in its place, None if all are there."""
    real = [_plain(line) for line in printed.strip("\n").splitlines()]
    at, anywhere = 0, False
    for line in shown.strip("\n").splitlines():
        if line.strip() == "...":
            anywhere = True
            continue
        pattern = ".*".join(re.escape(part) for part in _plain(line).split("..."))
        places = range(at, len(real)) if anywhere else range(at, min(at + 1, len(real)))
        found = next((i for i in places if re.fullmatch(pattern, real[i])), None)
        if found is None:
            return line
        at, anywhere = found + 1, False
    return None if anywhere or at == len(real) else "nothing more"


def _plain(line: str) -> str:
    return re.sub(r"([ ─━═╌])\1+", r"\1", line.rstrip())


@pytest.mark.parametrize(
    ("shown", "printed", "misfit"),
    [
        ("a\nb", "a\nb\n", None),
        ("best  3", "best      3", None),
        ("score 0.1...", "score 0.1234 (12 s)", None),
        ("first\n...\nlast", "first\n1\n2\nlast", None),
        ("...", "", None),
        ("a", "a\nb", "nothing more"),
        ("a\nb", "a", "b"),
        ("score 0.1...", "score 0.2", "score 0.1..."),
        ("first\n...\nlast", "first\nmiddle", "last"),
    ],
)
def test_outputs_are_compared_by_their_stable_parts(
    shown: str, printed: str, misfit: str | None
) -> None:
    assert first_misfit(shown, printed) == misfit
