"""Files that are encrypted at rest: AES-256-GCM, in chunks that cannot be moved, cut or swapped.

The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár, "Online Authenticated-Encryption
and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015) with a key of its own for every file, which is
what Tink calls AES-GCM-HKDF streaming. Both primitives are the ``cryptography`` package's.

A sealed file is a header of 57 bytes and one or more chunks::

    "FSLMSEAL" | version 1 | log2 of the chunk size | key id (8) | salt (32) | nonce prefix (7)
    AES-256-GCM(file key, prefix | chunk number (4) | is it the last (1), chunk, aad = header) ...

- ``file key = HKDF-SHA256(key, salt, "fedslm-seal-v1|" + header + SHA-256(context))``: no bit of
  the header can change, and a file sealed for one context (a blob's digest, say) does not open in
  the place of another. Salt and prefix are random, 312 bits together, so that nonces never repeat.
- The number in each nonce refuses chunks that were moved, repeated or left out; the last byte
  refuses a file that was cut at the border of a chunk or that goes on after its end.
- A reader opens the last chunk first, so that the size it tells is authentic before anything is
  read; then any chunk can be opened alone, and never more than one is in memory.

What this does not hide: the size of the file to a byte, and when it was written. What it does not
stop: whoever may write to the folder can put back an older sealed file of the same context.
"""

from __future__ import annotations

import io
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.canonical import sha256_hex
from shared.errors import FleetError, InvalidValue

MAGIC = b"FSLMSEAL"
VERSION = 1
KEY_BYTES = 32
TAG_BYTES = 16
HEADER_BYTES = 57
CHUNK_LOG2 = 16
"""Chunks of 64 KiB: 0.02 % of overhead, and a chunk is in memory at a time."""

MOST_CHUNKS = 1 << 24
"""1 TiB in chunks of 64 KiB; far below what AES-GCM allows under one key."""

_LEAST_LOG2, _MOST_LOG2 = 10, 20
_HEADER = struct.Struct(">8sBB8s32s7s")
_DAMAGED = "Restore the file from a copy; nothing of it was used."


@dataclass(frozen=True, slots=True)
class SealingKey:
    """A key that seals files.

    Args:
        secret: 32 bytes; never shown.

    Raises:
        InvalidValue: if it has another length.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Check the length."""
        if len(self.secret) != KEY_BYTES:
            msg = f"a sealing key of {len(self.secret)} bytes, expected {KEY_BYTES}."
            raise InvalidValue(msg, hint="Restore the key file from a copy.")

    @classmethod
    def new(cls) -> SealingKey:
        """Return a new random key."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @property
    def key_id(self) -> str:
        """Return what names the key in the files that it sealed; public, 16 hexadecimal digits."""
        return _derive(self.secret, b"", b"fedslm-seal-key-id-v1", 8).hex()


@dataclass(frozen=True, slots=True)
class _Header:
    """The header of a sealed file."""

    raw: bytes
    chunk: int
    key_id: str
    salt: bytes
    prefix: bytes


class Sealer:
    """Seals with its first key and opens what any of its keys sealed.

    Args:
        keys: newest first. Rotation puts a new key in front; an old one may go once nothing that
            it sealed is left (:meth:`reseal`).

    Raises:
        InvalidValue: without a key, or with the same key twice.
    """

    def __init__(self, keys: Sequence[SealingKey]) -> None:
        self._keys = {key.key_id: key for key in keys}
        if not keys or len(self._keys) != len(keys):
            msg = f"found {len(keys)} sealing keys, {len(self._keys)} of them distinct."
            raise InvalidValue(msg, hint="Expected at least one key, and each of them once.")
        self._newest = keys[0]

    def __repr__(self) -> str:
        """Return the ids of the keys; never the keys."""
        return f"Sealer({', '.join(self._keys)})"

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys, newest first."""
        return tuple(self._keys)

    def seal(self, data: bytes, *, context: bytes) -> bytes:
        """Seal bytes that are in memory; as :meth:`seal_stream`."""
        target = io.BytesIO()
        self.seal_stream(io.BytesIO(data), target, context=context)
        return target.getvalue()

    def open(self, sealed: bytes, *, context: bytes) -> bytes:
        """Open bytes that are in memory; as :meth:`reader`."""
        reader = self.reader(io.BytesIO(sealed), context=context)
        return reader.read(0, reader.size)

    def seal_stream(
        self, source: BinaryIO, target: BinaryIO, *, context: bytes, chunk_log2: int = CHUNK_LOG2
    ) -> None:
        """Seal a stream with the newest key.

        Args:
            source: read to its end, one chunk at a time.
            target: gets the sealed file.
            context: what the file is for; the same bytes are needed to open it.
            chunk_log2: log2 of the chunk size, 10 to 20.

        Raises:
            InvalidValue: for another chunk size, or more than :data:`MOST_CHUNKS`.
        """
        if not _LEAST_LOG2 <= chunk_log2 <= _MOST_LOG2:
            msg = f"chunk_log2={chunk_log2!r}, expected {_LEAST_LOG2} to {_MOST_LOG2}."
            raise InvalidValue(msg)
        raw = _HEADER.pack(
            MAGIC,
            VERSION,
            chunk_log2,
            bytes.fromhex(self._newest.key_id),
            secrets.token_bytes(32),
            secrets.token_bytes(7),
        )
        header = _parse(raw)
        cipher = _cipher(self._newest, header, context)
        target.write(raw)
        number, piece = 0, _read_whole(source, header.chunk)
        while True:
            following = _read_whole(source, header.chunk) if len(piece) == header.chunk else b""
            last = not following
            target.write(cipher.encrypt(_nonce(header, number, last=last), piece, raw))
            if last:
                return
            number, piece = number + 1, following
            if not number < MOST_CHUNKS:
                msg = f"a file of more than {MOST_CHUNKS} chunks cannot be sealed."
                raise InvalidValue(msg, hint="Cut it into several files.")

    def reader(self, stream: BinaryIO, *, context: bytes) -> SealedReader:
        """Return a reader of a sealed file.

        Args:
            stream: seekable; stays open, and belongs to the caller.
            context: what was given when it was sealed.

        Raises:
            FleetError: if it is no sealed file, was sealed with a key that is not here, or its
                header or end were changed.
        """
        stream.seek(0)
        header = _parse(stream.read(HEADER_BYTES))
        key = self._keys.get(header.key_id)
        if key is None:
            msg = f"sealed with key {header.key_id}, found {', '.join(self._keys)}."
            raise FleetError(msg, hint="Add that key after the newest one, then seal again.")
        return SealedReader(stream, header, _cipher(key, header, context))

    def reseal(self, source: BinaryIO, target: BinaryIO, *, context: bytes) -> None:
        """Open a sealed file and seal what is in it with the newest key, chunk by chunk.

        Raises:
            FleetError: as :meth:`reader`; what ``target`` then holds is of no use.
        """
        reader = self.reader(source, context=context)
        plain = io.BufferedReader(_Plain(reader), 1 << CHUNK_LOG2)
        self.seal_stream(plain, target, context=context)


class SealedReader:
    """Reads any part of a sealed file; what it returns is authentic.

    Attributes:
        size: bytes of the file before it was sealed.
        key_id: id of the key that sealed it.
    """

    def __init__(self, stream: BinaryIO, header: _Header, cipher: AESGCM) -> None:
        self._stream, self._header, self._cipher = stream, header, cipher
        body = stream.seek(0, io.SEEK_END) - HEADER_BYTES
        full = header.chunk + TAG_BYTES
        self._chunks = -(-body // full)
        tail = body - (self._chunks - 1) * full
        # An empty last chunk stands alone: there is one sealed form of every length.
        least = TAG_BYTES + (1 if self._chunks > 1 else 0)
        if not (0 < self._chunks <= MOST_CHUNKS and least <= tail <= full):
            how = f"of {body + HEADER_BYTES} bytes has no possible length"
            raise _damaged(how)
        self.key_id = header.key_id
        self.size = body - self._chunks * TAG_BYTES
        self._cached: tuple[int, bytes] = (-1, b"")
        self._chunk(self._chunks - 1)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from an offset; fewer only at the end of the file.

        Raises:
            FleetError: if a chunk was changed.
            InvalidValue: for a negative number.
        """
        if not (offset >= 0 and size >= 0):
            msg = f"offset={offset} and size={size}, expected none below 0."
            raise InvalidValue(msg)
        stop = min(offset + size, self.size)
        pieces = []
        while offset < stop:
            number, start = divmod(offset, self._header.chunk)
            piece = self._chunk(number)[start : start + stop - offset]
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def _chunk(self, number: int) -> bytes:
        """Open one chunk."""
        if self._cached[0] == number:
            return self._cached[1]
        full = self._header.chunk + TAG_BYTES
        self._stream.seek(HEADER_BYTES + number * full)
        sealed = self._stream.read(full)
        nonce = _nonce(self._header, number, last=number == self._chunks - 1)
        try:
            plain = self._cipher.decrypt(nonce, sealed, self._header.raw)
        except InvalidTag as error:
            how = f"was changed, or is not what it is taken for (chunk {number})"
            raise _damaged(how) from error
        self._cached = (number, plain)
        return plain


class _Plain(io.RawIOBase):
    """What is in a sealed file, as a stream."""

    def __init__(self, reader: SealedReader) -> None:
        super().__init__()
        self._reader, self._at = reader, 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer with what comes next."""
        piece = self._reader.read(self._at, len(buffer))
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def sealed_key_id(stream: BinaryIO) -> str:
    """Return the id of the key that a sealed file names; nothing is opened.

    Raises:
        FleetError: if it is no sealed file of this version.
    """
    stream.seek(0)
    return _parse(stream.read(HEADER_BYTES)).key_id


def _parse(raw: bytes) -> _Header:
    """Read a header."""
    if len(raw) != HEADER_BYTES or not raw.startswith(MAGIC):
        how = "does not begin with the header of a sealed file"
        raise _damaged(how)
    _, version, log2, key_id, salt, prefix = _HEADER.unpack(raw)
    if version != VERSION or not _LEAST_LOG2 <= log2 <= _MOST_LOG2:
        msg = f"sealed in format {version} with chunks of 2^{log2}, expected format {VERSION}."
        raise FleetError(msg, hint="A newer fedslm may have written it.")
    return _Header(raw, 1 << log2, key_id.hex(), salt, prefix)


def _cipher(key: SealingKey, header: _Header, context: bytes) -> AESGCM:
    """Return the cipher of one file."""
    info = b"fedslm-seal-v1|" + header.raw + bytes.fromhex(sha256_hex(context))
    return AESGCM(_derive(key.secret, header.salt, info, KEY_BYTES))


def _derive(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """Return HKDF-SHA256 of a secret (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret)


def _nonce(header: _Header, number: int, *, last: bool) -> bytes:
    """Return the nonce of a chunk, 12 bytes."""
    return header.prefix + struct.pack(">IB", number, last)


def _read_whole(source: BinaryIO, size: int) -> bytes:
    """Read exactly so many bytes, fewer only at the end; a raw stream may give less at a time."""
    pieces = []
    while size > 0 and (piece := source.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _damaged(how: str) -> FleetError:
    """Return the error of a sealed file that cannot be trusted."""
    return FleetError(f"a sealed file {how}.", hint=_DAMAGED)
