"""CSV files: strict about their form, exact about the line that breaks it."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from sweep.errors import DataError

DELIMITERS = ",;\t|"
HEAD_BYTES = 1_000_000
# What pandas takes for missing as well.
MISSING = [
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
]


def read_csv(source: str, path: Path) -> pa.Table:
    """The table of a UTF-8 file with a header; types are inferred from whole columns.

    Separated by the one of `,` `;` tab `|` that splits the header most. Raises DataError for a
    file that is empty, not text, or has a row longer or shorter than the header.
    """
    delimiter = _delimiter(source, path)
    try:
        table = pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                strings_can_be_null=True, null_values=MISSING
            ),
        )
    except (pa.ArrowException, UnicodeDecodeError) as error:
        ragged = _ragged_line(path, delimiter)
        reason = ragged or " ".join(str(error).split())[:200]
        raise DataError(f"{source}: not readable as CSV: {reason}.") from None
    for field in table.schema:
        if pa.types.is_binary(field.type):
            raise DataError(
                f"{source}: column {field.name!r} is not UTF-8 text; save the file as UTF-8."
            )
    return table


def csv_line(path: Path, row: int) -> str:
    """`line 17`: where data row `row` (from 0) starts, blank lines and quoted breaks counted."""
    with suppress(csv.Error):
        for i, (line, _) in enumerate(_records(path, _delimiter(str(path), path))):
            if i == row + 1:
                return f"line {line}"
    return f"data row {row + 1}"


def _delimiter(source: str, path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head.strip(b"\r\n\xef\xbb\xbf"):
        raise DataError(f"{source}: the file is empty.")
    # What is cut off at the end of the head may be half a character.
    text = codecs.getincrementaldecoder("utf-8-sig")("replace").decode(head)
    if text.startswith("\ufffd"):
        raise DataError(f"{source}: not UTF-8 text; save it as UTF-8.")
    if "\x00" in text:
        raise DataError(f"{source}: not a text file, so no CSV.")
    return max(DELIMITERS, key=lambda delimiter: len(_header(source, text, delimiter)))


def _header(source: str, text: str, delimiter: str) -> list[str]:
    """The first record that is not empty; a quoted name may hold line breaks."""
    try:
        for record in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if record:
                if any("\ufffd" in name for name in record):
                    raise DataError(f"{source}: the header is not UTF-8 text; save it as UTF-8.")
                return record
    except csv.Error as error:
        raise DataError(f"{source}: not readable as CSV: {error}.") from None
    return []


def _records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record starts (from 1), and its fields."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        start = 1
        for record in reader:
            if record:
                yield start, record
            start = reader.line_num + 1


def _ragged_line(path: Path, delimiter: str) -> str | None:
    width = 0
    try:
        for line, record in _records(path, delimiter):
            width = width or len(record)
            if len(record) != width:
                return f"line {line} has {len(record)} values, the header {width}"
    except csv.Error as error:
        return str(error)
    return None
