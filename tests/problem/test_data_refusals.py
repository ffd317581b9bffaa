"""What cannot be learned from is refused in a sentence that names the column and the row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweep.errors import RequestError, SweepError
from sweep.problem.data import load_data
from sweep.problem.prepare import prepare
from tests.problem.study_files import make_spec, prepare_csv

CLASSIFY: dict[str, Any] = {"task": "classification"}
ROWS = "\n".join(f"{i},{'uvw'[i % 3]},{i % 2},{i}" for i in range(12))
TABLE = f"a,c,b,y\n{ROWS}\n"

CSV: dict[str, tuple[str | bytes, dict[str, Any], dict[str, Any], str]] = {
    "empty": ("", {}, {}, "t.csv: the file is empty"),
    "blank": ("\n\n", {}, {}, "t.csv: the file is empty"),
    "no rows": ("a,y\n", {}, {}, "t.csv: no rows to learn from"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", {}, {}, "t.csv: not UTF-8 text"),
    "nul bytes": (b"a,\x00y\n1,2\n", {}, {}, "t.csv: not a text file"),
    "latin 1": ("a,y\nü,1\né,2\n".encode("latin-1"), {}, {}, "column 'a' is not UTF-8 text"),
    "latin 1 header": ("a,é,y\n1,1,1\n".encode("latin-1"), {}, {}, "header is not UTF-8 text"),
    "utf-16": ("a,y\n1,2\n".encode("utf-16"), {}, {}, "not UTF-8 text"),
    "long row": ("a,y\n1,2\n\n1,2,3\n", {}, {}, "line 4 has 3 values, the header 2"),
    "short row": ('a,y\n"1\n0",2\n1\n', {}, {}, "line 4 has 1 values, the header 2"),
    "twice": ("a,a,y\n1,2,3\n", {}, {}, "two columns are called 'a'"),
    "unnamed": ("a,,y\n1,2,3\n4,6,6\n", {}, {}, "column 2 has no name"),
    "infinite": (TABLE.replace("\n4,", "\n-inf,"), {}, {}, "'a' is infinite in line 6"),
    "infinite after blank": ("a,y\n1,1\n\n\ninf,2\n", {}, {}, "'a' is infinite in line 5"),
    "target missing": (TABLE.replace("v,0,4", "v,0,"), {}, {}, "'y' is missing in line 6"),
    "target nan": (TABLE.replace("v,0,4", "v,0,NaN"), {}, {}, "'y' is missing in line 6"),
    "target inf": (TABLE.replace("v,0,4", "v,0,inf"), {}, {}, "'y' is infinite in line 6"),
    "target text": (TABLE, {"target": "c"}, {}, "'c' is text .'u'.; use task: classification"),
    "target unknown": (TABLE, {"target": "Y"}, {}, r"data.target: no column 'Y'.*Columns: a, c, b"),
    "near name": ("age,y\n1,2\n", {"target": "aged"}, {}, "Did you mean 'age'"),
    "target dates": ("a,y\n1,2020-01-01\n2,2020-01-02\n", {}, {}, "'y' holds dates"),
    "one class": (TABLE.replace(",1,", ",0,"), {"target": "b"}, CLASSIFY, "0 in every row"),
    "real labels": ("a,y\n1,0.5\n2,0.25\n3,1\n", {}, CLASSIFY, "real numbers .0.5.*regression"),
    "many labels": (TABLE, {}, CLASSIFY, "12 different values in 12 rows.*task: regression"),
    "rare class": (
        TABLE, {"target": "c"}, {**CLASSIFY, "cross_validation": {"folds": 5}},
        "class 'u' has 4 rows, fewer than the 5 folds",
    ),
    "feature unknown": (TABLE, {"features": ["a", "d"]}, {}, r"data.features\[1\]: no column 'd'"),
    "drop unknown": (TABLE, {"drop": ["d"]}, {}, r"data.drop\[0\]: no column 'd'"),
    "target as feature": (TABLE, {"features": ["y"]}, {}, "is data.target, which is never"),
    "none left": (TABLE, {"drop": ["a", "b", "c"]}, {}, "no column is left"),
    "all constant": ("a,y\n1,1\n1,2\n1,3\n1,4\n1,5\n", {}, {}, "every column is constant"),
    "groups unknown": (TABLE, {"groups": "g"}, {}, "data.groups: no column 'g'"),
    "groups missing": (TABLE.replace("v,0,4", ",0,4"), {"groups": "c"}, {}, "'c' is missing in l"),
    "weights text": (TABLE, {"weights": "c"}, {}, "'c' is text"),
    "weights negative": (
        TABLE.replace("\n4,", "\n-4,"), {"weights": "a"}, {},
        r"'a' is negative \(-4\) in line 6",
    ),
    "weights zero": (TABLE.replace(",1,", ",0,"), {"weights": "b"}, {}, "0 in every row"),
    "few rows": ("a,y\n1,2\n2,3\n", {}, {}, "5 folds need at least 5 rows, and t.csv has 2"),
    "many texts": (
        "a,y\n" + "\n".join(f"t{i // 2},{i}" for i in range(2004)), {}, {},
        "'a' has 1,002 different texts",
    ),
    "table to rnn": (TABLE, {}, {"model": {"kind": "rnn"}}, r"data\.shape: \[steps, features\]"),
    "table to cnn": (TABLE, {}, {"model": {"kind": "cnn"}}, r"data\.shape: \[height, width\]"),
    "wrong shape": (
        TABLE, {"shape": [2, 4]}, {"model": {"kind": "cnn"}}, "needs 8 features a row.*has 3",
    ),
    "text shape": (TABLE, {"shape": [1, 3]}, {"model": {"kind": "cnn"}}, "column 'c' of t.csv"),
    "long shape": (TABLE, {"shape": [1, 1, 3]}, {"model": {"kind": "rnn"}}, "3 numbers, but"),
    "scaled labels": (
        TABLE, {"target": "c", "standardize_target": "fold"}, CLASSIFY, "is for task regression",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CSV)
def test_a_table_that_cannot_be_learned_from_is_refused(case: str, tmp_path: Path) -> None:
    text, data, keys, message = CSV[case]
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "t.csv").write_bytes(content)
    spec = make_spec({"source": "t.csv", "target": "y", **data}, **keys)
    with pytest.raises(RequestError, match=message) as refusal:
        prepare(spec, tmp_path)
    assert "\n" not in str(refusal.value)


SOURCES = {
    "sklearn:irs": "Did you mean 'iris'",
    "sklearn:linnerud": "three targets",
    "rows.xlsx": r"no source. Allowed: sklearn:NAME",
    "tabel.npz": "no file .*Did you mean 'table.npz'",
    "matrix.npy": "matrix.npy holds one array: name its column to predict in data.target, as x2",
    "python:makers:number": "is no function but int",
    "python:makers:fails": "raised ValueError: no rows today",
    "python:makers:nothing": "returned NoneType",
    "python:makers:frame": "returned DataFrame. Return X, y",
    "python:makers:no_x": "holds no 'X'. It holds: x, y",
    "python:makers:no_y": "returned no 'y'",
    "python:makers:ragged": "X is no array of numbers",
    "python:makers:sparse": "X is sparse",
    "python:makers:flat": r"X has shape \(4,\)",
    "python:makers:lengths": "X has 4 rows, but y has 3",
    "python:makers:two_targets": r"y has shape \(4, 2\)",
    "python:makers:mixed": "mixes kinds of values",
    "python:makers:complex_x": "X holds complex128",
    "python:makers:complex_y": "holds complex128",
    "python:makers:objects": "X holds object",
    "python:makers:no_rows": "no rows to learn from",
    "python:makers:no_columns": "nothing to learn from",
    "python:makers:infinite": r"column 'x1' is infinite in row 2 \(counted from 0\)",
    "python:makers:infinite_image": r"X at \(1, 0\) is infinite in row 3",
    "python:makers:nested": "column 'a' holds list",
}
MAKERS = """
import numpy as np, pandas as pd, scipy.sparse
X, y = np.arange(8.).reshape(4, 2), np.arange(4.)
number = 3
def fails(): raise ValueError("no rows\\ntoday")
def nothing(): return None
def no_x(): return {"x": X, "y": y}
def no_y(): return {"X": X}
def frame(): return pd.DataFrame(X)
def ragged(): return [[1], [1, 2]], y[:2]
def sparse(): return scipy.sparse.csr_array(X), y
def flat(): return y, y
def lengths(): return X, y[:3]
def two_targets(): return X, X
def mixed(): return X, np.array([1, "a", None, object()], dtype=object)
def complex_x(): return X * 1j, y
def complex_y(): return X, y * 1j
def objects(): return X.astype(object), y
def no_rows(): return X[:0], y[:0]
def no_columns(): return X[:, :0], y
def infinite(): return np.where(X == 5, np.inf, X), y
def infinite_image():
    x = np.zeros((4, 2, 2)); x[3, 1, 0] = np.inf
    return x, y
def nested(): return pd.DataFrame({"a": [[1], [2], [3], [4]], "b": y}), y
"""


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_is_none_is_refused(source: str, tmp_path: Path) -> None:
    (tmp_path / "makers.py").write_text(MAKERS)
    np.savez(tmp_path / "table.npz", X=np.ones((2, 2)), y=np.ones(2))
    np.save(tmp_path / "matrix.npy", np.ones((2, 3)))
    with pytest.raises(RequestError, match=SOURCES[source]) as refusal:
        load_data(make_spec(source), tmp_path)
    assert "\n" not in str(refusal.value)


def test_files_that_are_not_what_their_name_says_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickled.npz", X=np.array([{}], dtype=object), y=np.ones(1))
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    pd.Series([1]).to_pickle(tmp_path / "pickle.npz")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    for name in ("text.npz", "text.npy", "text.parquet"):
        (tmp_path / name).write_text("PAR1, but no table")
    for name in ("cut.npz", "cut.parquet"):
        table = pd.DataFrame({"a": np.arange(100.0), "y": np.arange(100.0)})
        table.to_parquet(tmp_path / "whole.parquet")
        np.savez(tmp_path / "whole.npz", X=table, y=table["y"])
        whole = (tmp_path / f"whole{Path(name).suffix}").read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    for path in sorted(tmp_path.iterdir()):
        if path.stem != "whole":
            with pytest.raises(RequestError, match="not readable"):
                load_data(make_spec({"source": path.name, "target": "y"}), tmp_path)


def test_missing_values_in_images_and_sequences_are_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(10, 4, 4))
    x[7, 1, 2] = np.nan
    np.savez(tmp_path / "d.npz", X=x, y=np.arange(10))
    for kind in ("cnn", "rnn"):
        with pytest.raises(RequestError, match=r"row 7 \(counted from 0\) has a missing value"):
            prepare(make_spec("d.npz", model={"kind": kind}), tmp_path)


cells = st.sampled_from(
    ["", "1", "-2.5", "1e400", "nan", "inf", "u", "vé", "true", "2020-01-01", '"', '"a,b"', " ",
     "\x00",
     "99999999999999999999", "01.02.2020", "\ufeff", "12:30", "1,2", "\r", "0x1f", "\U0001f600"]
)  # fmt: skip


@given(
    rows=st.lists(st.lists(cells, min_size=2, max_size=3), max_size=9),
    header=st.sampled_from(["a,y", "a,y,b", "y,y", ",y", '"a,y', "y"]),
    task=st.sampled_from(["regression", "classification"]),
)
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_however_mangled_a_table_is_prepared_or_refused(
    rows: list[list[str]], header: str, task: str, tmp_path: Path
) -> None:
    text = "\n".join([header, *[",".join(row) for row in rows]])
    try:
        problem = prepare_csv(tmp_path, text, task=task, cross_validation={"folds": 2})
    except SweepError as refusal:
        assert len(str(refusal)) < 600
    else:
        assert bool(problem.x.isfinite().all()) and bool(problem.y.isfinite().all())


@given(content=st.binary(max_size=200), end=st.sampled_from(["csv", "parquet", "npz"]))
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_read_or_refused(content: bytes, end: str, tmp_path: Path) -> None:
    (tmp_path / f"f.{end}").write_bytes(content)
    with pytest.raises(SweepError):
        load_data(make_spec({"source": f"f.{end}", "target": "no such column"}), tmp_path)
