"""Selection: lambda.min and lambda.1se as glmnet has them, and honest comparisons."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scipy import stats

from sweep.insight.selection import choices, compare, corrected_t_test, test_share
from sweep.insight.stored import StoredStudy, load_study
from sweep.insight.summary import Summary, summarize
from sweep.store.storage import Store
from tests.stored_studies import ATTRS, complete, digits_trials, diverged, fill

test_share.__test__ = False  # type: ignore[attr-defined]

SPACE = {
    "regularizer": CategoricalDistribution(["none", "l1", "l2"]),
    "lambda": FloatDistribution(1e-6, 100.0, log=True),
    "learning_rate": FloatDistribution(1e-3, 3.0, log=True),
}


def stored(
    tmp_path: Path, trials: list[dict[str, Any]], direction: str = "minimize", **attrs: Any
) -> StoredStudy:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    fill(url, "s", trials, attrs={**ATTRS, **attrs}, direction=direction, space=SPACE)
    with Store.open(url) as store:
        return load_study(store, "s")


def trial(regularizer: str, lam: float, scores: list[float]) -> dict[str, Any]:
    return complete({"regularizer": regularizer, "lambda": lam}, scores)


def around(mean: float, spread: float = 0.01) -> list[float]:
    return [mean + spread * d for d in (-2, -1, 0, 1, 2)]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_lambda_min_and_lambda_1se_on_a_curve(tmp_path: Path, direction: str) -> None:
    """lambda.min has the best mean; lambda.1se is the largest within one of its standard errors.

    se of `around` is 0.01 * sqrt(10 / 4) / sqrt(5) = 0.00707.
    """
    sign = -1 if direction == "maximize" else 1
    curve = {1e-4: 0.520, 1e-3: 0.500, 1e-2: 0.506, 1e-1: 0.508, 1.0: 0.5069, 10.0: 0.6}
    study = stored(
        tmp_path, [trial("l1", lam, around(sign * mean)) for lam, mean in curve.items()], direction
    )
    (choice,) = choices(study)
    assert choice.best is not None and choice.strongest is not None
    assert choice.best.lam == 1e-3
    assert choice.best.score_se == pytest.approx(0.01 * math.sqrt(2.5 / 5))
    # 0.508 lies outside, and 1.0 is the largest inside though a smaller lambda is not.
    assert choice.strongest.lam == 1.0


def test_of_equal_scores_the_larger_lambda_is_the_best(tmp_path: Path) -> None:
    study = stored(tmp_path, [trial("l2", lam, around(0.5)) for lam in (0.1, 1.0, 0.01)])
    (choice,) = choices(study)
    assert choice.best is not None and choice.best.lam == 1.0


def test_without_a_regularizer_there_is_no_lambda(tmp_path: Path) -> None:
    study = stored(tmp_path, [trial("none", 0.1, around(0.5)), trial("l1", 0.1, around(0.7))])
    none, l1 = choices(study)
    assert (none.regularizer, none.best.lam, none.strongest) == ("none", None, None)
    assert l1.best is not None and l1.best.lam == 0.1


def test_failed_trials_are_counted_and_never_win(tmp_path: Path) -> None:
    trials = [diverged({"regularizer": "l1", "lambda": 0.1}), trial("l2", 0.1, around(0.5))]
    found = {choice.regularizer: choice for choice in choices(stored(tmp_path, trials))}
    assert (found["l1"].n_diverged, found["l1"].best) == (1, None)
    assert found["l2"].n_diverged == 0 and found["l2"].best is not None


def test_fixed_knobs_count_as_parameters(tmp_path: Path) -> None:
    knobs = {"fixed": {"regularizer": "l2", "lambda": 0.25}, "varied": ["learning_rate"]}
    study = stored(tmp_path, [complete({"learning_rate": 0.1}, around(0.5))], knobs=knobs)
    (choice,) = choices(study)
    assert choice.regularizer == "l2"
    assert choice.best is not None and choice.best.lam == 0.25


def test_the_corrected_test_is_the_paired_t_test_when_rows_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=10), rng.normal(0.3, size=10)
    _, p = corrected_t_test(list(a - b), 0.0)
    assert p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-12)


def test_the_correction_is_nadeau_and_bengios() -> None:
    """t shrinks by sqrt((1/K) / (1/K + n_test/n_train)): for 5-fold by 1.5."""
    differences = [0.3, 0.1, 0.2, 0.25, 0.05]
    se, p = corrected_t_test(differences, 1 / 4)
    plain = stats.ttest_1samp(differences, 0.0)
    t = statistics.fmean(differences) / se
    assert t == pytest.approx(plain.statistic / 1.5)
    assert p == pytest.approx(2 * stats.t.sf(t, 4))


def test_the_corrected_test_keeps_its_level_where_the_plain_one_does_not() -> None:
    """Two equal learners on overlapping training sets: K-fold differences share the training rows.

    Simulated as d_k = common + own noise with the correlation n_test / (n_test + n_train) that
    Nadeau and Bengio assume; the plain test rejects far more often than 5%.
    """
    rng = np.random.default_rng(1)
    k, rho, n = 5, 0.2, 2000
    common = rng.normal(size=(n, 1)) * math.sqrt(rho)
    differences = common + rng.normal(size=(n, k)) * math.sqrt(1 - rho)
    corrected = np.mean([corrected_t_test(list(d), 1 / (k - 1))[1] < 0.05 for d in differences])
    plain = np.mean([corrected_t_test(list(d), 0.0)[1] < 0.05 for d in differences])
    assert 0.03 < corrected < 0.07 < 0.1 < plain


def test_equal_folds_are_no_difference_and_a_constant_one_is_certain() -> None:
    assert corrected_t_test([0.0] * 5, 0.25) == (0.0, 1.0)
    assert corrected_t_test([0.5] * 5, 0.25) == (0.0, 0.0)
    assert corrected_t_test([0.5], 0.25)[1] == 1.0


def test_holm_multiplies_the_ordered_p_values(tmp_path: Path) -> None:
    trials = [
        trial("none", 0.1, [0.50, 0.51, 0.49, 0.50, 0.52]),
        trial("l1", 0.1, [0.60, 0.62, 0.59, 0.60, 0.64]),
        trial("l2", 0.1, [0.52, 0.50, 0.51, 0.50, 0.53]),
    ]
    study = stored(tmp_path, trials)
    by_name = {c.regularizer: c for c in compare(study, choices(study))}
    small, large = by_name["l1"], by_name["l2"]
    assert small.p < large.p
    assert small.p_holm == pytest.approx(2 * small.p)
    assert large.p_holm == pytest.approx(max(large.p, 2 * small.p))
    assert small.told_apart and not large.told_apart


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"kind": "kfold", "folds": 5}, 1 / 4),
        ({"kind": "repeated_stratified", "folds": 10, "repeats": 3}, 1 / 9),
        ({"kind": None, "folds": 5}, 1 / 4),
        ({"kind": "column", "folds": 5}, 1 / 2),  # the data has three folds
        ({"kind": "time_series", "folds": 4}, (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4),
    ],
)
def test_test_rows_to_training_rows(settings: dict[str, Any], share: float) -> None:
    attrs = {"spec": {"cross_validation": settings}, "data": {"folds": ["a", "b", "c"]}}
    assert test_share(StoredStudy("s", "minimize", "mse", attrs, ())) == pytest.approx(share)


def test_the_time_series_share_is_scikit_learns() -> None:
    from sklearn.model_selection import TimeSeriesSplit

    splits = TimeSeriesSplit(4).split(np.zeros(50))
    share = statistics.fmean(len(test) / len(train) for train, test in splits)
    attrs = {"spec": {"cross_validation": {"kind": "time_series", "folds": 4}}}
    assert test_share(StoredStudy("s", "minimize", "mse", attrs, ())) == pytest.approx(share)


def summary_of(
    tmp_path: Path, trials: list[dict[str, Any]], direction: str = "minimize"
) -> Summary:
    return summarize(stored(tmp_path, trials, direction))


def test_no_clear_winner_is_said(tmp_path: Path) -> None:
    """The diabetes table of lasso and ridge: the standard error is fifteen times the spread."""
    spread = [-0.03, 0.02, 0.04, -0.02, -0.01]
    found = summary_of(
        tmp_path,
        [
            trial("l1", 0.01, [0.50065 + d for d in spread]),
            trial("l2", 0.0056, [0.50100 + 1.01 * d for d in spread]),
            trial("none", 0.1, [0.50175 + 1.02 * d for d in spread]),
        ],
    )
    assert found.clear_winner is None
    assert found.verdict().startswith("No clear winner: l1 scored best")
    assert "l2 (worse by 0.00035" in found.verdict()


def test_a_clear_winner_is_named(tmp_path: Path) -> None:
    found = summary_of(
        tmp_path,
        [
            trial("l1", 0.01, around(0.3)),
            trial("l2", 0.1, around(0.5)),
            trial("none", 1, around(0.6)),
        ],
    )
    assert found.clear_winner == "l1"
    assert "l1 is the clear winner: it beats l2 and 'none'" in found.verdict()


def test_a_difference_within_one_standard_error_is_no_win(tmp_path: Path) -> None:
    """However sure the sign of it is: a constant difference has p = 0."""
    found = summary_of(
        tmp_path, [trial("l1", 0.01, around(0.5, 0.1)), trial("l2", 0.1, around(0.501, 0.1))]
    )
    (comparison,) = found.comparisons
    assert comparison.p_holm < 0.01 and comparison.within_one_se
    assert found.clear_winner is None


def test_one_regularizer_is_not_compared(tmp_path: Path) -> None:
    found = summary_of(tmp_path, [trial("none", 1.0, around(0.5))])
    assert found.verdict() == "'none' is the only regularizer tried: nothing to compare."


def test_where_training_exploded(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'digits.db'}"
    fill(url)
    with Store.open(url) as store:
        found = summarize(load_study(store, "digits"))
    rates = [t["params"]["learning_rate"] for t in digits_trials() if t["value"] is None]
    region = found.region
    assert region is not None
    assert (region.knob, region.where, region.value) == ("learning_rate", "above", min(rates))
    assert (region.n_inside, region.n_diverged, region.n_others_inside) == (8, 8, 0)
    assert found.divergence_text() == (
        "8 of 40 trials failed: 6 loss_explosion, 2 nonfinite_loss. "
        "All 8 that diverged had learning_rate 0.5248 or more; none of the 32 others did."
    )


def test_where_training_exploded_is_not_said_when_nothing_tells(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trials = []
    for i in range(40):
        params = {"regularizer": "l1", "lambda": float(10 ** rng.uniform(-4, 0))}
        trials.append(diverged(params) if i % 4 == 0 else complete(params, around(0.5)))
    assert summary_of(tmp_path, trials).region is None


def test_a_summary_without_any_trial(tmp_path: Path) -> None:
    found = summary_of(tmp_path, [])
    assert found.best is None
    assert found.as_dict()["best"] is None
    assert "No trial" in found.verdict()
