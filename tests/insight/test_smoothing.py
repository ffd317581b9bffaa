"""The smooth share: exact where it can be, silent where there is nothing, near a known truth."""

from __future__ import annotations

import numpy as np

from sweep.insight.smoothing import smooth_share


def test_where_all_trials_agree_so_does_the_share() -> None:
    places = np.random.default_rng(0).uniform(size=(50, 2))
    for value in (0.0, 1.0):
        found = smooth_share(places, np.full(50, value), places)
        assert np.allclose(found.share, value)


def test_far_from_every_trial_nothing_is_said() -> None:
    places = np.random.default_rng(0).uniform(size=(50, 2))
    found = smooth_share(places, np.zeros(50), np.array([[9.0, 9.0], [0.5, 0.5]]))
    assert np.isnan(found.share[0]) and found.evidence[0] < 1
    assert found.share[1] == 0 and found.evidence[1] > 1


def test_one_trial_speaks_for_its_own_place() -> None:
    found = smooth_share(np.array([[0.0]]), np.ones(1), np.array([[0.0], [1.0]]))
    assert found.share[0] == 1 and found.evidence[0] == 1 and np.isnan(found.share[1])


def test_a_boundary_is_found_where_it_is() -> None:
    """Training explodes right of a line: half of the trials do at the line, few a step before."""
    rng = np.random.default_rng(1)
    places = rng.uniform(-3, 1, size=(400, 2))
    diverged = (places[:, 0] > -1 + 0.2 * places[:, 1]).astype(float)
    asked = np.array([[-1.0, 0.0], [-1.5, 0.0], [-0.5, 0.0], [-1.4, -2.0]])
    found = smooth_share(places, diverged, asked).share
    assert abs(found[0] - 0.5) < 0.25 and abs(found[3] - 0.5) < 0.25
    assert found[1] < 0.1 and found[2] > 0.9


def test_trials_on_one_line_are_smoothed_along_it() -> None:
    places = np.c_[np.linspace(0, 1, 40), np.zeros(40)]
    found = smooth_share(places, (places[:, 0] > 0.5).astype(float), places[[2, -3]])
    assert found.share[0] < 0.05 and found.share[1] > 0.95
