"""Arrays as ``.npy`` files, which is how Flower carries them.

The header of such a file is a Python literal. It is matched against the one form that numpy writes
and never evaluated; an array of Python objects, which would be a pickle, has no place in that form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import SchemaMismatch

# What numpy writes into the file for a type; no objects, bfloat16, complex numbers or texts.
DTYPES: Final[Mapping[str, str]] = {
    "bool": "|b1",
    "int8": "|i1",
    "uint8": "|u1",
    "int16": "<i2",
    "uint16": "<u2",
    "int32": "<i4",
    "uint32": "<u4",
    "int64": "<i8",
    "uint64": "<u8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
}
_MAGIC: Final = b"\x93NUMPY\x01\x00"
_START: Final = len(_MAGIC) + 2
_LONGEST_HEADER: Final = 1024
_HEADER: Final = re.compile(
    rb"\{'descr': '([<|][a-z][0-9])', 'fortran_order': (False|True), "
    rb"'shape': \(((?:[0-9]{1,18}, ?)*[0-9]{0,18})\), \} *\n"
)


def write_npy(array: NDArray[Any]) -> bytes:
    """Return an array as the bytes of an ``.npy`` file.

    Raises:
        SchemaMismatch: if it is not of a plain number type, little-endian.
    """
    if DTYPES.get(array.dtype.name) != array.dtype.str:
        msg = f"An array of dtype {array.dtype} cannot be sent."
        raise SchemaMismatch(msg, hint=f"Expected one of {', '.join(DTYPES)}.")
    stream = BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def read_npy(data: memoryview, *, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read an ``.npy`` file; the array is a view of the bytes and cannot be written.

    Args:
        data: the file, from anywhere.
        dtype: the type it must have, one of :data:`DTYPES`.
        shape: the shape it must have.

    Raises:
        SchemaMismatch: if it is another file, or has not exactly as many bytes as its shape says.
    """
    start, order = _header(bytes(data[: _START + _LONGEST_HEADER]), dtype, shape)
    kind = np.dtype(DTYPES[dtype])
    if len(data) - start != math.prod(shape) * kind.itemsize:
        msg = "An array has not as many bytes as its shape says."
        raise SchemaMismatch(msg)
    try:
        return np.frombuffer(data, dtype=kind, offset=start).reshape(shape, order=order)
    except ValueError as error:
        # An empty array may still have a side that numpy cannot count.
        msg = "An array has a shape that cannot be made."
        raise SchemaMismatch(msg) from error


def _header(data: bytes, dtype: str, shape: tuple[int, ...]) -> tuple[int, Any]:
    """Return where the numbers start and in which order they come, ``"C"`` or ``"F"``."""
    length = int.from_bytes(data[len(_MAGIC) : _START], "little")
    found = _HEADER.fullmatch(data, _START, _START + length)
    if not data.startswith(_MAGIC) or found is None or _START + length > len(data):
        msg = "An array is not a plain .npy file."
        raise SchemaMismatch(msg)
    written = tuple(int(part) for part in found[3].decode("ascii").split(",") if part.strip())
    if written != shape or found[1].decode("ascii") != DTYPES[dtype]:
        msg = "An array and its file disagree on type or shape."
        raise SchemaMismatch(msg)
    return _START + length, "F" if found[2] == b"True" else "C"
