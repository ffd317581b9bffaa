"""The mask of KeyedDropout: the same in every engine, and as good as random."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from sweep.problem.dropout import KeyedDropout, dropout_key, mix, replace_dropout


def mask(rate: float, key: int, layer: int = 0, shape: tuple[int, ...] = (100, 100)) -> Tensor:
    """True where an element is kept."""
    module = KeyedDropout(rate, layer)
    module.key.fill_(key)
    kept: Tensor = module(torch.ones(shape)) != 0
    return kept


def test_mix_is_lowbias32():
    """Against the published C code: x ^= x >> 16; x *= 0x7feb352d; ..., in 32-bit arithmetic."""
    x = np.random.default_rng(0).integers(0, 2**32, 1000, dtype=np.uint32)
    with np.errstate(over="ignore"):
        y = x ^ (x >> np.uint32(16))
        y = y * np.uint32(0x7FEB352D)
        y = y ^ (y >> np.uint32(15))
        y = y * np.uint32(0x846CA68B)
        y = y ^ (y >> np.uint32(16))
    assert (mix(x.astype(np.int64)) == y).all()
    assert mix(torch.from_numpy(x.astype(np.int64))).tolist() == y.tolist()
    assert [mix(int(value)) for value in x] == y.tolist()


def test_keys_agree_for_integers_arrays_and_tensors():
    steps = np.arange(50)
    keys = [dropout_key(2**32 - 1, 3, int(step)) for step in steps]
    assert dropout_key(2**32 - 1, 3, steps).tolist() == keys
    assert dropout_key(2**32 - 1, torch.tensor(3), torch.from_numpy(steps)).tolist() == keys
    assert all(0 <= key < 2**63 for key in keys)


def test_every_seed_fold_and_step_has_its_own_key():
    parts = itertools.product(range(10), range(10), range(300))
    assert len({dropout_key(*part) for part in parts}) == 10 * 10 * 300


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.9])
def test_the_share_dropped_is_the_rate(rate: float):
    n = 400 * 10_000
    kept = sum(int(mask(rate, dropout_key(0, 0, step)).sum()) for step in range(400))
    assert abs(kept - n * (1 - rate)) < 4.5 * (n * rate * (1 - rate)) ** 0.5


def correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


def test_masks_of_different_steps_folds_seeds_and_layers_are_independent():
    shape = (300, 300)
    masks = [
        mask(0.5, dropout_key(*parts), layer, shape)
        for parts in [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (1, 0, 0)]
        for layer in (0, 1, 2)
    ]
    worst = max(abs(correlation(a, b)) for a, b in itertools.combinations(masks, 2))
    assert worst < 4.5 / 300


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 64, 100, 1024])
def test_elements_of_a_mask_are_independent(lag: int):
    flat = mask(0.5, dropout_key(0, 0, 0), shape=(200_000,))
    assert abs(correlation(flat[:-lag], flat[lag:])) < 4.5 / 200_000**0.5


def test_an_element_is_independent_over_the_steps():
    series = torch.stack([mask(0.5, dropout_key(0, 0, step), shape=(8,)) for step in range(4000)])
    assert (series.float().mean(0) - 0.5).abs().max() < 4.5 * 0.5 / 4000**0.5
    assert abs(correlation(series[:-1], series[1:])) < 4.5 / (8 * 4000) ** 0.5


@pytest.mark.parametrize("channels", [False, True])
def test_a_vmapped_mask_is_the_plain_one(channels: bool):
    modules = [KeyedDropout(rate, 1, channels=channels) for rate in (0.0, 0.3, 0.8)]
    for i, module in enumerate(modules):
        module.key.fill_(dropout_key(0, i, 5))
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    _, buffers = stack_module_state(modules)
    together = vmap(lambda b, x: functional_call(modules[0], b, (x,)))(buffers, x)
    assert torch.equal(together, torch.stack([m(x[i]) for i, m in enumerate(modules)]))


def test_a_short_batch_uses_the_first_rows_of_the_mask():
    assert torch.equal(mask(0.4, 12345, shape=(64, 10))[:7], mask(0.4, 12345, shape=(7, 10)))


def test_kept_elements_are_scaled_and_evaluation_is_the_identity():
    module, x = KeyedDropout(0.2, 0), torch.randn(50, 50)
    y = module(x)
    kept = y != 0
    assert 0 < kept.sum() < x.numel()
    torch.testing.assert_close(y[kept], x[kept] / 0.8)
    assert torch.equal(module.eval()(x), x)
    assert torch.equal(KeyedDropout(0.0, 0)(x), x)


def test_rate_one_drops_everything_and_has_a_finite_gradient():
    x = torch.randn(5, 5, requires_grad=True)
    y = KeyedDropout(1.0, 0)(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(5, 5))
    assert x.grad is not None and torch.equal(x.grad, torch.zeros(5, 5))


def test_whole_channels_are_dropped_in_place_of_dropout2d():
    module = nn.Sequential(nn.Dropout2d(0.5))
    replace_dropout(module)
    kept = (module(torch.ones(20, 8, 3, 3)) != 0).flatten(2)
    assert (kept.all(-1) | ~kept.any(-1)).all()
    assert 0 < kept.any(-1).sum() < 160


def test_replace_dropout_reaches_every_dropout_once():
    shared = nn.Dropout(0.3)
    module = nn.Sequential(
        nn.Linear(4, 4),
        shared,
        nn.Sequential(nn.Dropout(0.1, inplace=True), shared),
        nn.Dropout1d(),
    )
    assert replace_dropout(module) == 3
    left = [m for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    keyed = [m for m in module.modules() if isinstance(m, KeyedDropout)]
    assert not left
    assert sorted(m.layer for m in keyed) == [0, 1, 2]
    assert sorted(round(float(m.rate), 6) for m in keyed) == [0.1, 0.3, 0.5]
    assert module[1] is module[2][1]


def test_a_state_dict_holds_no_trace_of_dropout():
    assert KeyedDropout(0.5, 0).state_dict() == {}
