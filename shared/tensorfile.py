"""Safetensors files from elsewhere: everything about their header is checked before anything else.

A safetensors file is eight bytes (the header's length), a JSON header, and the tensors' bytes. The
header comes from whoever made the file, so it is read as hostile text: no longer than a limit,
no deeper than the format needs, no name twice, no number but small integers, and every tensor
exactly where the one before it ended. Only a file that passes is given to a reader of tensors.
Needs neither torch nor the safetensors package.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from shared.errors import AdapterCorrupt

DTYPES: Mapping[str, int] = {"F32": 4, "F16": 2}
"""Number types that an adapter may have, and their bytes; what numpy reads without help."""

METADATA = "__metadata__"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_KEYS = {"dtype", "shape", "data_offsets"}
_LENGTH = 8
_DIGITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLimits:
    """How large what a file declares may be.

    Attributes:
        header: bytes of the header.
        tensors: how many tensors.
        name: characters of a name.
        dimension: the largest extent of a tensor; each is at least 1.
        rank: the most dimensions of a tensor; each has at least one.
        metadata: entries of the metadata, and bytes of all of them together.
    """

    header: int = 1 << 20
    tensors: int = 8192
    name: int = 512
    dimension: int = 1 << 22
    rank: int = 2
    metadata: tuple[int, int] = (64, 1 << 14)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor of a file.

    Attributes:
        name: its name.
        dtype: a key of :data:`DTYPES`.
        shape: its extents.
        start: offset of its first byte in the file.
        stop: offset behind its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_tensor_header(
    stream: BinaryIO, size: int, *, limits: TensorLimits | None = None
) -> tuple[Tensor, ...]:
    """Read and check the header of a safetensors file.

    Args:
        stream: at the beginning of the file; no more than the header is read.
        size: bytes of the whole file, as the caller knows it.
        limits: what is allowed.

    Returns:
        The tensors in the order of their bytes; together they fill the file exactly.

    Raises:
        AdapterCorrupt: for anything that a file of this format and these limits does not have. The
            message names the first thing that is wrong, and nothing that the file says.
    """
    allowed = limits or TensorLimits()
    start, entries = _read_entries(stream, size, allowed)
    metadata = entries.pop(METADATA, None)
    if metadata is not None:
        _check_metadata(metadata, allowed)
    if not 0 < len(entries) <= allowed.tensors:
        _refuse(f"declares {len(entries)} tensors, expected 1 to {allowed.tensors}")
    tensors = sorted(
        (_tensor(name, entry, start, allowed) for name, entry in entries.items()),
        key=lambda tensor: tensor.start,
    )
    end = start
    for tensor in tensors:
        if tensor.start != end:
            _refuse("declares tensors that overlap or leave a gap")
        end = tensor.stop
    if end != size:
        _refuse(f"declares tensors up to byte {end}, the file ends at {size}")
    return tuple(tensors)


def _read_entries(
    stream: BinaryIO, size: int, limits: TensorLimits
) -> tuple[int, dict[str, object]]:
    """Return the offset of the first tensor and the parsed header."""
    prefix = stream.read(_LENGTH)
    if len(prefix) != _LENGTH:
        _refuse("is shorter than the length of its header")
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= min(limits.header, size - _LENGTH):
        _refuse(f"declares a header of {length} bytes, expected at most {limits.header}")
    raw = stream.read(length)
    if len(raw) != length or not raw.startswith(b"{"):
        _refuse("has a header that is no JSON object")
    try:
        entries = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_small,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError) as error:
        msg = "the safetensors file has a header that is not the JSON of this format."
        raise AdapterCorrupt(msg) from error
    if not isinstance(entries, dict):
        _refuse("has a header that is no JSON object")
    return _LENGTH + length, entries


def _tensor(name: str, entry: object, start: int, limits: TensorLimits) -> Tensor:
    """Check one entry of the header."""
    if not (len(name) <= limits.name and _NAME.fullmatch(name)):
        _refuse("has a tensor name that is too long or not plain")
    if not (isinstance(entry, dict) and set(entry) == _KEYS):
        _refuse("describes a tensor with other keys than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and dtype in DTYPES):
        _refuse(f"has a tensor of another type than {' and '.join(DTYPES)}")
    if not (
        isinstance(shape, list)
        and 1 <= len(shape) <= limits.rank
        and all(_integer(extent) and 1 <= extent <= limits.dimension for extent in shape)
    ):
        _refuse("has a tensor with a shape that is not allowed")
    if not (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(_integer(offset) and offset >= 0 for offset in offsets)
        and offsets[1] - offsets[0] == math.prod(shape) * DTYPES[dtype]
    ):
        _refuse("has a tensor whose bytes are not those of its type and shape")
    return Tensor(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        start=start + offsets[0],
        stop=start + offsets[1],
    )


def _check_metadata(metadata: object, limits: TensorLimits) -> None:
    """Require a few short strings."""
    most, characters = limits.metadata
    if not (
        isinstance(metadata, dict)
        and len(metadata) <= most
        and all(isinstance(value, str) for value in metadata.values())
        and sum(len(key) + len(value) for key, value in metadata.items()) <= characters
    ):
        _refuse("has metadata that is too large or not text")


def _integer(value: object) -> bool:
    """Tell whether a value is an integer; a boolean is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object, and refuse a key that is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        msg = "a key is there twice"
        raise ValueError(msg)
    return found


def _small(digits: str) -> int:
    """Read an integer that a file's size could have."""
    if not len(digits) <= _DIGITS:
        msg = "a number is too long"
        raise ValueError(msg)
    return int(digits)


def _no_number(text: str) -> NoReturn:
    """Refuse fractions, exponents, NaN and infinity."""
    msg = f"a number of {len(text)} characters is no integer"
    raise ValueError(msg)


def _refuse(how: str) -> NoReturn:
    """Raise the error of a file that is not used."""
    msg = f"the safetensors file {how}."
    raise AdapterCorrupt(msg, hint="Nothing of it was used. Take the adapter from its source.")
