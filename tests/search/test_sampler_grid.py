"""Laws of the grid: every cell once, `none` once, in an order that only the seed decides."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from sweep.errors import RequestError
from sweep.search.grid import Grid, grid_cells, grid_size
from sweep.search.mirror import Mirror
from sweep.search.sampler import make_sampler

SPACE: dict[str, BaseDistribution] = {
    "regularizer": CategoricalDistribution(["none", "l1", "elastic_net"]),
    "lambda": FloatDistribution(0.0, 0.3, step=0.1),
    "l1_ratio": CategoricalDistribution([0.2, 0.8]),
    "hidden": IntDistribution(8, 24, step=8),
}

spaces = st.fixed_dictionaries(
    {},
    optional={
        "regularizer": st.sampled_from(
            [["none"], ["l1"], ["none", "l2"], ["l1", "none", "l2"]]
        ).map(CategoricalDistribution),
        "lambda": st.integers(1, 4).map(lambda n: FloatDistribution(0, 0.25 * n, step=0.25)),
        "l1_ratio": st.integers(1, 3).map(lambda n: CategoricalDistribution(range(n))),
        "hidden": st.integers(1, 4).map(lambda n: IntDistribution(1, n)),
    },
)


def _key(cell: dict[str, Any]) -> tuple[Any, ...]:
    """What training can tell apart."""
    without = {"lambda", "l1_ratio"} if cell.get("regularizer") == "none" else set()
    return tuple(value for name, value in sorted(cell.items()) if name not in without)


def test_values_are_written_as_a_person_would() -> None:
    cells = grid_cells({"lambda": FloatDistribution(0.0, 0.3, step=0.1)})
    assert [cell["lambda"] for cell in cells] == [0.0, 0.1, 0.2, 0.3]


def test_none_is_tried_once_not_once_a_lambda() -> None:
    cells = grid_cells(SPACE)
    assert len(cells) == grid_size(SPACE) == 3 + 2 * 4 * 2 * 3
    assert sum(cell["regularizer"] == "none" for cell in cells) == 3


@given(spaces)
def test_the_cells_are_the_product_without_duplicates(space: dict[str, BaseDistribution]) -> None:
    cells = grid_cells(space)
    keys = [_key(cell) for cell in cells]
    assert len(set(keys)) == len(keys) == grid_size(space)
    one_each = [grid_cells({name: dist}) for name, dist in space.items()]
    product = [
        {k: v for cell in pick for k, v in cell.items()} for pick in itertools.product(*one_each)
    ]
    assert {_key(cell) for cell in product} == set(keys)


@given(spaces, st.integers(0, 2**32 - 1), st.data())
def test_the_trials_are_the_enqueued_ones_and_then_every_other_cell(
    space: dict[str, BaseDistribution], seed: int, data: st.DataObject
) -> None:
    enqueue = data.draw(st.lists(st.sampled_from(grid_cells(space)), max_size=3))
    partial = [{k: v for k, v in cell.items() if k != "hidden"} for cell in enqueue]
    grid = Grid(space, seed=seed, enqueue=partial)
    trials = [grid.trial(number) for number in range(grid.n_trials)]
    for fixed, trial in zip(partial, trials, strict=False):
        assert fixed.items() <= trial.items()
    keys = [_key(trial) for trial in trials]
    assert set(keys) == {_key(cell) for cell in grid_cells(space)}
    rest = keys[len(enqueue) :]
    assert len(set(rest)) == len(rest)
    assert not set(rest) & set(keys[: len(enqueue)])


def test_an_enqueued_trial_off_the_grid_comes_on_top() -> None:
    off = {"regularizer": "l1", "lambda": 0.05, "l1_ratio": 0.2, "hidden": 8}
    grid = Grid(SPACE, enqueue=[off])
    assert grid.trial(0) == off
    assert grid.n_trials == grid_size(SPACE) + 1


def test_the_seed_decides_the_order() -> None:
    def order(seed: int) -> list[dict[str, Any]]:
        grid = Grid(SPACE, seed=seed)
        return [grid.trial(number) for number in range(grid.n_trials)]

    assert order(0) == order(0) != order(1)
    assert order(0) != grid_cells(SPACE)


def test_a_grid_far_larger_than_its_trials_is_never_listed() -> None:
    space: dict[str, BaseDistribution] = {c: IntDistribution(0, 10**6) for c in "abc"}
    assert grid_size(space) == (10**6 + 1) ** 3
    grid = Grid(space)
    assert len({tuple(grid.trial(n).values()) for n in range(500)}) == 500


def test_a_range_without_a_step_is_refused() -> None:
    with pytest.raises(RequestError, match="give it a step or choices"):
        make_sampler("grid", seed=0, space={"lambda": FloatDistribution(0, 1)}, number=0)


def test_a_mirror_asks_every_cell_once() -> None:
    mirror = Mirror(
        direction="minimize",
        space=SPACE,
        sampler="grid",
        pruner="none",
        seed=0,
        concurrency=1000,
        n_folds=5,
        enqueue=[{"hidden": 16}],
        epochs=1,
    )
    assert mirror.n_trials == grid_size(SPACE)
    cells = [mirror.ask(number) for number in range(mirror.n_trials)]
    assert {_key(cell) for cell in cells} == {_key(cell) for cell in grid_cells(SPACE)}
