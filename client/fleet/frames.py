"""Messages between the node and its worker: a pipe, lengths first, JSON and raw bytes.

A frame is, big-endian: the length of the header (4 bytes), the number of parts (4 bytes), the
length of each part (8 bytes each), the header (a JSON object), the parts. Nothing is unpickled, and
no length is believed beyond the bounds that the reader gives.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final

from client.fleet.limits import DEFAULT_LIMITS, MIB, Limits
from shared.errors import SchemaMismatch

MAX_HEADER: Final = 16 * MIB
_PRELUDE: Final = struct.Struct(">II")
_LENGTH: Final = struct.Struct(">Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One message over the pipe.

    Attributes:
        header: a JSON object.
        parts: raw bytes.
    """

    header: Mapping[str, Any]
    parts: Sequence[bytes] = field(default=(), repr=False)


def write_frame(stream: IO[bytes], frame: Frame) -> None:
    """Write a frame and flush it.

    Raises:
        OSError: if the other end is gone.
    """
    header = json.dumps(frame.header).encode("utf-8")
    stream.write(_PRELUDE.pack(len(header), len(frame.parts)))
    stream.write(b"".join(_LENGTH.pack(len(part)) for part in frame.parts))
    stream.write(header)
    stream.writelines(frame.parts)
    stream.flush()


def read_frame(stream: IO[bytes], *, limits: Limits = DEFAULT_LIMITS) -> Frame | None:
    """Read a frame.

    Args:
        stream: the pipe, buffered: a read returns all that was asked for unless the pipe ends.
        limits: bounds on the parts: how many, how large each, how large together.

    Returns:
        The frame, or None if the pipe ended between two frames.

    Raises:
        SchemaMismatch: if a length passes its bound, the pipe ends within a frame, or the header is
            no JSON object.
    """
    prelude = stream.read(_PRELUDE.size)
    if not prelude:
        return None
    length, count = _PRELUDE.unpack(_whole(prelude, _PRELUDE.size))
    if length > MAX_HEADER or count > limits.objects:
        msg = f"A frame announces length={length} and count={count}, which is too much."
        raise SchemaMismatch(msg)
    packed = _whole(stream.read(_LENGTH.size * count), _LENGTH.size * count)
    lengths = [size for (size,) in _LENGTH.iter_unpack(packed)]
    if any(size > limits.object_bytes for size in lengths) or sum(lengths) > limits.message_bytes:
        msg = f"A frame announces parts of {sum(lengths)} bytes, which is too much."
        raise SchemaMismatch(msg)
    header = _header(_whole(stream.read(length), length))
    return Frame(header=header, parts=[_whole(stream.read(size), size) for size in lengths])


def _whole(data: bytes, size: int) -> bytes:
    """Return bytes that must all be there."""
    if len(data) != size:
        msg = f"A frame ends after {len(data)} of {size} bytes."
        raise SchemaMismatch(msg)
    return data


def _header(data: bytes) -> Mapping[str, Any]:
    """Read the header."""
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = "The header of a frame is no JSON."
        raise SchemaMismatch(msg) from error
    if not isinstance(header, dict):
        msg = "The header of a frame is no JSON object."
        raise SchemaMismatch(msg)
    return header
