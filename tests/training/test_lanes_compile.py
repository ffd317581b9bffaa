"""Compiled programs: what they compute, where they are kept, how they are found again."""

import _ctypes
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sweep.spec import load_spec
from sweep.training import lanes_compile, lanes_operators
from sweep.training.compile_program import end_products, keep_numbers
from sweep.training.lanes_blocks import TRIES, Blocks
from sweep.training.lanes_brief import brief
from sweep.training.lanes_cache import (
    LEFT_SECONDS,
    _own_directory,
    alone,
    cache_directory,
    lasts,
    tidy,
    unlock,
)
from sweep.training.lanes_compile import WORTH_A_NODE, WORTH_SECONDS, Compilation
from sweep.training.lanes_library import CompiledProgram
from sweep.training.lanes_member import LaneModel
from sweep.training.lanes_program import Program
from sweep.training.lanes_stepper import STEP
from sweep.training.lanes_trace import step_function, tensors, trace
from sweep.training.member import Member

from .trials import BASE, begun, experiment

SLOTS = 4
PARAMS = {"learning_rate": 0.1, "clip_norm": None, "regularizer": "l1"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def compilation(brief=None, **study):
    exp = experiment({**BASE, **study})
    program, inputs = begun(exp, PARAMS, SLOTS)
    step, table = program.stepper.step, program.stepper.table
    state = program.banks[0].state
    function = step_function(step, state, inputs, table)

    def source():
        return trace(function, tensors((state, inputs)), tensors(table))

    return Compilation({STEP: source, "scoring": program.evaluation.source(state)}, brief)


def test_a_file_that_is_no_library_is_thrown_away_and_nothing_else_happens(home):
    first = compilation()
    first.trace()
    assert not first.errors and not first.ready
    library = first.libraries[STEP]
    library.write_bytes(b"no library")
    first.native.write_bytes(b"no library")
    again = compilation()
    again.trace()
    assert again.libraries == first.libraries and not library.exists()
    assert not again.native.exists()
    assert not again.errors and not again.ready


@pytest.mark.skipif(sys.platform != "linux", reason="ELF files are Linux's")
def test_a_library_that_is_cut_short_is_not_loaded(tmp_path):
    """The system may end a process that does (SIGBUS), at every start anew."""
    whole = Path(_ctypes.__file__)
    for length in (whole.stat().st_size - 1, 1000, 63, 4, 0):
        part = tmp_path / f"{length}.so"
        part.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(OSError):
            CompiledProgram(part, None, 1)
    # That can be loaded, and lacks what a compiled program has.
    with pytest.raises(AttributeError):
        CompiledProgram(whole, None, 1)


def test_what_a_lane_has_one_number_of_is_computed_before_the_loops_that_need_it():
    """And nothing else: not a sum, which no loop could hold, nor what little is made of."""

    def step(w, rate, few):
        factor = (1 / (rate + 1)).clamp(max=1.0)
        return (
            w * factor[:, None, None],
            w * w.sum((1, 2))[:, None, None],
            few * (2 * rate)[:, None],
        )

    lanes = torch.export.Dim("lanes", min=2, max=100)
    given = torch.rand(8, 10, 20), torch.rand(8), torch.rand(8, 3)
    exported = torch.export.export(
        torch.fx.symbolic_trace(step), given, dynamic_shapes=[{0: lanes}] * 3
    )
    keep_numbers(exported)
    kept = [n for n in exported.graph.nodes if n.target is lanes_operators.KEPT]
    assert [n.args[0].name for n in kept] == ["clamp"]
    for got, expected in zip(exported.module()(*given), step(*given), strict=True):
        assert torch.equal(got, expected)


def test_products_end_by_relu_and_its_derivative_where_nobody_else_needs_them():
    relu, derivative = torch.ops.aten.relu.default, torch.ops.aten.threshold_backward.default

    def step(a, b, bias, wide, many):
        one = relu(torch.ops.aten.mul.Scalar(bias, 1).view(-1, 1, 5) + torch.bmm(a, b))
        other = relu(torch.bmm(one, wide) + bias.view(-1, 1, 5))
        shared = torch.bmm(a, b)
        return (
            derivative(torch.bmm(other, wide), one, 0),
            # Not these: needed as it is, another threshold, no row, scaled, of whole numbers.
            relu(shared + bias.view(-1, 1, 5)) + shared,
            derivative(torch.bmm(other, wide), one, 0.5),
            relu(torch.bmm(a, b) + one),
            relu(torch.add(torch.bmm(a, b), bias.view(-1, 1, 5), alpha=2)),
            relu(torch.bmm(many, many) + many[:, 0].view(-1, 1, 3)),
        )

    lanes = torch.export.Dim("lanes", min=2, max=100)
    shapes = (8, 4, 3), (8, 3, 5), (8, 5), (8, 5, 5)
    given = *(torch.randn(shape) for shape in shapes), torch.randint(-9, 9, (8, 3, 3))
    graph = torch.fx.symbolic_trace(step)
    for node in graph.graph.nodes:
        if node.target is torch.bmm:
            node.target = lanes_operators.MATMUL
    graph.recompile()
    exported = torch.export.export(graph, given, dynamic_shapes=[{0: lanes}] * 5)
    end_products(exported)
    ended = (lanes_operators.MATMUL_RELU, lanes_operators.MATMUL_GATED)
    nodes = list(exported.graph.nodes)
    assert [n.target for n in nodes if n.target in ended] == [ended[0], ended[0], ended[1]]
    bias = next(n for n in nodes if n.target is ended[0]).args[2]
    assert bias.op == "placeholder"
    assert sum(n.target is lanes_operators.MATMUL for n in nodes) == 5
    for got, expected in zip(exported.module()(*given), step(*given), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("lanes, threads, size", [(9, 3, 3), (10, 3, 4), (2, 2, 2), (8, 1, 8)])
def test_a_block_is_never_so_large_that_a_thread_has_none(lanes, threads, size):
    """Not even where that takes least time, nor where lanes have become fewer since."""
    blocks = Blocks(threads)
    for _ in range(50):
        assert blocks.size(lanes) <= size
        blocks.took(blocks.size(lanes), 1 / blocks.size(lanes))
    assert blocks.size(lanes) == size
    assert blocks.size(2) == max(2, 2 // threads)


@pytest.mark.parametrize("seconds, best", [(lambda b: abs(b - 8) + 20, 8), (lambda b: 1.0, 2)])
def test_blocks_come_to_the_size_that_takes_least_time(seconds, best):
    """Of those that are as good the smallest; seldom by way of the others, and anew for more."""
    blocks = Blocks(2)
    for lanes in (80, 159, 160):
        tried = []
        for i in range(100):
            tried.append(blocks.size(lanes))
            # Now and then something takes a core.
            blocks.took(tried[-1], seconds(tried[-1]) * (3 if i % 5 == 4 else 1))
        assert tried[-50:] == [best] * 50
        assert (len(set(tried)) > 1) == (lanes != 159)
        assert all(tried.count(size) <= TRIES for size in set(tried) - {best})


def test_blocks_come_to_a_size_also_where_lanes_become_fewer_before_all_was_tried():
    blocks = Blocks(2)
    blocks.took(blocks.size(160), 60.0)
    tried = []
    for _ in range(100):
        tried.append(blocks.size(40))
        blocks.took(tried[-1], abs(tried[-1] - 8) + 20)
    assert tried[-40:] == [8] * 40 and max(tried) <= 20


def test_what_was_compiled_is_found_by_its_brief_without_tracing(home):
    first = compilation("a brief")
    assert not first.libraries
    first.trace()
    again, other = compilation("a brief"), compilation("another brief")
    assert again.libraries == first.libraries and again.traced is None
    assert not other.libraries


@pytest.mark.parametrize("damage", ["", "[]", '{"step": "a.so"}', '{"step": 1, "scoring": 2}'])
def test_an_index_that_says_nothing_is_made_anew(home, damage):
    first = compilation("a brief")
    first.trace()
    (index,) = (home / "sweep" / "steps").glob("*.json")
    index.write_text(damage)
    again = compilation("a brief")
    assert not again.libraries
    again.trace()
    assert again.libraries == first.libraries and compilation("a brief").libraries


WHOLE_FOLDS = {
    "cross_validation": {"kind": "column"},
    "train": {**BASE["train"], "batch_size": "full"},
}
STUDIES = {
    "the same": {},
    "other clipping": {"train": {**BASE["train"], "clip_norm": {"choices": [None, 1.0]}}},
    "another regularizer": {"regularizer": "l1", "lambda": 0.1},
    "two regularizers": {"regularizer": {"choices": ["l1", "l2"]}, "lambda": 0.1},
    "another optimizer": {"train": {**BASE["train"], "optimizer": "adam"}},
    "float32": {"train": {**BASE["train"], "dtype": "float32"}},
    "other batches": {"train": {**BASE["train"], "batch_size": 8}},
    "another width": {"model": {"kind": "mlp", "hidden": [7]}},
    "other rules": {"divergence": {"patience": 3}},
    "biases too": {"penalize_bias": True, "regularizer": "l1", "lambda": 0.1},
    "another score": {"score": "accuracy"},
    "other data": {"data": {"source": "python:toy_data:two_classes"}},
    "seven trials": {"trials": 7, "sampler": "random"},
    "whole folds": {**WHOLE_FOLDS, "data": {"source": "python:toy_data:even_folds"}},
    "other whole folds": {**WHOLE_FOLDS, "data": {"source": "python:toy_data:uneven_folds"}},
}


def test_studies_of_one_brief_have_the_same_programs(home):
    by_brief = {}
    for name, study in STUDIES.items():
        exp = experiment({**BASE, **study})
        model = LaneModel.build(exp, Member(0, 0, exp.spec.setting(PARAMS)))
        made = compilation(**study)
        made.trace()
        said = Program(exp, model, SLOTS).stepper.brief()
        assert said is not None
        by_brief.setdefault(said, {})[name] = made.libraries
    for alike in by_brief.values():
        assert len({str(libraries) for libraries in alike.values()}) == 1, alike.keys()
    assert {"the same", "seven trials"} in map(set, by_brief.values())


@pytest.mark.parametrize(
    "study",
    [
        {"model": {"kind": "python:toy_data:Residual"}},
        {"regularizer": "python:own_penalties:Ridge", "lambda": 0.1},
    ],
)
def test_nobody_can_say_briefly_what_a_users_own_code_depends_on(study):
    spec = load_spec({**BASE, **study}).spec
    exp = experiment(BASE)
    model = LaneModel.build(exp, Member(0, 0, exp.spec.setting(PARAMS)))
    setting = spec.setting(PARAMS)
    own = replace(model, member=Member(0, 0, setting))
    assert brief(replace(exp, spec=spec), own, 16) is None
    assert brief(exp, model, 16) is not None


def test_a_number_of_rows_that_enters_the_computation_is_not_taken_for_a_constant():
    lanes, shared = [torch.zeros(2, 3), torch.zeros(2)], [torch.zeros(5, 3)]

    def sums(lanes, shared):
        lanes[1].copy_((shared[0] @ lanes[0].mT).sum(0))
        return lanes[1]

    def means(lanes, shared):
        lanes[1].copy_((shared[0] @ lanes[0].mT).sum(0) / float(len(shared[0])))
        return lanes[1]

    traced = trace(sums, lanes, shared, open_rows=True)
    given = [torch.randn(4, 3), torch.zeros(4)], [torch.randn(7, 3)]
    traced.graph(*given)
    torch.testing.assert_close(given[0][1], (given[1][0] @ given[0][0].mT).sum(0))
    with pytest.raises(NotImplementedError, match="rows"):
        trace(means, lanes, shared, open_rows=True)


SCORED = {
    "classes": {"scores": ["accuracy"]},
    "two classes, early stopping": {
        "data": {"source": "python:toy_data:two_classes"},
        "train": {**BASE["train"], "early_stopping": {"patience": 2}},
        "score": "accuracy",
    },
    "weights": {
        "data": {"source": "python:toy_data:weighted"},
        "task": "regression",
        "score": "r2",
        "scores": ["mse", "mae"],
    },
}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] * (name != "weights")) for name in SCORED]
)
def test_compiled_scores_are_the_eager_ones(case, monkeypatch):
    """Also those of what was traced. Of one lane of a fold and of several, of a lane that is not
    finite, on all kinds of rows."""
    monkeypatch.setattr(lanes_operators, "_native", [])
    exp = experiment({**BASE, **SCORED[case]})
    setting = exp.spec.setting(PARAMS)
    names = [(0, 0), (1, 0), (2, 0), (0, 1)]
    models = [LaneModel.build(exp, Member(*name, setting)) for name in names]
    program = Program(exp, models[0], SLOTS)
    program.waiting.extend(models)
    program.advance()
    bank = program.banks[0]
    made = Compilation({"scoring": program.evaluation.source(bank.state)}, None)
    made.start()
    made.wait("scoring")
    if "compiler" in str(made.errors):
        pytest.skip("no C++ compiler here: scores are computed eagerly")
    if made.native.exists():
        # Its products are the native ones, and so are eager convolutions from then on.
        assert lanes_operators._native
        assert b"\0aoti_sweep_cpu_lanes_matmul\0" in made.libraries["scoring"].read_bytes()
    for lane, bad in ((0, None), (1, torch.nan)):
        if bad is not None:
            next(iter(bank.state.parameters.values()))[lane] = bad
        found = []
        graph, compiled = made.traced["scoring"], made.ready["scoring"]
        for looks in ((None, None), (graph, None), (graph, compiled)):
            program.evaluation.traced, program.evaluation.compiled = looks
            seats = dict(enumerate(bank.seats.lanes))
            found.append(
                [
                    program.evaluation.scores(seats, bank.state, which, asked)
                    for which in ("test", "train")
                    for asked in (
                        bank.ends.asked,
                        bank.ends.asked[:1],
                        bank.ends.asked[1:],
                    )
                ]
                + [program.evaluation.held_out_losses(seats, bank.state)]
            )
        for eager, *others in zip(*found, strict=True):
            for quick in others:
                assert eager.keys() == quick.keys()
                for slot, value in eager.items():
                    np.testing.assert_allclose(quick[slot], value, rtol=1e-12)
    # Of those that have a formula nothing is asked of the model again.
    monkeypatch.setattr(program.evaluation, "_outputs", None)
    bank.seats.resize([0], 1)
    program.evaluation.scores({0: bank.seats.lane(0)}, bank.state, "test", bank.ends.asked)
    program.evaluation.traced, program.evaluation.compiled = None, None
    program.stepper.compilation = made
    program.advance()
    assert program.evaluation.compiled is made.ready["scoring"]
    assert program.evaluation.traced is made.traced["scoring"]
    program.stepper.close()


def test_steps_are_kept_under_the_cache_that_is_asked_for(home):
    assert cache_directory() == home / "sweep" / "steps"
    assert (home / "sweep" / "steps").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_no_code_is_loaded_from_where_others_may_write(home, mode):
    path = cache_directory()
    os.chmod(path, mode)
    other = cache_directory()
    assert other != path and other.stat().st_mode & 0o077 == 0
    assert other == cache_directory()


def test_what_was_compiled_for_another_processor_is_not_taken(home, monkeypatch):
    """The home directory may be on many machines, and code for one ends another with SIGILL."""
    first = compilation("a brief")
    first.trace()
    monkeypatch.setattr(lanes_compile, "processor", lambda: "an older one")
    other = compilation("a brief")
    assert not other.libraries
    other.trace()
    assert not {*other.libraries.values()} & {*first.libraries.values()}


def test_what_another_compiler_has_made_is_not_taken(home, monkeypatch):
    first = compilation()
    first.trace()
    other = home / "compile_program.py"
    other.write_text("# Compiles in another way.\n")
    monkeypatch.setattr(lanes_compile, "COMPILER", other)
    second = compilation()
    second.trace()
    assert first.libraries.keys() == second.libraries.keys()
    assert not set(first.libraries.values()) & set(second.libraries.values())


def test_a_cache_of_ones_own_goes_with_the_process(tmp_path):
    (tmp_path / "sweep").write_text("no directory")
    script = "from sweep.training.lanes_cache import cache_directory; print(cache_directory())"
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert "sweep-steps-" in found.stdout, found.stderr
    assert not Path(found.stdout.strip()).exists()


def test_a_cache_that_vanishes_stops_compiling_and_nothing_else(home):
    """Neither before the compiler starts nor while it works; a full disk is the like."""
    gone = compilation()
    gone.trace()
    shutil.rmtree(home / "sweep")
    gone.start()
    assert gone.errors.keys() == {STEP, "scoring"} and "No such file" in gone.errors[STEP]
    working = compilation()
    working.start()
    shutil.rmtree(home / "sweep")
    working._process.kill()
    working.wait(STEP)
    assert working.errors.keys() == {STEP, "scoring"} and working.is_complete


def test_a_compiler_that_is_killed_says_so_and_not_what_it_last_warned_of(home):
    """As by a system that is short of memory."""
    working = compilation()
    working.start()
    working._log.write_text("copyreg.py:105: FutureWarning: deprecated")
    working._process.kill()
    working._process.wait()
    working.poll()
    assert set(working.errors.values()) == {"the compiler was ended by SIGKILL"}
    assert working.errors.keys() == {STEP, "scoring"} and working.is_complete


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_compiler_ends_with_all_that_it_has_started(home):
    def members(group):
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, of = stat.read_text().rpartition(") ")[2].split()[:3]
                if int(of) == group and state != "Z":
                    yield stat

    working = compilation()
    working.start()
    group, until = working._process.pid, time.monotonic() + 60
    assert os.getpgid(group) == group
    while len(list(members(group))) < 2 and not working.is_complete:
        assert time.monotonic() < until
        time.sleep(0.05)
        working.poll()
    working.close()
    while list(members(group)):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_large_program_is_compiled_where_more_training_is_left(home, monkeypatch):
    """Compiling takes longer the more operations there are: a step over a hundred steps in time
    has six times those of a small network.
    """
    found = compilation()
    assert found.worth() == WORTH_SECONDS
    found.trace()
    nodes = {name: len(traced.graph.graph.nodes) for name, traced in found.traced.items()}
    assert found.worth() == max(WORTH_SECONDS, WORTH_A_NODE * nodes[STEP])
    monkeypatch.setattr(lanes_compile, "WORTH_A_NODE", 1.0)
    assert found.worth() == nodes[STEP] > nodes["scoring"]
    found.errors[STEP] = "a compiler's error"
    assert found.worth() == nodes["scoring"]


def test_eager_steps_leave_a_core_to_the_compiler(home):
    """With a thread too many each operation waits for the thread that has no core."""
    program, _ = begun(experiment(BASE), PARAMS, SLOTS)
    stepper, counts = program.stepper, []
    step = stepper.step
    stepper.threads = 3
    stepper.step = lambda *given: (counts.append(torch.get_num_threads()), step(*given))[1]
    before = torch.get_num_threads()
    program.advance()
    stepper.compilation = compilation()
    stepper.compilation.start()
    traced = stepper.compilation.traced[STEP]
    graph = traced.graph
    counted = traced._replace(
        graph=lambda *given: (counts.append(torch.get_num_threads()), graph(*given))[1]
    )
    stepper.compilation.traced[STEP] = counted
    program.advance()
    assert stepper.compilation.is_at_work
    stepper.close()
    assert set(counts) == {before, 2} and counts[0] == before and counts[-1] == 2
    assert torch.get_num_threads() == before


def test_where_nothing_can_be_written_nothing_is_compiled(tmp_path, monkeypatch):
    # Before: torch's compiler makes a directory for temporary files when it is first imported.
    sources = compilation()._sources
    (tmp_path / "sweep").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    _own_directory.cache_clear()
    found = Compilation(sources, "a brief")
    found.start()
    assert found.errors.keys() == {STEP, "scoring"} and found.is_complete


def test_what_a_killed_compiler_left_does_not_stay_for_ever(home):
    steps = cache_directory()
    kept, inductor = [], steps / "inductor"
    for age, names in ((0, kept), (2 * LEFT_SECONDS, [])):
        folder = inductor / f"c{age:.0f}-of-a-program"
        names += [steps / f"tmp{age:.0f}.job", steps / f"tmp{age:.0f}.job.0.pt2", folder]
        folder.mkdir(parents=True)
        for file in names[:2]:
            file.touch()
        for path in names:
            os.utime(path, (time.time() - age,) * 2)
    for name in ("a.so", "a.json", "inductor/3g"):
        (steps / name).touch()
        os.utime(steps / name, (0, 0))
        kept.append(steps / name)
    tidy(steps)
    assert {*steps.iterdir(), *inductor.iterdir()} == {*kept, inductor}


def test_a_convolution_of_many_models_is_not_compiled_for_one_number_of_them(home):
    """Mapped over models it has a group a lane, and its compiled form would have so many."""
    kind, source = "python:toy_data:Convolution", "python:toy_data:images"
    found = compilation(model={"kind": kind}, data={"source": source})
    found.trace()
    assert "group a lane" in found.errors[STEP] and STEP not in found.libraries


def test_a_convolution_is_traced_for_any_number_of_models(home):
    """In the step and in the scoring, where it is written out."""
    found = compilation(model={"kind": "cnn"}, data={"source": "python:toy_data:images"})
    found.trace()
    assert not found.errors and found.traced.keys() == {STEP, "scoring"}


LEAVES = """
from tests.training.test_lanes_compile import compilation

made = compilation()
del made._sources["step"]
made.start()
made.close(finish=True)
print(made.libraries["scoring"])
"""


def test_what_is_being_compiled_when_a_run_ends_may_be_finished_without_it(home, native):
    # That it would be made as well is seen elsewhere.
    shutil.copy(native, cache_directory())
    done = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library, until = Path(done.stdout.strip()), time.monotonic() + 120
    while list(library.parent.glob("tmp*")):
        assert time.monotonic() < until
        time.sleep(0.1)
    if not library.exists() and shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    assert library.exists() and not list(library.parent.glob("*.lock"))


def test_nothing_is_finished_in_a_directory_that_ends_with_the_process(tmp_path, monkeypatch):
    _own_directory.cache_clear()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "steps").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not lasts(cache_directory()) and lasts(tmp_path)


def test_two_processes_do_not_compile_the_same(tmp_path):
    """Whoever comes second waits for the first, and finds the library."""
    library, order = str(tmp_path / "a.so"), []
    first_is_in, first_may_go = threading.Event(), threading.Event()

    def first():
        with alone(library):
            first_is_in.set()
            first_may_go.wait(30)
            order.append("first")

    def second():
        first_is_in.wait(30)
        with alone(library):
            order.append("second")

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(first), pool.submit(second)]
        time.sleep(0.3)
        assert order == []
        # Nor does one that was ended take the lock away from them.
        unlock(library)
        assert [path.name for path in tmp_path.iterdir()] == ["a.so.lock"]
        first_may_go.set()
        for one in both:
            one.result(30)
    assert order == ["first", "second"] and list(tmp_path.iterdir()) == []
    (tmp_path / "a.so.lock").touch()
    unlock(library)
    unlock(library)
    assert list(tmp_path.iterdir()) == []
