"""`sweep run`, `replay` and `dashboard` as users meet them: real processes, signals, terminals."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import sweep.cli.display
from sweep.cli import main
from sweep.cli.display import make_display
from sweep.search.status import Status
from sweep.store import queries
from tests import warm
from tests.stored_studies import fill
from tests.test_cli import on_a_terminal

ROOT = Path(__file__).resolve().parents[1]
STUDY: dict[str, Any] = {
    "study": "small",
    "data": {"source": "sklearn:diabetes", "standardize_target": "fold"},
    "task": "regression",
    "model": {"kind": "linear"},
    "regularizer": {"choices": ["none", "l1", "l2"]},
    "lambda": {"low": 1e-4, "high": 1.0, "log": True},
    "train": {"learning_rate": {"low": 0.01, "high": 0.3, "log": True}, "epochs": 10},
    "sampler": "random",
    "trials": 8,
}
# Long enough to be stopped in the middle, however fast the machine.
LONG: dict[str, Any] = {
    **STUDY,
    "study": "long",
    "train": {"learning_rate": 0.01, "epochs": 2000},
    "trials": 400,
    "concurrency": 4,
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with study files and no database yet, which is the working directory."""
    for study in (STUDY, LONG):
        (tmp_path / f"{study['study']}.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWEEP_STORAGE", raising=False)
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """run(*arguments) -> (exit code, stdout, stderr), in this process."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    return call


def url(home: Path) -> str:
    return f"sqlite:///{home / 'sweep.db'}"


def states(home: Path, study: str) -> dict[str, int]:
    (row,) = [each for each in queries.studies(url(home)).dicts() if each["study"] == study]
    return row


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "sweep", *arguments]
    with warm.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def test_run_in_a_pipe_prints_plain_lines_and_a_summary(home: Path) -> None:
    with process("run", "small.yaml") as started:
        out, err = started.communicate(timeout=120)
    assert (started.returncode, err) == (0, "")
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0].startswith("small: 8 trials")
    assert lines[1] == "Engine: lanes, 40 slots, eager"
    assert lines[2].startswith("8/8 trials: 8 complete")
    for words in ("Best: mse 0.", "± se", "lambda.1se", "No trial failed.", "sweep dashboard"):
        assert words in out
    assert states(home, "small")["complete"] == 8


def test_before_the_first_trial_ends_a_pipe_is_told_how_far_training_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep.cli.display, "SECONDS_BETWEEN_LINES", 0.0)
    stream = io.StringIO()
    with make_display(stream, quiet=False) as display:
        status = Status("rnn", 10, "maximize", "accuracy", started=time.monotonic() - 30)
        display.update(status)
        status.running, status.under_way = 10, 2.5
        display.update(status)
        display.update(status)
    assert stream.getvalue().splitlines() == [
        "rnn: 10 trials",
        "0/10 trials: 0 complete, 10 in training (25% done); 30 s, 1 min 30 s left",
    ]


def test_run_again_continues_up_to_the_number_of_trials_in_all(home: Path, run: Run) -> None:
    assert run("run", "small.yaml", "--trials", "3")[0] == 0
    assert run("run", "small.yaml", "--trials", "5", "--engine", "reference")[0] == 0
    assert states(home, "small")["trials"] == 5
    code, out, err = run("run", "small.yaml", "--trials", "4", "--format", "json")
    found = json.loads(out)
    assert code == 0 and found["trials"] == 5 and found["best"]["fold_scores"]
    assert "small: 4 trials" in err  # progress goes where it does not disturb the JSON
    assert run("run", "small.yaml", "--trials", "5", "--quiet") == (0, "", "")


def test_a_changed_study_is_refused_and_fresh_takes_a_new_name(home: Path, run: Run) -> None:
    run("run", "small.yaml", "--trials", "1")
    code, out, err = run("run", "small.yaml", "--set", "train.epochs=3")
    assert (code, out) == (2, "") and "train.epochs: 10 -> 3" in err and "--fresh" in err
    code, out, _ = run("run", "small.yaml", "--set", "train.epochs=3", "--fresh", "--trials", "1")
    assert code == 0 and "small-2: 1 trials" in out
    assert len(queries.studies(url(home))) == 2


def test_when_every_trial_diverges_the_exit_code_is_3_and_a_cure_is_named(
    home: Path, run: Run
) -> None:
    diverging = ["--set", "train.learning_rate=50.0", "--set", "train.epochs=400"]
    code, _, err = run("run", "small.yaml", "--trials", "2", *diverging)
    assert code == 3
    assert re.search(r"2 of 2 failed with \w+\. Try smaller learning rates", err)
    assert "sweep diverged small" in err
    assert run("run", "small.yaml", "--trials", "2", *diverging, "--quiet")[0] == 3


def test_when_every_trial_raises_its_message_is_shown(home: Path, run: Run) -> None:
    (home / "broken.py").write_text(
        "import torch\n"
        "class Broken(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        raise ValueError('no luck today')\n"
        "def make(n_features):\n"
        "    return Broken(n_features, 1)\n"
    )
    model = ["--set", "model={kind: 'python:broken:make'}"]
    code, _, err = run("run", "small.yaml", "--trials", "2", *model)
    assert code == 3
    assert "2 of 2 failed with ValueError" in err and "no luck today" in err
    code, out, _ = run("diverged", "small", "--trial", "1")
    assert code == 0 and "error, ValueError" in out and "no luck today" in out


def test_timeout_is_a_good_end(home: Path, run: Run) -> None:
    code, out, err = run("run", "long.yaml", "--timeout", "3", "--set", "train.epochs=20")
    row = states(home, "long")
    assert row["running"] == 0 and row["complete"] < 400
    assert code == 0 and "Time is up" in err
    assert ("Best: mse" in out) == (row["complete"] > 0)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_stopped_run_keeps_what_is_finished_and_goes_on(
    number: int, code: int, home: Path, run: Run
) -> None:
    with process("run", "long.yaml", "--set", "train.epochs=20") as started:
        wait_for(lambda: "long" in names(home) and states(home, "long")["complete"] > 3)
        started.send_signal(number)
        _, err = started.communicate(timeout=60)
    assert started.returncode == code
    assert "Traceback" not in err
    row = states(home, "long")
    assert f"Stopped: {row['complete']} of 400 trials are finished and kept" in err
    assert "same command goes on" in err
    assert (row["running"], row["failed"]) == (0, 0)
    total = row["trials"] + 2
    overrides = ["--set", "train.epochs=20", "--trials", str(total)]
    assert run("run", "long.yaml", *overrides, "--quiet")[0] == 0
    row = states(home, "long")
    assert (row["trials"], row["complete"], row["waiting"]) == (total, total, 0)


# Much to train, in steps that are worth compiling, of which no compiled form is kept.
COMPILED: dict[str, Any] = {
    **STUDY,
    "study": "compiled",
    "model": {"kind": "mlp", "hidden": [16]},
    "train": {"learning_rate": {"low": 0.001, "high": 0.01}, "batch_size": 16, "epochs": 400},
    "trials": 400,
}


LOOKS_INTO_PROC = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="looks into /proc"
)


@contextlib.contextmanager
def compiling_run(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A run of COMPILED, and the process that compiles for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    (home / "compiled.yaml").write_text(yaml.safe_dump(COMPILED))
    with process("run", "compiled.yaml") as started:
        wait_for(lambda: compilers(started.pid))
        (compiler,) = compilers(started.pid)
        yield started, compiler


@LOOKS_INTO_PROC
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_run_stopped_while_it_compiles_ends_within_5_seconds_and_so_does_the_compiler(
    number: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with compiling_run(home, monkeypatch) as (started, compiler):
        began = time.monotonic()
        started.send_signal(number)
        out, err = started.communicate(timeout=60)
        assert time.monotonic() - began < 5
    assert started.returncode == 128 + number and not alive(compiler)
    assert "Traceback" not in err and "compiling failed" not in out
    row = states(home, "compiled")
    assert (row["running"], row["failed"]) == (0, 0) and row["waiting"] > 0
    left = [path.name for path in (home / "cache" / "sweep" / "steps").glob("*.*")]
    # The index of what a run compiles is no compiler's leftover.
    assert [name for name in left if not name.endswith(".json")] == []


@LOOKS_INTO_PROC
def test_the_compiler_of_a_run_that_is_killed_ends_by_itself(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with compiling_run(home, monkeypatch) as (started, compiler):
        started.kill()
        started.communicate(timeout=60)
        # Compiling would take twice as long.
        wait_for(lambda: not alive(compiler), 10)


def compilers(pid: int) -> list[int]:
    return [
        child
        for child in children(pid)
        if "compile_program" in Path(f"/proc/{child}/cmdline").read_text()
    ]


def test_workers_share_a_study_and_end_with_it(home: Path) -> None:
    with process("run", "small.yaml", "--trials", "40", "--workers", "2") as started:
        out, err = started.communicate(timeout=180)
    assert started.returncode == 0, err
    assert "A worker ended" not in out
    row = states(home, "small")
    assert (row["trials"], row["complete"] + row["failed"], row["running"]) == (40, 40, 0)
    trials = queries.trials(url(home), "small").dicts()
    assert sorted(each["trial"] for each in trials) == list(range(40))


def test_postgres_takes_the_same_commands(home: Path, run: Run, postgres_url: str) -> None:
    at = ["--storage", postgres_url]
    with process("run", "small.yaml", "--trials", "10", "--workers", "2", *at) as started:
        wait_for(lambda: children(started.pid) or started.poll() is not None)
        for child in children(started.pid):
            assert postgres_url not in Path(f"/proc/{child}/cmdline").read_text()
        out, err = started.communicate(timeout=120)
    assert started.returncode == 0 and "Best: mse" in out, err
    for command in (
        ["studies"],
        ["trials", "small", "--sort", "score"],
        ["folds", "small", "--trial", "0"],
        ["diverged", "small"],
        ["best", "small"],
        ["replay", "small", "3"],
        ["sql", "SELECT count(*) FROM sweep_trials"],
        ["upgrade"],
    ):
        code, out, err = run(*command, *at)
        assert (code, err) == (0, "") or command[0] == "diverged", err
        assert out or command[0] == "diverged"


def test_workers_end_when_their_parent_is_killed(home: Path) -> None:
    with process("run", "long.yaml", "--workers", "2") as started:
        wait_for(lambda: children(started.pid))
        (child,) = children(started.pid)
        started.kill()
        wait_for(lambda: not alive(child))


def test_on_a_terminal_the_display_leaves_nothing_behind(home: Path) -> None:
    command = [sys.executable, "-m", "sweep", "run", str(home / "small.yaml")]
    lines = on_a_terminal(command, 80, url(home))
    assert max(map(len, lines)) <= 80
    assert "Best: mse" in "\n".join(lines[-25:])
    assert lines[-1].strip() == "sweep dashboard"


def test_replay_reproduces_a_trial_and_notices_when_it_cannot(home: Path, run: Run) -> None:
    run("run", "small.yaml", "--trials", "4")
    code, out, _ = run("replay", "small", "2")
    assert code == 0 and "Reproduced trial 2 of small" in out
    scores = [0.5, 0.5, 0.5, 0.5, 0.5]
    with sqlite3.connect(home / "sweep.db") as database:
        database.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'fold_scores'",
            [json.dumps(scores)],
        )
        database.execute(
            "UPDATE study_user_attributes SET value_json = json_set(value_json, '$.torch', '1.0')"
            " WHERE key = 'versions'"
        )
    code, out, _ = run("replay", "small", "2", "--format", "json")
    found = json.loads(out)
    assert code == 1 and not found["reproduced"] and found["difference"] > 1e-3
    code, out, _ = run("replay", "small", "2")
    assert code == 1 and "Not reproduced" in out and "torch: 1.0 ->" in out


def test_replay_reproduces_a_divergence(home: Path, run: Run) -> None:
    run("run", "small.yaml", "--trials", "1", "--set", "train.learning_rate=50.0")
    code, out, _ = run("replay", "small", "0")
    assert code == 0 and "Reproduced trial 0 of small (FAIL)" in out
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["reason", "step", "fold"]


def test_a_stored_study_imports_only_what_is_allowed(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    article = str(ROOT / "studies" / "article.yaml")
    run("run", article, "--trials", "1", "--set", "train.epochs=5", "--set", "study=article")
    code, _, err = run("replay", "article", "0")
    assert code == 2 and "--allow article" in err and "python:article:two_copies" in err
    assert run("replay", "article", "0", "--allow", "other")[0] == 2
    assert run("replay", "article", "0", "--allow", "article")[0] == 0
    assert run("replay", "article", "0", "--allow", "python:article:two_copies")[0] == 0
    monkeypatch.setenv("SWEEP_ALLOW", "other, article")
    assert run("replay", "article", "0")[0] == 0


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_check_shows_the_plan_of_every_study_here(path: Path, home: Path, run: Run) -> None:
    code, out, err = run("check", str(path), "--no-time")
    assert (code, err) == (0, "") and "time " not in out
    for words in ("study", "data", "folds", "members", "parameters", "memory", "varies"):
        assert words in out
    assert list(home.glob("*.db")) == []


def test_check_counts_what_the_reference_digits_study_does(run: Run) -> None:
    """1,797 rows; 61 of 64 pixels vary; 200 x 5 members of 20 epochs of 23 batches of 64."""
    code, out, _ = run(
        "check", str(ROOT / "studies" / "digits_mlp.yaml"), "--format", "json", "--no-time"
    )
    plan = json.loads(out)
    assert code == 0 and plan["time"] is None
    assert (plan["rows"], plan["input_shape"], plan["members"]) == (1797, [61], 1000)
    assert plan["parameters"] == [(61 + 1) * 64 + 65 * 64 + 65 * 10] * 2
    assert plan["steps"] == [20 * 23] * 2
    assert sum(plan["classes"].values()) == 1797 and len(plan["classes"]) == 10
    assert [sum(fold) for fold in plan["folds"]] == [1797] * 5


def test_check_refuses_what_run_would(home: Path, run: Run) -> None:
    for override, words in (
        ("cross_validation.folds=1000", "1000"),
        ("score=accuracy", "accuracy"),
        ("data.source=sklearn:diabets", "Did you mean"),
    ):
        code, out, err = run("check", "small.yaml", "--set", override)
        assert (code, out) == (2, "") and words in err
        assert run("run", "small.yaml", "--set", override)[0] == 2
    assert list(home.glob("*.db")) == []


def test_the_dashboard_serves_the_studies(home: Path, run: Run) -> None:
    fill(url(home))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run("dashboard", "--port", str(taken.getsockname()[1]))
        assert code == 2 and "is in use" in err
    with process("dashboard", "--port", "0") as started:
        assert started.stderr is not None
        line = started.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address is not None, line
        with urllib.request.urlopen(f"{address[0]}api/studies", timeout=30) as answer:
            found = json.load(answer)["study_summaries"]
        assert [each["study_name"] for each in found] == ["digits"]
        started.send_signal(signal.SIGINT)
        assert started.wait(20) == 130
        assert "Traceback" not in started.stderr.read()


def test_a_dashboard_for_everyone_is_warned_of(home: Path) -> None:
    with process("dashboard", "--host", "0.0.0.0", "--port", "0") as started:
        assert started.stderr is not None
        assert "no access control" in started.stderr.readline()
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 143


def names(home: Path) -> list[str]:
    if not (home / "sweep.db").exists():
        return []
    with contextlib.suppress(Exception):  # another process is just making it
        return [each["study"] for each in queries.studies(url(home)).dicts()]
    return []


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(status.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
