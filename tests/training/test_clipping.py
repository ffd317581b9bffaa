"""Clipping by value, by tensor, by norm and by a percentile of the norms so far."""

import numpy as np
import pytest
import torch

from sweep.training.clipping import HISTORY, Bounds, Clips, clip, new_norms

from .test_engines_agree import assert_agree
from .trials import BASE, merge

NO = torch.tensor(torch.inf, dtype=torch.float64)


def bounds_of(**given):
    return Bounds(NO, NO, NO, NO)._replace(
        **{name: torch.tensor(float(value), dtype=torch.float64) for name, value in given.items()}
    )


def only(name):
    return Clips(False, False, False, False)._replace(**{name: True})


def of_norms(norms, percentile):
    """The norms that gradients of these norms are cut to, one after the other."""
    clips, seen, cut = only("percentile"), new_norms(only("percentile"), torch.float64), []
    for norm in norms:
        gradient = {"w": torch.tensor([0.6, -0.8], dtype=torch.float64) * norm}
        clipped, seen = clip(
            gradient, torch.tensor(norm).double(), seen, bounds_of(percentile=percentile), clips
        )
        cut.append(float(clipped["w"].norm()))
    return np.array(cut)


@pytest.mark.parametrize("percentile", [0, 10, 37.5, 100])
def test_autoclip_cuts_to_the_percentile_of_the_last_norms_this_one_included(percentile):
    """Seetharaman et al. (2020): min(norm, percentile of the history), ties and all."""
    rng = np.random.default_rng(0)
    norms = np.round(rng.lognormal(sigma=2, size=HISTORY + 300), 1) + 0.1
    expected = [
        min(norm, np.percentile(norms[max(0, i + 1 - HISTORY) : i + 1], percentile))
        for i, norm in enumerate(norms)
    ]
    np.testing.assert_allclose(of_norms(norms, percentile), expected, rtol=2e-5)


def test_a_growing_gradient_is_cut_by_autoclip_and_a_falling_one_is_not():
    growing = np.geomspace(1, 1e6, 50)
    assert (of_norms(growing, 10)[1:] < 0.9 * growing[1:]).all()
    falling = growing[::-1]
    np.testing.assert_allclose(of_norms(falling, 100), falling, rtol=2e-5)


def test_by_layer_each_tensor_has_its_own_norm_and_keeps_its_direction():
    gradient = {
        "large": torch.full((3, 4), 7.0, dtype=torch.float64),
        "small": torch.tensor([0.03, -0.04], dtype=torch.float64),
    }
    clipped, _ = clip(gradient, NO, {}, bounds_of(layer=0.5), only("layer"))
    assert torch.equal(clipped["small"], gradient["small"])
    assert float(clipped["large"].norm()) == pytest.approx(0.5, rel=1e-6)
    torch.testing.assert_close(clipped["large"] / 0.5, gradient["large"] / gradient["large"].norm())


@pytest.mark.parametrize("slots", [4, 7])
def test_a_member_in_a_refilled_slot_has_no_history_but_its_own(slots):
    knobs = {
        "epochs": {"choices": [2, 5, 3]},
        "clip_percentile": {"choices": [None, 5, 50]},
    }
    study = merge(BASE, train={**knobs, "momentum": 0.5})
    trials = {
        i: {
            "learning_rate": rate,
            "epochs": [2, 5, 3][i % 3],
            "clip_percentile": [5, None, 50, 5][i % 4],
        }
        for i, rate in enumerate([0.03, 1e300, 0.1, 0.4, 0.01, 0.2, 0.05])
    }
    assert_agree(study, trials, slots)
