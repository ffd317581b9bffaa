"""What a model sees is what scikit-learn's transformers make of each fold's training rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sweep.errors import DataError
from sweep.problem.data import load_data
from sweep.problem.features import Features, make_features
from sweep.problem.folds import Fold, make_folds
from sweep.problem.layout import Layout
from sweep.problem.prepare import prepare
from sweep.spec import load_spec
from tests.problem.study_files import make_spec, prepare_csv

STUDIES = Path(__file__).parents[2] / "studies"


def oracle(frame: pd.DataFrame, train: np.ndarray, scale: bool) -> dict[str, np.ndarray]:
    """The columns of the plain scikit-learn pipeline fitted on the training rows, by name."""
    text = [name for name in frame if frame[name].dtype == object]
    numbers = [name for name in frame if name not in text]
    steps: list[Any] = [SimpleImputer(strategy="median", keep_empty_features=True)]
    steps += [StandardScaler()] if scale else []
    transformer = ColumnTransformer(
        [
            ("n", make_pipeline(*steps), numbers),
            ("c", OneHotEncoder(handle_unknown="ignore", sparse_output=False), text),
        ],
        verbose_feature_names_out=False,
    )
    transformer.fit(frame.iloc[train])
    names = list(numbers)
    if text:
        for name, levels in zip(
            text, transformer.named_transformers_["c"].categories_, strict=True
        ):
            names += [f"{name}={'(missing)' if level is None else level}" for level in levels]
    return dict(zip(names, transformer.transform(frame).T, strict=True))


@pytest.mark.parametrize("standardize", ["fold", "all", "none"])
def test_the_messy_table_equals_the_scikit_learn_pipeline_fold_by_fold(standardize: str) -> None:
    study = load_spec(
        STUDIES / "table.yaml", [f"data.standardize={standardize}", "train.dtype=float64"]
    )
    data = load_data(study.spec, study.directory)
    frame = data.x.drop(columns=["country", "energy class"])
    problem = prepare(study.spec, study.directory)
    assert len(problem.x) == (1 if standardize == "all" else len(problem.folds))
    for k, fold in enumerate(problem.folds):
        train = np.arange(len(frame)) if standardize == "all" else fold.train
        expected = oracle(frame, train, standardize != "none")
        x = dict(zip(problem.feature_names, problem.x_of(k).numpy().T, strict=True))
        assert set(expected) <= set(x)
        for name, column in expected.items():
            np.testing.assert_allclose(x[name], column, rtol=1e-12, atol=1e-12, err_msg=name)
        for name in set(x) - set(expected):
            assert not x[name].any(), f"{name} is no level of the training rows"


def test_the_columns_of_the_messy_table() -> None:
    study = load_spec(STUDIES / "table.yaml")
    problem = prepare(study.spec, study.directory)
    assert "Wohnfläche m²" in problem.feature_names
    assert "town=Zürich" in problem.feature_names and "town=(missing)" in problem.feature_names
    columns = set(problem.columns_of_features)
    assert not columns & {"listing", "agency", "let within a month", "country", "energy class"}
    notices = "\n".join(problem.notices)
    for words in (
        "listing: left out, for it is text whose every value differs",
        "listed on: dates (day.month.year) were turned into days since 1970-01-01",
        "country: left out, for it is constant",
        "energy class: left out, for it is missing in every row",
    ):
        assert words in notices
    booleans = problem.x_of(0)[:, problem.feature_names.index("furnished")]
    assert len(booleans.unique()) == 2


frames = st.integers(8, 20).flatmap(
    lambda n: st.fixed_dictionaries(
        {
            "a": st.lists(st.none() | st.floats(-100, 100), min_size=n, max_size=n),
            "b": st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n),
            "c": st.lists(st.sampled_from(["u", "v", "w", None]), min_size=n, max_size=n),
        }
    )
)


def transformed(columns: dict[str, list[Any]], folds: list[Fold], standardize: str) -> Features:
    frame = pd.DataFrame(
        {
            "a": pd.Series(columns["a"], dtype="float64"),
            "b": pd.Series(columns["b"], dtype="float64"),
            "c": pd.Series(columns["c"], dtype=object),
        }
    )
    layout = Layout(frame, ("a", "b", "c"), None)
    return make_features(layout, folds, standardize, torch.float64)


@given(
    columns=frames,
    other=frames,
    cut=st.integers(3, 7),
    standardize=st.sampled_from(["fold", "none"]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_test_rows_never_change_the_transformed_training_rows(
    columns: dict[str, list[Any]], other: dict[str, list[Any]], cut: int, standardize: str
) -> None:
    n = len(columns["a"])
    # Each column differs from row to row, so that no column or version comes and goes.
    ends: dict[str, list[Any]] = {
        "a": [None, 1.0, 2.0],
        "b": [0.0, 1.0, 1.0],
        "c": ["u", "v", None],
    }
    kept = {name: ends[name] + values for name, values in columns.items()}
    rows = np.arange(n + 3)
    fold = Fold(rows[: 3 + cut], rows[3 + cut :])
    changed = {
        name: values[: 3 + cut] + (other[name] * n)[: n - cut] for name, values in kept.items()
    }
    before = transformed(kept, [fold], standardize)
    after = transformed(changed, [fold], standardize)
    old = dict(zip(before.names, before.x[0].T, strict=True))
    new = dict(zip(after.names, after.x[0].T, strict=True))
    train = torch.from_numpy(fold.train)
    for name in old.keys() | new.keys():
        # A level that only test rows have is a column of zeros.
        zeros = torch.zeros(n + 3, dtype=torch.float64)
        x, z = old.get(name, zeros)[train], new.get(name, zeros)[train]
        assert torch.equal(x, z), name


def test_a_column_constant_or_missing_in_training_is_zero_in_that_fold() -> None:
    x = np.array([[1.0, 5, np.nan], [2, 5, np.nan], [3, 6, 1], [4, 7, 2]])
    folds = [Fold(np.array([0, 1]), np.array([2, 3])), Fold(np.array([2, 3]), np.array([0, 1]))]
    layout = Layout(x, ("a", "b", "c"), None)
    scaled = make_features(layout, folds, "fold", torch.float64).x
    assert not scaled[0, :, 1:].any() and scaled[1].any(dim=0).all()
    raw = make_features(layout, folds, "none", torch.float64).x
    assert not raw[0, :, 2].any()
    assert raw[0, :, 1].tolist() == [5, 5, 6, 7], "nothing is scaled, so nothing is lost"


def test_one_hot_columns_are_not_scaled_and_numbers_have_mean_0_and_std_1(tmp_path: Path) -> None:
    rows = [f"{i % 7},{'uvw'[i % 3]},{i}" for i in range(40)]
    problem = prepare_csv(tmp_path, "\n".join(["n,c,y", *rows]))
    for k, fold in enumerate(problem.folds):
        train = problem.x_of(k)[torch.from_numpy(fold.train)]
        assert set(train[:, 1:].unique().tolist()) == {0.0, 1.0}
        assert abs(float(train[:, 0].mean())) < 1e-12
        assert float(train[:, 0].std(correction=0)) == pytest.approx(1, abs=1e-12)


def test_images_are_scaled_per_channel_and_sequences_per_feature() -> None:
    rng = np.random.default_rng(0)
    fold = Fold(np.arange(20), np.arange(20, 30))
    for axis, shape in ((1, (30, 3, 4, 5)), (2, (30, 6, 3))):
        x = rng.normal(rng.normal(size=3).reshape((3,) + (1,) * (len(shape) - 1 - axis)), 2, shape)
        found = make_features(Layout(x, (), axis), [fold], "fold", torch.float64).x[0].numpy()
        for channel in range(3):
            values = np.take(x, channel, axis)
            expected = (values - values[:20].mean()) / values[:20].std()
            np.testing.assert_allclose(np.take(found, channel, axis), expected, atol=1e-12)


def test_digits_are_images_sequences_or_flat_as_the_model_takes_them(tmp_path: Path) -> None:
    images = load_digits().images
    for kind, shape in (("cnn", (1, 8, 8)), ("gru", (8, 8)), ("mlp", (61,))):
        spec = make_spec(
            {"source": "sklearn:digits", "standardize": "none"},
            task="classification",
            model={"kind": kind},
        )
        problem = prepare(spec, tmp_path)
        assert problem.input_shape == shape
        if kind != "mlp":
            np.testing.assert_array_equal(problem.x[0].numpy().reshape(-1, 8, 8), images)


def test_nothing_is_copied_per_fold_where_nothing_is_fitted_per_fold(tmp_path: Path) -> None:
    for standardize, versions in (("none", 1), ("all", 1), ("fold", 5)):
        spec = make_spec({"source": "sklearn:diabetes", "standardize": standardize})
        assert len(prepare(spec, tmp_path).x) == versions


def test_values_beyond_float32_are_refused_with_the_way_out(tmp_path: Path) -> None:
    text = "\n".join(["big,y", *[f"{i}e300,{i}" for i in range(1, 9)]])
    data = {"standardize": "none"}
    train = {"learning_rate": 0.1, "dtype": "float32"}
    with pytest.raises(DataError, match=r"column 'big'.*train\.dtype: float64"):
        prepare_csv(tmp_path, text, data, train=train)
    assert torch.isfinite(prepare_csv(tmp_path, text, data).x).all()


def test_a_large_block_of_columns_is_transformed_as_a_small_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = make_spec("sklearn:breast_cancer", task="classification")
    data = load_data(spec, tmp_path)
    folds = make_folds(spec, data)
    layout = Layout(data.x, data.feature_names, None)
    whole = make_features(layout, folds, "fold", torch.float64)
    monkeypatch.setattr("sweep.problem.features.BLOCK", 1)
    assert torch.equal(whole.x, make_features(layout, folds, "fold", torch.float64).x)
