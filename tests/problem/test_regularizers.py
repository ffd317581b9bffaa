"""Every penalty through the same laws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet as SklearnElasticNet
from torch import Tensor
from torch.func import grad, vmap

from sweep.errors import SweepError
from sweep.problem.regularizers import (
    L1,
    L2,
    REGULARIZERS,
    ElasticNet,
    FeatureGroupLasso,
    GroupLasso,
    Orthogonal,
    Spectral,
    make_regularizer,
    split,
)

GROUPS = torch.tensor([2, 0, 0, 5, 2, 2])
HERE = Path(__file__).parent


def made(name: str, groups: Tensor | None = None) -> Callable[[Tensor], Any]:
    def make(lam: Tensor) -> Any:
        ratio = torch.full_like(lam, 0.3)
        return make_regularizer(name, lam, ratio, directory=HERE, groups=groups)

    return make


CASES: dict[str, Callable[[Tensor], Any]] = {
    "l1": made("l1"),
    "l2": made("l2"),
    "elastic_net": made("elastic_net"),
    "group_lasso": made("group_lasso"),
    "group_lasso of named feature groups": made("group_lasso", GROUPS),
    "spectral": made("spectral"),
    "orthogonal": made("orthogonal"),
}
SMOOTH_ONLY = ("spectral", "orthogonal")
PROXIMAL = {name: make for name, make in CASES.items() if name not in SMOOTH_ONLY}
DTYPES = (torch.float64, torch.float32)
over_cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
over_proximal = pytest.mark.parametrize("make", PROXIMAL.values(), ids=PROXIMAL.keys())
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

exponents = st.floats(-6, 3)


@st.composite
def problems(draw: st.DrawFn, shape: tuple[int, ...] = (4, 6)) -> tuple[Tensor, Tensor, Tensor]:
    """(w, step, lam) of many magnitudes; step scalar or per coordinate; some weights 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = rng.normal(size=shape) * 10.0 ** draw(exponents)
    w *= 10.0 ** rng.uniform(-draw(st.floats(0, 4)), 0, size=shape)
    w[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0.0
    step = 10.0 ** draw(exponents)
    if draw(st.booleans()):
        step = step * 10.0 ** rng.uniform(-draw(st.floats(0, 4)), 0, size=shape)
    lam = 10.0 ** draw(exponents)
    return tuple(torch.as_tensor(x, dtype=torch.float64) for x in (w, step, lam))  # type: ignore[return-value]


def test_every_regularizer_is_a_case():
    assert {name.split(" ")[0] for name in CASES} == set(REGULARIZERS)
    with_prox = {name for name, make in CASES.items() if hasattr(make(torch.tensor(1.0)), "prox")}
    assert with_prox == set(PROXIMAL)


@over_dtypes
@over_proximal
@settings(max_examples=80)
@given(data=st.data())
def test_prox_minimises_its_definition(make: Any, dtype: torch.dtype, data: st.DataObject):
    """u = prox(w) iff F(v) >= F(u) + 1/2 sum (v - u)^2 / step for every v.

    F(v) = 1/2 sum (v - w)^2 / step + value(v), whose strong convexity this is.
    """
    w, step, lam = data.draw(problems())
    regularizer, exact = make(lam.to(dtype)), make(lam)
    u = regularizer.prox(w.to(dtype), step.to(dtype)).double()

    def F(v: Tensor) -> Tensor:
        return ((v - w) ** 2 / step).sum() / 2 + exact.value(v)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5, *w.shape, generator=generator, dtype=torch.float64)
    scale = u.abs().max() + w.abs().max() * 1e-3
    others = [w, torch.zeros_like(w), 2 * u - w, u * 1.01, u * 0.99]
    others += [u + noise[i] * scale * 10.0**-i for i in range(5)]
    eps = 1e-13 if dtype == torch.float64 else 1e-5
    for v in others:
        tolerance = eps * (F(u) + F(w) + F(v) + F(torch.zeros_like(w)))
        assert F(v) - F(u) - ((v - u) ** 2 / step).sum() / 2 >= -tolerance


@pytest.mark.parametrize("spread", [0.0, 3.0, 8.0])
def test_group_lasso_finds_its_root_whatever_the_magnitudes(spread: float):
    """||u|| is where the row's equation holds: sum (w / (||u|| + c))^2 = 1 with c = step lam
    sqrt(S), and 0 where that sum is at most 1 already."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 400, 9, generator=generator, dtype=torch.float64)
    w = noise[0] * (spread * noise[1]).exp()
    # On both sides of what makes a row 0.
    step = w.abs() * noise[2, :, :1].exp()
    u = CASES["group_lasso"](torch.tensor(1.0, dtype=torch.float64)).prox(w, step)
    rho, c = u.norm(dim=1, keepdim=True), step * 3
    total = (w / (rho + c)).square().sum(1)
    kept = rho.squeeze(1) > 0
    assert 100 < kept.sum() < 300 and (total[~kept] <= 1 + 1e-12).all()
    torch.testing.assert_close(total[kept], torch.ones(int(kept.sum())).double(), rtol=0, atol=1e-9)


@over_dtypes
@over_cases
@settings(max_examples=40)
@given(problem=problems())
def test_at_lambda_zero_value_is_zero_and_prox_the_identity(
    make: Any, dtype: torch.dtype, problem: Any
):
    w, step = problem[0].to(dtype), problem[1].to(dtype)
    regularizer = make(torch.zeros((), dtype=dtype))
    assert not hasattr(regularizer, "prox") or torch.equal(regularizer.prox(w, step), w)
    assert regularizer.value(w) == 0
    assert torch.equal(grad(regularizer.value)(w), torch.zeros_like(w))


@over_cases
def test_lambda_zero_is_harmless_where_the_size_overflows(make: Any):
    w = torch.full((2, 6), 3e38)
    regularizer = make(torch.tensor(0.0))
    assert regularizer.value(w) == 0
    assert torch.equal(grad(regularizer.value)(w), torch.zeros_like(w))
    if not hasattr(regularizer, "prox"):
        return
    assert torch.equal(regularizer.prox(w, torch.tensor(1.0)), w)
    assert torch.equal(regularizer.prox(w, torch.ones(2, 6)), w)
    tiny = torch.full((2, 6), 1e-30)
    assert torch.equal(regularizer.prox(tiny, torch.tensor(1.0)), tiny)
    assert torch.equal(regularizer.prox(tiny, torch.ones(2, 6)), tiny)


@over_dtypes
@over_cases
@settings(max_examples=25)
@given(data=st.data())
def test_vmapped_equals_looped(make: Any, dtype: torch.dtype, data: st.DataObject):
    w, step, lam = zip(*(data.draw(problems()) for _ in range(3)), strict=True)
    ws = torch.stack(w).to(dtype)
    steps = torch.stack([s.expand(ws[0].shape) for s in step]).to(dtype)
    lams = torch.stack(lam).to(dtype)
    stacked = type(make(lams[0]))(
        *(torch.stack(fields) for fields in zip(*(make(v) for v in lams), strict=True))
    )
    scalar = steps[:, 0, 0]
    methods = [
        (lambda r, w, s: r.value(w), (ws, scalar)),
        (lambda r, w, s: grad(r.value)(w), (ws, scalar)),
        (lambda r, w, s: r.prox(w, s), (ws, scalar)),
        (lambda r, w, s: r.prox(w, s), (ws, steps)),
    ]
    for method, arguments in methods if hasattr(stacked, "prox") else methods[:2]:
        together = vmap(method)(stacked, *arguments)
        for i in range(3):
            alone = method(make(lams[i]), arguments[0][i], arguments[1][i])
            # Sums over a matrix round as their largest terms do.
            atol = 0.0 if hasattr(stacked, "prox") else 1e-4 * float(alone.abs().max())
            torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=atol)


@over_dtypes
@over_cases
def test_the_gradient_at_exactly_zero_is_zero(make: Any, dtype: torch.dtype):
    w = torch.zeros(3, 4, 6, dtype=dtype)
    w[0, 0] = 1.0
    gradient = vmap(grad(make(torch.tensor(0.7, dtype=dtype)).value))(w)
    assert torch.equal(gradient[1:], torch.zeros(2, 4, 6, dtype=dtype))
    assert torch.isfinite(gradient).all() and (gradient[0, 0] != 0).all()


@over_cases
@pytest.mark.parametrize("shape", [(), (5,), (3, 6), (4, 2, 3, 3)], ids=str)
def test_parameters_of_every_shape_keep_it(make: Any, shape: tuple[int, ...]):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    regularizer = make(torch.tensor(0.1))
    assert regularizer.value(w).shape == ()
    if not hasattr(regularizer, "prox"):
        return
    assert regularizer.prox(w, torch.tensor(0.1)).shape == shape
    assert regularizer.prox(w, torch.full(shape, 0.1)).shape == shape


@over_cases
def test_nan_stays_visible(make: Any):
    """A bad weight must reach the divergence check."""
    w = torch.ones(2, 6)
    w[1, 3] = torch.nan
    regularizer = make(torch.tensor(0.1))
    assert regularizer.value(w).isnan()
    if not hasattr(regularizer, "prox"):
        assert grad(regularizer.value)(w).isnan().any()
        return
    assert regularizer.prox(w, torch.tensor(0.1))[1, 3].isnan()
    assert regularizer.prox(w, torch.full((2, 6), 0.1))[1, 3].isnan()


W = torch.tensor([[3.0, -4.0], [0.5, 0.0]])
LAM, RATIO = torch.tensor(0.1), torch.tensor(0.25)


def test_values_are_the_published_formulas():
    assert float(L1(LAM).value(W)) == pytest.approx(0.75)
    assert float(L2(LAM).value(W)) == pytest.approx(0.1 * 25.25 / 2)
    expected = 0.1 * (0.25 * 7.5 + 0.75 / 2 * 25.25)
    assert float(ElasticNet(LAM, RATIO).value(W)) == pytest.approx(expected)
    assert float(GroupLasso(LAM).value(W)) == pytest.approx(0.1 * 2**0.5 * (5 + 0.5))
    columns = make_regularizer(
        "group_lasso", LAM, RATIO, directory=HERE, groups=torch.tensor([7, 7])
    )
    assert float(columns.value(W)) == pytest.approx(0.1 * 4**0.5 * 25.25**0.5)


def test_group_prox_is_block_soft_thresholding():
    """Yuan and Lin (2006): (1 - step lam sqrt|g| / ||w_g||)_+ w_g."""
    u = GroupLasso(torch.tensor(1.0)).prox(W, torch.tensor(0.5))
    torch.testing.assert_close(u[0], W[0] * (1 - 0.5 * 2**0.5 / 5))
    assert torch.equal(u[1], torch.zeros(2))


@over_dtypes
@settings(max_examples=200)
@given(data=st.data())
def test_group_prox_in_a_diagonal_metric_satisfies_its_optimality_conditions(
    dtype: torch.dtype, data: st.DataObject
):
    """(u - w) / s + lam sqrt|g| u / ||u|| = 0, or u = 0 and ||w / s|| <= lam sqrt|g|."""
    w, step, lam = data.draw(problems(shape=(6, 20)))
    step = step.expand(w.shape)
    u = GroupLasso(lam.to(dtype)).prox(w.to(dtype), step.to(dtype)).double()
    pull, threshold = (w / step).norm(dim=1), lam * 20**0.5
    norm = u.norm(dim=1)
    eps = 1e-9 if dtype == torch.float64 else 1e-4
    # Within rounding of the threshold either case is right.
    assert (norm[pull < threshold * (1 - eps)] == 0).all()
    assert (norm[pull > threshold * (1 + eps)] > 0).all()
    inside = pull > threshold * 1.01
    residual = (u - w) / step + threshold * u / norm[:, None]
    error = residual[inside].norm(dim=1) / (pull[inside] + threshold)
    assert (error < eps).all()


def test_feature_groups_leave_together():
    regularizer = CASES["group_lasso of named feature groups"](torch.tensor(1.0))
    assert isinstance(regularizer, FeatureGroupLasso)
    w = torch.tensor([[1.0, 0.1, 0.1, 3.0, 0.1, 0.1], [1.0, 0.1, 0.1, 3.0, 2.0, 0.1]])
    for step in (torch.tensor(0.2), torch.full(w.shape, 0.2)):
        zero = (regularizer.prox(w, step) == 0).all(0)
        assert zero.tolist() == [False, True, True, False, False, False]


def test_elastic_net_means_what_scikit_learn_means():
    """Proximal gradient steps on squared error / 2 n + penalty end at scikit-learn's solution."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 8))
    y = X @ np.array([2.0, -1, 0, 0, 0.3, 0, 0, 1]) + rng.normal(size=60)
    expected = SklearnElasticNet(
        alpha=0.3, l1_ratio=0.25, fit_intercept=False, tol=1e-12, max_iter=100_000
    ).fit(X, y)
    A, b, w = torch.tensor(X), torch.tensor(y), torch.zeros(1, 8, dtype=torch.float64)
    net = ElasticNet(torch.tensor(0.3).double(), torch.tensor(0.25).double())
    step = torch.tensor(0.3, dtype=torch.float64)
    for _ in range(500):
        w = net.prox(w - step * ((w @ A.T - b) @ A) / 60, step)
    np.testing.assert_allclose(w[0].numpy(), expected.coef_, atol=1e-7)


@over_cases
@pytest.mark.parametrize("mode", ["proximal", "subgradient"])
def test_the_parts_add_up_to_the_whole(make: Any, mode: str):
    whole = make(torch.tensor(0.7))
    smooth, proximal = split(whole, mode)
    w = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    values = [part.value(w) for part in (smooth, proximal) if part is not None]
    torch.testing.assert_close(torch.stack(values).sum(), whole.value(w))
    if mode == "subgradient":
        assert proximal is None


@pytest.mark.parametrize("shape", [(5, 5), (3, 6), (6, 3), (4, 2, 3, 3), (1, 4)], ids=str)
def test_spectral_is_the_largest_singular_value_and_its_gradient_that_of_yoshida_and_miyato(shape):
    """lam / 2 s^2, lam s u v'; a convolution is the matrix of its filters."""
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    regularizer = Spectral(torch.tensor(0.7, dtype=torch.float64))
    u, s, vh = torch.linalg.svd(w.flatten(1), full_matrices=False)
    torch.testing.assert_close(regularizer.value(w), 0.7 / 2 * s[0] ** 2, rtol=1e-8, atol=0)
    expected = (0.7 * s[0] * torch.outer(u[:, 0], vh[0])).reshape(shape)
    torch.testing.assert_close(grad(regularizer.value)(w), expected, rtol=1e-6, atol=1e-8)


@over_dtypes
@pytest.mark.parametrize("gap", [0.0, 1e-4, 3e-3, 0.01, 0.1])
def test_a_close_second_singular_value_lowers_spectral_by_less_than_it_says(gap, dtype):
    w = torch.diag(torch.tensor([2.0, 2.0 * (1 - gap), 0.5], dtype=dtype)) * 1e3
    value = Spectral(torch.tensor(1.0, dtype=dtype)).value(w)
    assert 0.998 <= float(value) / (2e3**2 / 2) <= 1 + 1e-5
    assert float(value) / (2e3**2 / 2) > 1 - 1e-5 or 0 < gap < 0.02


@pytest.mark.parametrize("shape", [(5, 5), (3, 6), (6, 3)], ids=str)
def test_orthogonal_is_zero_where_all_singular_values_are_one_and_descent_goes_there(shape):
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    regularizer = Orthogonal(torch.tensor(0.5, dtype=torch.float64))
    s = torch.linalg.svdvals(w)
    torch.testing.assert_close(regularizer.value(w), 0.5 / 4 * ((s**2 - 1) ** 2).sum())
    for _ in range(2000):
        w = w - 0.1 * grad(regularizer.value)(w)
    torch.testing.assert_close(torch.linalg.svdvals(w), torch.ones_like(s), rtol=0, atol=1e-6)
    assert float(regularizer.value(w)) < 1e-10


def test_vectors_are_no_matrices():
    for name in SMOOTH_ONLY:
        assert CASES[name](torch.tensor(1.0)).value(torch.ones(5)) == 0


def test_only_what_has_a_corner_is_proximal():
    lam, ratio = torch.tensor(0.7), torch.tensor(0.25)
    assert split(L2(lam), "proximal") == (L2(lam), None)
    assert split(L1(lam), "proximal") == (None, L1(lam))
    assert split(GroupLasso(lam), "proximal") == (None, GroupLasso(lam))
    assert split(ElasticNet(lam, ratio), "proximal") == (L2(lam * 0.75), L1(lam * 0.25))


PENALTIES = """
import torch
from typing import NamedTuple


class Quartic:
    def __init__(self, lam):
        self.lam = lam

    def value(self, w):
        return self.lam * (w**4).sum()


class Sparse(NamedTuple):
    lam: torch.Tensor
    l1_ratio: torch.Tensor

    def value(self, w):
        return self.lam * self.l1_ratio * w.abs().sum()

    def prox(self, w, step):
        return torch.nn.functional.relu(w - step * self.lam)


def fails(lam):
    raise KeyError("lost")


def empty(lam):
    return lam
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_penalties.py").write_text(PENALTIES)
    return tmp_path


def test_a_users_own_goes_through_prox_if_it_has_one(folder: Path):
    lam, ratio = torch.tensor(0.5), torch.tensor(0.25)
    smooth = make_regularizer("python:my_penalties:Quartic", lam, ratio, directory=folder)
    assert split(smooth, "proximal") == (smooth, None)
    assert float(smooth.value(torch.tensor([2.0]))) == 8
    sparse = make_regularizer("python:my_penalties:Sparse", lam, ratio, directory=folder)
    assert split(sparse, "proximal") == (None, sparse)
    assert split(sparse, "subgradient") == (sparse, None)
    assert float(sparse.value(torch.tensor([2.0]))) == 0.25


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("python:my_penalties:Sprase", "has no 'Sprase'. Did you mean 'Sparse'?"),
        ("python:my_penalties:fails", "raised KeyError: 'lost'"),
        ("python:my_penalties:empty", "without a method value(w)"),
        ("python:my_penalties:torch", "is of type module, which cannot be called"),
    ],
)
def test_a_users_regularizer_that_does_not_fit_is_refused(folder: Path, name: str, words: str):
    with pytest.raises(SweepError) as caught:
        make_regularizer(name, torch.tensor(1.0), torch.tensor(0.5), directory=folder)
    assert words in str(caught.value)
