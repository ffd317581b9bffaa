"""What is read: sources, roles and kinds of columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets
from sklearn.preprocessing import LabelEncoder

from sweep.problem.data import load_data
from sweep.problem.sources import BUNDLED
from tests.problem.study_files import load_csv, make_spec


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_are_scikit_learns_own(name: str, tmp_path: Path) -> None:
    bunch = getattr(datasets, f"load_{name}")()
    task = "regression" if name == "diabetes" else "classification"
    data = load_data(make_spec(f"sklearn:{name}", task=task), tmp_path)
    np.testing.assert_array_equal(data.x, bunch.data)
    np.testing.assert_array_equal(data.y, bunch.target)
    assert data.feature_names == tuple(bunch.feature_names)


def test_every_bundled_set_with_one_target_is_offered() -> None:
    bundled = {name.removeprefix("load_") for name in datasets.__all__ if name.startswith("load_")}
    others = {"files", "linnerud", "sample_image", "sample_images", "svmlight_file"}
    assert bundled - others - {"svmlight_files"} == set(BUNDLED)


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "n": [1.5, None, 3.0, 2.0, 5.0, 1.0],
            "ü": ["a", "b", None, "a", "b", "a"],
            "flag": [True, False, True, True, False, True],
            "when": pd.to_datetime(["2020-01-02"] * 3 + ["1970-01-01 12:00"] * 3, format="mixed"),
            "w": [1.0, 2.0, 1.0, 1.0, 2.0, 0.0],
            "who": [9, 7, 9, 7, 8, 8],
            "y": ["no", "yes", "no", "no", "yes", "yes"],
        }
    )


ROLES = {"weights": "w", "groups": "who"}


@pytest.mark.parametrize("form", ["csv", "semicolons", "bom", "parquet", "python"])
def test_a_table_is_the_same_from_every_source(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"parquet": "t.parquet", "python": "python:my_rows:rows"}.get(form, "t.csv")
    if form == "parquet":
        table().to_parquet(tmp_path / source)
    elif form == "python":
        table().to_pickle(tmp_path / "t.pkl")
        code = "import pandas\ndef rows(t=pandas.read_pickle({!r})):\n    return t, t.pop('y')\n"
        (tmp_path / "my_rows.py").write_text(code.format(str(tmp_path / "t.pkl")))
    else:
        encoding = "utf-8-sig" if form == "bom" else "utf-8"
        separator = ";" if form == "semicolons" else ","
        table().to_csv(tmp_path / source, index=False, sep=separator, encoding=encoding)
    roles = {**ROLES, "target": "y"} if form != "python" else ROLES
    spec = make_spec({"source": source, **roles}, task="classification")
    data = load_data(spec, tmp_path)
    assert data.feature_names == ("n", "ü", "flag", "when")
    assert isinstance(data.x, pd.DataFrame)
    np.testing.assert_array_equal(data.x["n"], table()["n"])
    assert data.x["ü"].tolist() == ["a", "b", None, "a", "b", "a"]
    assert data.x["flag"].tolist() == [1, 0, 1, 1, 0, 1]
    assert data.x["when"].tolist() == [18263.0] * 3 + [0.5] * 3
    assert data.classes == ("no", "yes") and data.y.tolist() == [0, 1, 0, 0, 1, 1]
    assert data.weights is not None and data.weights.tolist() == [1, 2, 1, 1, 2, 0]
    assert data.groups is not None and data.groups.tolist() == [2, 0, 2, 0, 1, 1]


def test_arrays_of_an_npz_file_are_found_by_their_names(tmp_path: Path) -> None:
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    parts = {"groups": [1, 1, 2, 2, 3, 3], "weights": np.ones(6), "folds": list("abcabc")}
    np.savez(
        tmp_path / "d.npz", X=x, y=y, other=np.arange(6) * 2.0, images=np.ones((2, 2)), **parts
    )
    data = load_data(make_spec("d.npz", cross_validation={"kind": "column"}), tmp_path)
    np.testing.assert_array_equal(data.x, x)
    assert data.groups is not None and data.fold_ids is not None and data.weights is not None
    assert data.fold_ids.tolist() == [0, 1, 2, 0, 1, 2]
    other = load_data(make_spec({"source": "d.npz", "target": "other"}), tmp_path)
    np.testing.assert_array_equal(other.y, np.arange(6) * 2.0)


RETURNS = {
    "pair": "X, y",
    "four": "X, y, [1, 1, 2, 2], [1, 2, 3, 4]",
    "mapping": "{'X': X, 'y': y, 'groups': None}",
    "lists": "X.tolist(), y.tolist()",
    "column": "X, y.reshape(-1, 1)",
    "frame": "pandas.DataFrame(X, columns=['x0', 'x1']), pandas.Series(y)",
    "tensors": "torch.from_numpy(X), torch.from_numpy(y)",
}


@pytest.mark.parametrize("form", RETURNS)
def test_a_callable_returns_its_rows_in_any_of_these_forms(form: str, tmp_path: Path) -> None:
    code = (
        "import numpy, pandas, torch\n"
        "def rows():\n"
        "    X, y = numpy.arange(8.).reshape(4, 2), numpy.arange(4.)\n"
        f"    return {RETURNS[form]}\n"
    )
    (tmp_path / f"rows_{form}.py").write_text(code)
    data = load_data(make_spec(f"python:rows_{form}:rows"), tmp_path)
    np.testing.assert_array_equal(np.asarray(data.x), np.arange(8.0).reshape(4, 2))
    assert data.y.tolist() == [0, 1, 2, 3] and data.feature_names == ("x0", "x1")
    assert (data.groups is not None) == (form == "four")


@pytest.mark.parametrize(
    "labels",
    [[3, 1, 1, 3, 2, 2], ["b", "a", "a", "b", "b", "a"], [True, False] * 3, [1.0, 0.0] * 3],
)
def test_labels_are_coded_as_by_scikit_learns_label_encoder(
    labels: list[Any], tmp_path: Path
) -> None:
    encoder = LabelEncoder().fit(labels)
    text = "\n".join(["x,y", *[f"{i},{label}" for i, label in enumerate(labels)]])
    data = load_csv(tmp_path, text, task="classification")
    assert data.classes == tuple(encoder.classes_.tolist())
    assert data.y.tolist() == encoder.transform(labels).tolist()


@pytest.mark.parametrize(
    ("texts", "days"),
    [
        (["1970-01-02", "1971-01-01"], [1, 365]),
        (["02.01.1970", "01.01.1971"], [1, 365]),
        (["1970/01/02", "1971/01/01"], [1, 365]),
        (["13/01/1970", "14/01/1970"], [12, 13]),
        (["01/13/1970", "02/01/1970"], [12, 31]),
        (["2 Jan 1970", "3 March 1970"], None),
        (["2 Jan 1970", "3 Mar 1970"], [1, 61]),
        (["1970-01-02 06:00", "1970-01-02 18:00"], [1.25, 1.75]),
        (["1970-01-02T06:00:00Z", "1970-01-02T18:00:00Z"], [1.25, 1.75]),
        (["02.01.1970 06:00", "03.01.1970 18:00"], [1.25, 2.75]),
        (["06:00", "12:00"], [0.25, 0.5]),
        (["02.01.1970", "not known"], None),
    ],
)
def test_dates_as_text_become_days(
    texts: list[str], days: list[float] | None, tmp_path: Path
) -> None:
    rows = [f"{texts[i % 2]},{i}" for i in range(8)] + [",8"]
    data = load_csv(tmp_path, "\n".join(["d,y", *rows]))
    column = data.x["d"].tolist()
    if days is None:
        assert column[:2] == texts and column[-1] is None and not data.notices
    else:
        np.testing.assert_allclose(column, [*days * 4, np.nan])
        assert "days since 1970-01-01" in data.notices[0]


def test_roles_are_never_features_and_lists_choose_the_rest(tmp_path: Path) -> None:
    text = "a,b,c,g,w,f,y\n" + "\n".join(f"{i},{i},{i},{i % 2},1,{i % 3},{i}" for i in range(6))
    keys: dict[str, Any] = {"cross_validation": {"kind": "column"}}
    roles = {"groups": "g", "weights": "w", "fold_column": "f"}
    assert load_csv(tmp_path, text, roles, **keys).feature_names == ("a", "b", "c")
    drop = {**roles, "drop": ["b"]}
    assert load_csv(tmp_path, text, drop, **keys).feature_names == ("a", "c")
    features = {**roles, "features": ["c", "a"]}
    assert load_csv(tmp_path, text, features, **keys).feature_names == ("c", "a")


def test_the_index_that_pandas_writes_is_left_out_with_a_notice(tmp_path: Path) -> None:
    data = load_csv(tmp_path, table().assign(y=range(6)).to_csv())
    assert "" not in data.feature_names
    assert any("counts the rows" in notice for notice in data.notices)


def test_the_fingerprint_tells_any_change_of_content_and_nothing_else(tmp_path: Path) -> None:
    text = "a,c,y\n1.5,u,1\n,v,2\n2,,3\n4,u,4"
    changes = {
        "1.5": "1.25",
        "u,1": "v,1",
        ",v,2": "9,v,2",
        "u,4": "u,5",
        "a,": "b,",
        ",,3": ",v,3",
    }
    texts = [text, *[text.replace(old, new) for old, new in changes.items()]]
    assert len({load_csv(tmp_path, changed).fingerprint for changed in texts}) == len(texts)
    (tmp_path / "other").mkdir()
    moved = load_csv(tmp_path / "other", text.replace("\n", "\r\n") + "\r\n")
    assert moved.fingerprint == load_csv(tmp_path, text).fingerprint


def test_line_ends_of_old_macs_and_a_header_with_a_line_break(tmp_path: Path) -> None:
    assert load_csv(tmp_path, "x,y\r1,0\r2,1\r3,0\r4,1\r").n_samples == 4
    text = '"a\nb";c;y\n1;2;3\n4;5;6\n7;8;9\n'
    assert load_csv(tmp_path, text).feature_names == ("a\nb", "c")
