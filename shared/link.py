"""The codes of a scenario's ``[link]``: which bytes an update or an adapter becomes, and back.

Nothing here protects or breaks a promise by itself. An update of mode ``example`` is noised before
it is coded, so every code is post-processing. In ``client-central`` the server clips what it reads,
so that the clip bounds a client's influence whatever the code, and whatever a client sent.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from shared.configlink import LinkSection
from shared.errors import SchemaMismatch
from shared.linkcodes import INT4, INT8, LARGEST_HALF, Blocks, Code, Half, Largest, Uniform
from shared.lora import Vector

WHOLE: Final = "fp32"
DELTA: Final = "delta"
_STORED: Final = b"\x00"
_PACKED: Final = b"\x01"
_STRATEGIES: Final = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A vector as it travels.

    Attributes:
        codec: the name of the code.
        data: the bytes.
    """

    codec: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A code, and whether its bytes are packed.

    Attributes:
        code: how numbers become bytes.
        entropy: whether those are packed with zlib where that is shorter; one byte says so.
    """

    code: Code
    entropy: bool = False

    @property
    def name(self) -> str:
        """Return the name of the code."""
        return self.code.name

    def encode(self, vector: Vector, uniform: Uniform | None) -> Coded:
        """Write a finite vector; ``uniform`` draws from [0, 1), None rounds to nearest."""
        body = self.code.encode(vector, uniform)
        return Coded(codec=self.name, data=pack(body) if self.entropy else body)

    def decode(self, coded: Coded, size: int) -> Vector:
        """Read a vector of exactly ``size`` numbers.

        Guarantee:
            No more is made of the bytes than the code of ``size`` numbers takes.

        Raises:
            SchemaMismatch: if it is another code, or anything about the bytes is wrong.
        """
        if coded.codec != self.name:
            msg = f"Found an update of another code, expected {self.name!r}."
            raise SchemaMismatch(msg)
        length = self.code.length(size)
        body = unpack(coded.data, length) if self.entropy else coded.data
        return self.code.decode(body, size)


def uplink(link: LinkSection) -> Link | None:
    """Return the code of updates; None for four bytes a number."""
    if link.up == WHOLE:
        return None
    if link.up == "topk":
        code: Code = Largest(keep=link.keep, values=_dense(link.values, link.block))
    else:
        code = _dense(link.up, link.block)
    return Link(code=code, entropy=link.entropy)


class Downlink:
    """The code of the adapter on its way to clients; rounds to nearest, so that it repeats.

    The server goes on from its own vector and clients from what they read: a rounding error is
    sent anew each round, against the same start, and does not add up over rounds. ``delta`` is
    the change since the factors that everybody makes from the public seed: whoever takes part for
    the first time, or after a hundred rounds, needs to have kept nothing.

    Args:
        link: the section of the scenario.
        start: the factors that everybody makes from the public seed.
    """

    def __init__(self, link: LinkSection, start: Vector) -> None:
        self._start = start if link.down == DELTA else np.zeros_like(start)
        self.name = link.down
        code: Code = Half() if link.down == "fp16" else _named_delta(link.block)
        self._link = Link(code=code, entropy=link.entropy)

    def encode(self, vector: Vector) -> Coded | None:
        """Write an adapter; None where it must travel whole.

        That is by the scenario, or because it has another size than the start, or a number that
        the code has no bits for.
        """
        if self.name == WHOLE or vector.size != self._start.size:
            return None
        change = vector - self._start
        most = LARGEST_HALF * (INT8 if self.name == DELTA else 1)
        if not (np.isfinite(change).all() and np.abs(change).max(initial=0.0) <= most):
            return None
        return self._link.encode(change, None)

    def decode(self, coded: Coded) -> Vector:
        """Read an adapter.

        Raises:
            SchemaMismatch: if it is another code, or anything about the bytes is wrong.
        """
        if self.name == WHOLE:
            msg = "Found a coded adapter, and the scenario sends it whole."
            raise SchemaMismatch(msg)
        found: Vector = self._start + self._link.decode(coded, self._start.size)
        return found

    def seen(self, vector: Vector) -> tuple[Vector, Coded | None]:
        """Return what clients read of an adapter, and the bytes; the vector itself if whole."""
        coded = self.encode(vector)
        return (vector, None) if coded is None else (self.decode(coded), coded)


def pack(body: bytes) -> bytes:
    """Pack bytes with zlib where that is shorter; the first byte says whether it was."""
    shortest = min((_deflate(body, strategy) for strategy in _STRATEGIES), key=len)
    return _PACKED + shortest if len(shortest) < len(body) else _STORED + body


def unpack(data: bytes, length: int) -> bytes:
    """Undo :func:`pack`.

    Guarantee:
        At most ``length + 1`` bytes are made, whatever the data say.

    Args:
        data: from anywhere.
        length: how many bytes must come out.

    Raises:
        SchemaMismatch: if other than ``length`` bytes come out, or it is not what ``pack`` makes.
    """
    kind, rest = data[:1], data[1:]
    if len(rest) <= length and kind == _STORED:
        return rest
    if len(rest) < length and kind == _PACKED:
        stream = zlib.decompressobj()
        try:
            body = stream.decompress(rest, length + 1)
        except zlib.error as error:
            msg = "A packed vector cannot be unpacked."
            raise SchemaMismatch(msg) from error
        if stream.eof and not stream.unused_data and len(body) == length:
            return body
    msg = f"Found a packed vector that is not one of {length} bytes."
    raise SchemaMismatch(msg)


def _deflate(body: bytes, strategy: int) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return stream.compress(body) + stream.flush()


def _dense(name: str, block: int) -> Code:
    """Return a code that sends every number."""
    if name == "fp16":
        return Half()
    return Blocks(name=name, levels=INT8 if name == "int8" else INT4, block=block)


def _named_delta(block: int) -> Code:
    return Blocks(name=DELTA, levels=INT8, block=block)
