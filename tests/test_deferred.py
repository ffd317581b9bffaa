"""A deferred module is executed when it is asked for something, once; and looks like any other."""

import importlib
import inspect
import subprocess
import sys
import threading

import pytest

from sweep.cli.deferred import Deferred, defer

SOURCE = """
executed.append(1)
CONSTANT = 3

def double(x):
    return 2 * x
"""


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """How often the module `put_off.inner` has been executed."""
    package = tmp_path / "put_off"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inner.py").write_text(f"from put_off import executed\n{SOURCE}")
    (package / "broken.py").write_text("raise OSError('no disk')")
    monkeypatch.syspath_prepend(tmp_path)
    put_off = importlib.import_module("put_off")
    put_off.executed = []
    yield put_off.executed
    for name in [name for name in sys.modules if name.partition(".")[0] == "put_off"]:
        del sys.modules[name]


def test_importing_it_or_a_function_of_it_does_not_execute_it(executed):
    defer("put_off.inner", ["double"])
    import put_off.inner
    from put_off import inner
    from put_off.inner import double

    assert put_off.inner is inner is sys.modules["put_off.inner"]
    # What looks at all modules there are looks at these.
    assert inner.__file__ and inner.__spec__ and inspect.getmodule(test_a_call_executes_it_once)
    assert not executed and isinstance(inner, Deferred)
    assert double(4) == 8 and len(executed) == 1
    assert inner.double(4) == 8 and inner.CONSTANT == 3 and not isinstance(inner, Deferred)


def test_a_call_executes_it_once(executed):
    defer("put_off.inner")
    import put_off.inner

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(put_off.inner.CONSTANT)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3] * 8 and len(executed) == 1
    with pytest.raises(AttributeError, match="nothing"):
        _ = put_off.inner.nothing


def test_what_is_there_or_nowhere_is_left_alone(executed):
    import put_off.inner as there

    defer("put_off.inner")
    defer("put_off.nowhere")
    assert sys.modules["put_off.inner"] is there and not isinstance(there, Deferred)
    assert "put_off.nowhere" not in sys.modules
    defer("no_package.inner")
    assert "no_package.inner" not in sys.modules


def test_one_that_cannot_be_executed_says_so_each_time(executed):
    defer("put_off.broken")
    import put_off.broken

    with pytest.raises(OSError, match="no disk"):
        _ = put_off.broken.anything
    with pytest.raises(OSError, match="no disk"):
        importlib.import_module("put_off.broken")


def test_a_sweep_does_without_the_statistics_of_scipy(tmp_path):
    code = """
import sys
from sweep.cli import main
study = ["study: s", "data: {source: sklearn:iris}", "task: classification",
         "model: {kind: linear}", "train: {learning_rate: {low: 0.01, high: 0.1}, epochs: 2}"]
open("s.yaml", "w").write("\\n".join(study))
assert main(["run", "s.yaml", "--trials", "12", "--quiet"]) == 0
print(type(sys.modules["scipy.stats"]).__name__)
import scipy.stats
print(scipy.stats.rankdata([3, 1, 2]).tolist())
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["Deferred", "[3.0, 1.0, 2.0]"]
