"""What is native: products of lanes are torch's, and many steps in one call are those steps."""

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sweep.problem.group_prox import GROUP_PROX
from sweep.training import lanes_operators
from sweep.training.compile_program import bound_to_own, make_native
from sweep.training.lanes_library import CompiledProgram, Turns, load_native
from sweep.training.lanes_operators import (
    CONVOLVE,
    INPUT_GRADIENT,
    NATIVE_SOURCES,
    WEIGHT_GRADIENT,
)

Pointer = ctypes.c_void_p


@pytest.fixture
def no_native(monkeypatch):
    """Operators are PyTorch's own until `use_native` is called."""
    monkeypatch.setattr(lanes_operators, "_native", [])


def call(native: Path, name: str, tensors: Sequence[torch.Tensor], *rest: object) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes_operators, "_native", [ctypes.CDLL(str(native))])
        return lanes_operators._call_native(name, tensors, *rest)


def product(native: Path, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return call(native, "lanes_matmul", (a, b))


def matrices(how: str, lanes: int, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    if how == "transposed":
        return matrices("plain", lanes, columns, rows, dtype).mT
    if how == "shared":
        return matrices("plain", 1, rows, columns, dtype).expand(lanes, -1, -1)
    if how == "part":
        return matrices("plain", lanes, rows + 3, 2 * columns + 1, dtype)[:, 2:-1, 1::2]
    return torch.randn(lanes, rows, columns, dtype=torch.float64).to(dtype)


HOW = st.sampled_from(["plain", "transposed", "shared", "part"])
LENGTH = st.integers(0, 70)


@settings(max_examples=300)
@given(
    lanes=st.integers(0, 5),
    m=LENGTH,
    k=LENGTH,
    n=LENGTH,
    how=st.tuples(HOW, HOW),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@example(lanes=2, m=600, k=20, n=3, how=("transposed", "plain"), dtype=torch.float32)
@example(lanes=2, m=250, k=700, n=40, how=("plain", "transposed"), dtype=torch.float32)
@example(lanes=2, m=250, k=700, n=40, how=("transposed", "part"), dtype=torch.float64)
@example(lanes=1, m=7, k=256, n=17, how=("shared", "plain"), dtype=torch.float64)
def test_products_are_the_sums_that_define_them(native, lanes, m, k, n, how, dtype):
    """Within the bound of any order of summation: k eps sum |a||b|. Higham (2002), section 3.1,
    doi:10.1137/1.9780898718027
    """
    torch.manual_seed(m + 100 * k + 10_000 * n)
    a, b = matrices(how[0], lanes, m, k, dtype), matrices(how[1], lanes, k, n, dtype)
    found = product(native, a, b)
    assert found.dtype == dtype and found.shape == (lanes, m, n) and found.is_contiguous()
    exact = a.double() @ b.double()
    bound = (k + 1) * torch.finfo(dtype).eps * (a.double().abs() @ b.double().abs())
    assert ((found.double() - exact).abs() <= bound).all()


@settings(max_examples=200)
@given(
    lanes=st.integers(0, 4),
    m=LENGTH,
    k=LENGTH,
    n=LENGTH,
    how=HOW,
    bad=st.sampled_from([None, torch.nan, torch.inf, -torch.inf]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@example(lanes=2, m=250, k=700, n=40, how="plain", bad=None, dtype=torch.float32)
@example(lanes=2, m=250, k=700, n=40, how="transposed", bad=torch.nan, dtype=torch.float32)
@example(lanes=1, m=13, k=20, n=33, how="part", bad=torch.nan, dtype=torch.float64)
def test_a_product_ends_as_relu_and_its_derivative_would_have_it(
    native, lanes, m, k, n, how, bad, dtype
):
    """Number by number, NaN and infinities included, whatever the strides of what it ends by."""
    torch.manual_seed(m + 100 * k + 10_000 * n)
    a, b = matrices("plain", lanes, m, k, dtype), matrices("transposed", lanes, k, n, dtype)
    gate = matrices(how, lanes, m, n, dtype).relu()
    row = matrices(how, lanes, m + 1, n, dtype)[:, m // 2]
    if bad is not None:
        for t in (a, gate, row):
            if t.numel() and how != "shared":
                t[-1, ..., -1] = bad
    plain = product(native, a, b)
    ended = call(native, "lanes_matmul_relu", (a, b, row))
    assert torch.equal(ended.nan_to_num(7.0), torch.relu(plain + row[:, None]).nan_to_num(7.0))
    gated = call(native, "lanes_matmul_gated", (a, b, gate))
    expected = torch.where(gate <= 0, 0, plain)
    assert torch.equal(gated.nan_to_num(7.0), expected.nan_to_num(7.0))
    for found, operator, more in ((ended, "matmul_relu", row), (gated, "matmul_gated", gate)):
        assert found.shape == (lanes, m, n) and found.is_contiguous()
        written = getattr(lanes_operators, operator)(a, b, more)
        tolerance = {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(found, written, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_a_number_that_is_kept_is_the_same_one(native, dtype):
    table = (torch.arange(35).reshape(7, 5) % 3).to(dtype)
    for numbers in (table[:, 2], table[:, 1:2], table[:1, 1].expand(7), table[:, 0, None, None]):
        kept = call(native, "lanes_kept", (numbers,))
        assert torch.equal(kept, numbers) and kept.is_contiguous()
        assert kept.data_ptr() != numbers.data_ptr()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
def test_what_was_computed_is_freed_with_its_tensor(native):
    a, resident = torch.ones(1, 1000, 1), []
    for _ in range(2):
        for _ in range(50):
            found = product(native, a, a.mT)
        resident.append(resident_bytes())
    assert found._use_count() == 1
    # 50 results of 4 MB were made in between.
    assert resident[1] - resident[0] < 50e6


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("n", [1, 10, 16, 33])
def test_what_is_not_finite_stays_where_it_belongs(native, bad, n):
    a, b = torch.randn(3, 13, 21), torch.randn(3, 21, n)
    a[1, 4, 7] = bad
    b[2, 5, n - 1] = bad
    found, expected = product(native, a, b), a @ b
    assert torch.equal(torch.isfinite(found), torch.isfinite(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64])
def test_other_numbers_are_multiplied_by_torch(native, dtype):
    a, b = torch.randint(-9, 9, (2, 5, 6)).to(dtype), torch.randint(-9, 9, (2, 6, 7)).to(dtype)
    assert torch.equal(product(native, a, b), torch.bmm(a, b))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lanes=st.integers(1, 3),
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 8), st.integers(1, 14)),
    rows=st.integers(1, 40) | st.integers(120, 140),
    sides=st.tuples(*[st.integers(1, 6)] * 3),
    kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
    dilation=st.tuples(*[st.integers(1, 2)] * 3),
    shared=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_convolutions_are_the_sums_that_define_them(
    native, no_native, lanes, groups, channels, rows, sides, kernel, stride, dilation, shared, dtype
):
    """Sums of small whole numbers are exact in any order."""
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    sides = [max(n, r) for n, r in zip(sides, reach, strict=True)]
    lengths = [(n - r) // s + 1 for n, r, s in zip(sides, reach, stride, strict=True)]
    n_in, n_out = groups * channels[0], groups * channels[1]
    generator = torch.Generator().manual_seed(rows)

    def whole(*shape):
        return torch.randint(-9, 10, shape, generator=generator).to(dtype)

    x = whole(1, n_in, *sides, rows).expand(lanes, *[-1] * 5)
    if not shared:
        x = whole(lanes, n_in, *sides, rows)
    w, d = whole(lanes, n_out, channels[0], *kernel), whole(lanes, n_out, *lengths, rows)
    how = (stride, dilation, groups)
    assert torch.equal(call(native, "lanes_convolve", (x, w), *how), CONVOLVE(x, w, *how))
    found = call(native, "lanes_input_gradient", (d, w), sides, *how)
    assert torch.equal(found, INPUT_GRADIENT(d, w, sides, *how))
    found = call(native, "lanes_weight_gradient", (d, x), kernel, *how)
    assert torch.equal(found, WEIGHT_GRADIENT(d, x, kernel, *how))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_eager_convolutions_are_native_where_that_is_there(native, no_native, monkeypatch, dtype):
    x = torch.randn(2, 3, 1, 5, 5, 9).to(dtype)
    w, d = torch.randn(2, 2, 3, 1, 3, 3).to(dtype), torch.randn(2, 2, 1, 3, 3, 9).to(dtype)
    how = ((1, 1, 1), (1, 1, 1), 1)

    def found():
        return [
            CONVOLVE(x, w, *how),
            INPUT_GRADIENT(d, w, (1, 5, 5), *how),
            WEIGHT_GRADIENT(d, x, (1, 3, 3), *how),
        ]

    plain, names, own = found(), [], lanes_operators._call_native
    monkeypatch.setattr(
        lanes_operators, "_call_native", lambda name, *a: (names.append(name), own(name, *a))[1]
    )
    lanes_operators.use_native(ctypes.CDLL(str(native)))
    torch.testing.assert_close(found(), plain)
    others = dtype == torch.bfloat16
    called = ["lanes_convolve", "lanes_input_gradient", "lanes_weight_gradient"]
    assert names == ([] if others else called)


def test_a_convolution_of_what_it_cannot_read_fails(native):
    x, w = torch.randn(2, 3, 1, 5, 5, 9), torch.randn(2, 4, 3, 1, 3, 3)
    how = ((1, 1, 1), (1, 1, 1), 1)
    for bad in (x.transpose(3, 4), x[..., ::2], x.half(), x.double(), x[0]):
        with pytest.raises(RuntimeError, match="convolve"):
            call(native, "lanes_convolve", (bad, w), *how)


@settings(max_examples=200)
@given(
    rows=st.integers(0, 5),
    size=st.integers(1, 40),
    spread=st.sampled_from([0.0, 1.0, 3.0, 8.0]),
    strength=st.floats(-6, 3).map(lambda e: 10.0**e) | st.just(0.0),
    how=st.sampled_from(["plain", "transposed"]),
    on_border=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_step_of_group_lasso_is_the_operator_s(
    native, rows, size, spread, strength, how, on_border, dtype
):
    """A row that lies on the border of 0, to rounding, may be on either side."""
    generator = torch.Generator().manual_seed(size)

    def drawn(magnitudes):
        shape = (size, rows) if how == "transposed" else (rows, size)
        numbers = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (numbers if magnitudes is None else (magnitudes * numbers).exp()).to(dtype)

    w, step, weight = drawn(None) * drawn(spread), drawn(spread), torch.full((rows,), strength)
    if on_border:
        # Each weight as near to 0 as its row is: there the iteration is longest.
        step, weight = w.abs(), size**0.5 * torch.randn(rows, generator=generator).exp()
    given = (*((w.T, step.T) if how == "transposed" else (w, step)), weight.to(dtype))
    found, expected = call(native, "group_prox", given), GROUP_PROX(*given)
    assert found.shape == expected.shape and found.is_contiguous()
    room = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        found, expected, rtol=room, atol=room * float(w.abs().amax() if w.numel() else 0)
    )


@pytest.mark.parametrize("place", ["w", "step", "weight"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_the_step_of_group_lasso_stays_a_number_where_the_operator_does(native, place, bad):
    given = {"w": torch.randn(3, 9), "step": torch.rand(3, 9), "weight": torch.rand(3)}
    given[place][1] = bad
    found, expected = call(native, "group_prox", [*given.values()]), GROUP_PROX(*given.values())
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found[[0, 2]].isfinite().all()


def test_the_step_of_group_lasso_of_what_it_cannot_read_fails(native):
    w, step, weight = torch.randn(3, 9), torch.rand(3, 9), torch.rand(3)
    for bad in ((w.half(), step.half(), weight.half()), (w, step.double(), weight)):
        with pytest.raises(RuntimeError, match="group_prox"):
            call(native, "group_prox", bad)


ADDS = """
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

extern "C" {
AOTITorchError AOTInductorModelContainerCreateWithDevice(void**, size_t, const char*, const char*) {
  return 0;
}
// state (lanes) <- 2 * state + input (lanes) + shared (1), and returns the state.
AOTITorchError AOTInductorModelContainerRun(void*, AtenTensorHandle* given, size_t n,
                                            AtenTensorHandle* returned, size_t, void*, void*) {
  double* data[3];
  int64_t dim, *lanes;
  for (int i = 0; i < 3; i++) aoti_torch_get_data_ptr(given[i], (void**)&data[i]);
  aoti_torch_get_dim(given[1], &dim);
  aoti_torch_get_sizes(given[0], &lanes);
  if (n != 3 || dim != 1 || data[1][0] < 0) return 1;
  for (int i = 0; i < *lanes; i++) data[0][i] = 2 * data[0][i] + data[1][i] + data[2][0];
  aoti_torch_new_tensor_handle(given[0], returned);
  for (int i = 0; i < 3; i++) aoti_torch_delete_tensor_object(given[i]);
  return 0;
}
}
"""


MAKES = """
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <cstring>

#define CHECK(condition) if (!(condition)) return __LINE__
#define CALL(call) CHECK(!(call))

extern "C" {
AOTITorchError AOTInductorModelContainerCreateWithDevice(void**, size_t, const char*, const char*) {
  return 0;
}
// Of state (lanes, 4) every number is replaced by the one to its right, by way of tensors and views
// of all kinds, of whose forms everything is asked.
AOTITorchError AOTInductorModelContainerRun(void*, AtenTensorHandle* given, size_t n,
                                            AtenTensorHandle* returned, size_t, void*, void*) {
  AtenTensorHandle made, turned, copy, blob, more, scalar;
  int64_t *sizes, *strides, dim, number;
  int32_t type, device;
  double *from, *to;
  CALL(aoti_torch_get_sizes(given[0], &sizes));
  const int64_t lanes = sizes[0], form[] = {lanes, 4}, rows[] = {4, 1}, columns[] = {4, lanes};
  const int64_t across[] = {1, 4}, two[] = {3, lanes}, nothing[] = {lanes, 0, 7};
  const int64_t strides_of_nothing[] = {0, 7, 1};
  CALL(aoti_torch_get_dtype(given[0], &type));
  CALL(aoti_torch_get_device_type(given[0], &device));
  CHECK(n == 1 && type == aoti_torch_dtype_float64() && device == aoti_torch_device_type_cpu());
  CALL(aoti_torch_get_data_ptr(given[0], (void**)&from));
  for (int times = 0; times < 50; times++) {
    CALL(aoti_torch_empty_strided(2, form, rows, type, device, 0, &made));
    CALL(aoti_torch_get_data_ptr(made, (void**)&to));
    CHECK((size_t)to % 64 == 0 && to != from);
    std::memcpy(to, from, lanes * 4 * sizeof(double));
    CALL(aoti_torch_get_numel(made, &number));
    CHECK(number == 4 * lanes);
    CALL(aoti_torch_get_storage_size(made, &number));
    CHECK(number >= 4 * lanes * 8);
    CALL(aoti_torch_get_storage_offset(made, &number));
    CHECK(number == 0);
    CALL(aoti_torch__reinterpret_tensor(made, 2, columns, across, 0, &turned));
    // The numbers stay as long as a view of them does.
    CALL(aoti_torch_new_tensor_handle(turned, &more));
    CALL(aoti_torch_delete_tensor_object(made));
    CALL(aoti_torch_delete_tensor_object(turned));
    CALL(aoti_torch_empty_strided(2, form, rows, type, device, 0, &made));
    CALL(aoti_torch_get_data_ptr(made, (void**)&to));
    std::memset(to, 1, lanes * 4 * sizeof(double));
    CALL(aoti_torch__reinterpret_tensor(more, 2, two, across, 1, &turned));
    CALL(aoti_torch_delete_tensor_object(more));
    CALL(aoti_torch_clone(turned, &copy));
    CALL(aoti_torch_get_dim(copy, &dim));
    CALL(aoti_torch_get_sizes(copy, &sizes));
    CALL(aoti_torch_get_strides(copy, &strides));
    CALL(aoti_torch_get_data_ptr(copy, (void**)&to));
    CHECK(dim == 2 && sizes[0] == 3 && sizes[1] == lanes);
    CALL(aoti_torch_delete_tensor_object(turned));
    for (int64_t lane = 0; lane < lanes; lane++) {
      const double first = from[4 * lane];
      for (int i = 0; i < 3; i++) from[4 * lane + i] = to[i * strides[0] + lane * strides[1]];
      from[4 * lane + 3] = first;
    }
    CALL(aoti_torch_delete_tensor_object(copy));
    CALL(aoti_torch_create_tensor_from_blob(from, 2, form, rows, 1, type, device, 0, &blob));
    CALL(aoti_torch_get_data_ptr(blob, (void**)&to));
    CHECK(to == from + 1);
    CALL(aoti_torch_delete_tensor_object(blob));
    CALL(aoti_torch_empty_strided(0, nullptr, nullptr, type, device, 0, &scalar));
    CALL(aoti_torch_get_numel(scalar, &number));
    CHECK(number == 1);
    CALL(aoti_torch_delete_tensor_object(scalar));
    CALL(aoti_torch_empty_strided(3, nothing, strides_of_nothing, type, device, 0, &blob));
    CALL(aoti_torch_get_numel(blob, &number));
    CHECK(number == 0);
    CALL(aoti_torch_delete_tensor_object(blob));
    CALL(aoti_torch_delete_tensor_object(made));
  }
  return aoti_torch_new_tensor_handle(given[0], returned) ||
         aoti_torch_delete_tensor_object(given[0]);
}
}
"""


def made(code: str, directory: Path) -> Path:
    """A program with the interface of a compiled one, from a few lines of C; beside it `own`, the
    same program with the native library's own tensors."""
    source = directory / "source.cpp"
    source.write_text(code)
    program = directory / "program.so"
    assert make_native([source], str(program), str(directory / "scratch"))
    bound = bound_to_own(program.read_bytes())
    assert bound != program.read_bytes() and b"\0aoti_torch_get_data_ptr\0" not in bound
    (directory / "own").write_bytes(bound)
    return program


@pytest.fixture(scope="module")
def adds(native, tmp_path_factory):
    return made(ADDS, tmp_path_factory.mktemp("adds"))


@pytest.fixture(scope="module")
def makes(native, tmp_path_factory):
    return made(MAKES, tmp_path_factory.mktemp("makes"))


WHERE = ["native", "own", "python"]


def loaded(program: Path, native: Path, where: str) -> CompiledProgram:
    """Stepping natively, with PyTorch's tensors or its own, or from Python."""
    path = program.with_name("own") if where == "own" else program
    return CompiledProgram(path, None if where == "python" else load_native(native), 1)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("lanes", [2, 40, 100_000])
def test_own_tensors_are_what_those_of_pytorch_are(native, makes, where, lanes):
    program = loaded(makes, native, where)
    begin = torch.randn(lanes, 4, dtype=torch.float64)
    state = begin.clone()
    for _ in range(3):
        program([state], [])
    assert torch.equal(state, begin.roll(-150, 1))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
def test_what_own_tensors_held_is_freed(native, makes):
    """Of sizes that come and go, on threads that come and go."""
    program, resident = loaded(makes, native, "own"), []
    begin = torch.randn(31_000, 4, dtype=torch.float64)

    def run(_: int) -> None:
        for lanes in range(30_000, 30_020):
            program([begin[:lanes]], [])

    for _ in range(2):
        for _ in range(5):
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(run, range(2)))
        resident.append(resident_bytes())
    # One that is left of each of the 200 calls in between would be 200 MB; each makes hundreds.
    assert resident[1] - resident[0] < 67e6


def test_a_program_that_calls_more_of_pytorch_is_left_as_it_is(adds):
    whole = adds.read_bytes()
    for other in (
        whole.replace(b"\0aoti_torch_get_dim\0", b"\0aoti_torch_cumsum_\0"),
        b"MZ" + whole[2:],
    ):
        assert other != whole and bound_to_own(other) == other


@pytest.mark.parametrize("where", WHERE)
def test_many_steps_in_a_call_are_those_steps_one_after_the_other(native, adds, where):
    program = loaded(adds, native, where)
    state, shared = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.5]).double()
    # Some of all columns, as the lanes of a block are some of all.
    inputs = torch.arange(28.0, dtype=torch.float64).reshape(7, 4)[:, 1:3]
    expected = state.clone()
    for step in inputs:
        expected = 2 * expected + step + shared
    counts = [t._use_count() for t in (state, inputs, shared)]
    program.steps([state], [inputs], [shared])
    assert torch.equal(state, expected)
    # Every handle was given back.
    assert [t._use_count() for t in (state, inputs, shared)] == counts


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("parts", [1, 3, 100])
def test_threads_that_share_the_lanes_step_each_of_them_once(native, adds, where, parts):
    """Blocks of unlike sizes, in parts of unlike numbers of steps."""
    program = loaded(adds, native, where)
    lanes, steps = 11, 7
    begin = torch.arange(float(lanes), dtype=torch.float64)
    inputs = torch.arange(float(steps * lanes), dtype=torch.float64).reshape(steps, lanes)
    shared = torch.tensor([0.5]).double()
    expected = begin.clone()
    for step in inputs:
        expected = 2 * expected + step + 0.5
    for _ in range(20):
        state, turns = begin.clone(), Turns(4, parts)
        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(program.steps, [state], [inputs], [shared], turns)] * 3:
                done.result()
        assert torch.equal(state, expected)


@pytest.mark.parametrize("where", WHERE)
def test_a_step_that_fails_is_said(native, adds, where):
    program = loaded(adds, native, where)
    with pytest.raises(RuntimeError, match="failed"):
        program.steps(
            [torch.zeros(2).double()], [-torch.ones(3, 2).double()], [torch.zeros(1).double()]
        )
    # Nobody waits for what never comes.
    given, turns = ([torch.zeros(4).double()], [-torch.ones(3, 4).double()]), Turns(2, 3)
    for _ in range(3):
        with contextlib.suppress(RuntimeError):
            program.steps(*given, [torch.zeros(1).double()], turns)


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_where_it_cannot_be_made_nothing_is_left_behind(compiler, tmp_path):
    import torch._inductor.config as inductor

    library = tmp_path / "native.so"
    with inductor.patch("cpp.cxx", (None, compiler)):
        assert not make_native(NATIVE_SOURCES, str(library), str(tmp_path / "scratch"))
    assert not list(tmp_path.iterdir())


def test_a_program_without_its_native_library_is_not_taken(native, tmp_path):
    """In a process that has loaded none."""
    source = (
        'extern "C" int aoti_torch_cpu_lanes_matmul(); int (*f)() = aoti_torch_cpu_lanes_matmul;'
    )
    (tmp_path / "needs.cpp").write_text(source)
    needs = tmp_path / "needs.so"
    subprocess.run(["g++", "-shared", "-fPIC", tmp_path / "needs.cpp", "-o", needs], check=True)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from sweep.training.lanes_library import CompiledProgram, Turns, load_native\n"
        "for native in (None, Path(sys.argv[2])):\n"
        "    try: CompiledProgram(Path(sys.argv[1]), native and load_native(native), 1)\n"
        "    except (OSError, AttributeError) as error: print(type(error).__name__)\n"
    )
    command = [sys.executable, "-c", code, needs, native]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    # With it the program loads, and is seen to be none.
    assert done.stdout.split() == ["OSError", "AttributeError"]
