"""Arrays from .npy and .npz files, mapped into memory where they lie there as they are."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from sweep.errors import DataError
from sweep.problem.plugins import describe

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a zip entry: a magic number, and the lengths of the name and of the extra field after it
(APPNOTE 4.3.7)."""


def read_arrays(source: str, path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name; that of a .npy file is `X`.

    What is not compressed is read page by page as it is looked at, and a change to it stays in
    this process. Raises DataError for what is no such file, pickled objects included.
    """
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".npy":
                return {"X": _at(path, file)}
            with zipfile.ZipFile(file) as archive:
                return {
                    entry.filename.removesuffix(".npy"): _entry(path, file, archive, entry)
                    for entry in archive.infolist()
                }
    except (ValueError, zipfile.BadZipFile, EOFError, TypeError, struct.error) as error:
        form = "an array" if path.suffix.lower() == ".npy" else "arrays"
        raise DataError(
            f"{source}: not readable as {form} of numbers and text in one {path.suffix.lower()} "
            f"file (numpy.save, numpy.savez, without pickled objects): {describe(error)}."
        ) from None


def _entry(
    path: Path, file: BinaryIO, archive: zipfile.ZipFile, entry: zipfile.ZipInfo
) -> NDArray[Any]:
    if entry.compress_type != zipfile.ZIP_STORED:
        with archive.open(entry) as stream:
            return np.asarray(npy.read_array(stream, allow_pickle=False))
    file.seek(entry.header_offset)
    magic, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if magic != b"PK\x03\x04":
        raise ValueError("a broken zip file")
    file.seek(name + extra, 1)
    return _at(path, file)


def _at(path: Path, file: BinaryIO) -> NDArray[Any]:
    """The array that begins where the file stands."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array in the unknown format {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    if 0 in shape:
        return np.empty(shape, dtype)
    mapped: NDArray[Any] = np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran else "C")
    return np.asarray(mapped)
