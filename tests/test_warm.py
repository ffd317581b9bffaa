"""Processes of `tests.warm` are what new interpreters would be."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

SAY = """
import os, sys, threading
print(sys.argv, os.getcwd(), os.environ.get("A"), sys.stdin.read(), sys.stdout.isatty())
print("err", file=sys.stderr)
threading.Thread(target=lambda: print("late")).start()
sys.exit(3)
"""


@pytest.mark.parametrize("run", [warm.run, subprocess.run])
def test_a_command_has_its_arguments_folder_environment_streams_and_code(run, tmp_path: Path):
    (tmp_path / "in").write_text("given")
    extra = {} if run is warm.run else {"capture_output": True}
    with open(tmp_path / "in") as stdin:
        done = run(
            [sys.executable, "-c", SAY, "x", "y"],
            cwd=tmp_path,
            env={**os.environ, "A": "b"},
            stdin=stdin,
            text=True,
            **extra,
        )
    said = f"['-c', 'x', 'y'] {tmp_path} b given False\nlate\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, said, "err\n")


@pytest.mark.parametrize("run", [warm.run, subprocess.run])
@pytest.mark.parametrize(
    "code, ends", [("1 / 0", 1), ("raise SystemExit('no')", 1), ("import os; os.abort()", -6)]
)
def test_a_command_that_fails_ends_as_it_would(run, code, ends):
    extra = {} if run is warm.run else {"capture_output": True}
    done = run([sys.executable, "-c", code], text=True, **extra)
    assert done.returncode == ends and not done.stdout
    assert {"1 / 0": "ZeroDivisionError: division by zero\n"}.get(code, "") in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_ends_by_a_signal(number):
    code = "import time; print('here', flush=True); time.sleep(60)"
    with warm.Popen([sys.executable, "-c", code], stdout=-1, stderr=-3, text=True) as started:
        assert started.stdout.readline() == "here\n" and started.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            started.wait(0.05)
        started.send_signal(number)
        assert started.wait(10) == -number


def test_files_that_are_passed_keep_their_numbers_and_a_session_is_its_own():
    theirs, ours = os.pipe()
    code = f"import os; os.write({ours}, str(os.getsid(0) == os.getpid()).encode())"
    with warm.Popen([sys.executable, "-c", code], pass_fds=[ours], start_new_session=True) as it:
        os.close(ours)
        assert os.read(theirs, 10) == b"True" and it.wait(10) == 0
    os.close(theirs)
