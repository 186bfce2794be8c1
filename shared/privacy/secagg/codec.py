"""The one binary form of every message: an envelope, and a reader that leaves nothing unread.

::

    magic "FSSA" | version 1 byte | kind 1 byte | body | first 16 bytes of SHA-256 over all before

Integers are big endian. A value has exactly one form: tables are sorted by client, nothing is
padded, nothing is optional. The digest at the end finds accidents (a truncated file, a flipped
bit), not attackers: those meet the signatures and the authenticated encryption inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from shared.errors import SchemaMismatch

VERSION = 1
MAX_CLIENT = 2**32 - 1
CONTEXT_BYTES = 32

Row = tuple[int, bytes]

_MAGIC = b"FSSA"
_HEAD_BYTES = len(_MAGIC) + 2
_DIGEST_BYTES = 16


def seal(kind: int, body: bytes) -> bytes:
    """Put a body into its envelope.

    Args:
        kind: what the body is, 0 to 255.
        body: the content.

    Returns:
        The envelope, 22 bytes longer than the body.
    """
    head = _MAGIC + bytes((VERSION, kind))
    digest = hashlib.sha256(head)
    digest.update(body)
    return b"".join((head, body, digest.digest()[:_DIGEST_BYTES]))


def unseal(kind: int, data: bytes) -> Reader:
    """Open an envelope of one kind.

    Args:
        kind: what the body must be.
        data: the envelope.

    Returns:
        A reader at the beginning of the body.

    Raises:
        SchemaMismatch: for bytes that are too short, not ours, of another version or kind, or
            damaged.
    """
    if not len(data) >= _HEAD_BYTES + _DIGEST_BYTES:
        msg = f"message of {len(data)} bytes, expected at least {_HEAD_BYTES + _DIGEST_BYTES}."
        raise SchemaMismatch(msg)
    expected = _MAGIC + bytes((VERSION, kind))
    if data[:_HEAD_BYTES] != expected:
        msg = f"message begins with {data[:_HEAD_BYTES].hex()}, expected {expected.hex()}."
        raise SchemaMismatch(msg, hint="It is of another kind or another version.")
    view = memoryview(data)
    if hashlib.sha256(view[:-_DIGEST_BYTES]).digest()[:_DIGEST_BYTES] != data[-_DIGEST_BYTES:]:
        msg = f"message of {len(data)} bytes does not match its digest."
        raise SchemaMismatch(msg, hint="It was damaged on the way.")
    return Reader(view[_HEAD_BYTES:-_DIGEST_BYTES])


class Reader:
    """Reads a body from front to back; what is missing or left over is an error."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes.

        Raises:
            SchemaMismatch: if fewer are left.
        """
        left = len(self._data) - self._at
        if not count <= left:
            msg = f"message ends after {left} bytes, expected {count} more."
            raise SchemaMismatch(msg)
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def integer(self, size: int = 4) -> int:
        """Return the next unsigned integer of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def blob(self) -> bytes:
        """Return the next byte string that carries its own length."""
        return self.take(self.integer())

    def text(self) -> str:
        """Return the next string.

        Raises:
            SchemaMismatch: if it is not UTF-8.
        """
        try:
            return self.blob().decode()
        except UnicodeDecodeError as error:
            msg = "a text is not UTF-8."
            raise SchemaMismatch(msg) from error

    def clients(self) -> tuple[int, ...]:
        """Return the next list of clients."""
        count = self.integer()
        raw = self.take(4 * count)
        return tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(0, len(raw), 4))

    def table(self, width: int) -> tuple[Row, ...]:
        """Return the next table of (client, ``width`` bytes)."""
        count, step = self.integer(), 4 + width
        raw = self.take(step * count)
        return tuple(
            (int.from_bytes(raw[i : i + 4], "big"), raw[i + 4 : i + step])
            for i in range(0, len(raw), step)
        )

    def end(self) -> None:
        """Require that everything was read.

        Raises:
            SchemaMismatch: if bytes are left over.
        """
        left = len(self._data) - self._at
        if left:
            msg = f"message has {left} bytes too many."
            raise SchemaMismatch(msg)


def write_integer(value: int, size: int = 4) -> bytes:
    """Return an unsigned integer in ``size`` bytes."""
    return value.to_bytes(size, "big")


def write_blob(value: bytes) -> bytes:
    """Return a byte string behind its length."""
    return write_integer(len(value)) + value


def write_text(value: str) -> bytes:
    """Return a string as UTF-8 behind its length."""
    return write_blob(value.encode())


def write_clients(clients: Sequence[int]) -> bytes:
    """Return a list of clients behind its length."""
    return b"".join((write_integer(len(clients)), *map(write_integer, clients)))


def write_table(rows: Sequence[Row]) -> bytes:
    """Return a table of (client, bytes of one width) behind its length."""
    parts = [write_integer(len(rows))]
    for client, value in rows:
        parts.append(write_integer(client))
        parts.append(value)
    return b"".join(parts)


def require_client(client: int) -> None:
    """Require a client index.

    Raises:
        SchemaMismatch: if it is not an integer in ``[0, 2**32)``.
    """
    if not (isinstance(client, int) and not isinstance(client, bool) and 0 <= client <= MAX_CLIENT):
        msg = f"client={client!r}, expected an integer in [0, 2**32)."
        raise SchemaMismatch(msg)


def require_width(name: str, value: bytes, width: int) -> None:
    """Require a byte string of one length.

    Raises:
        SchemaMismatch: if it has another length.
    """
    if not (isinstance(value, bytes) and len(value) == width):
        found = f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
        msg = f"{name} has {found}, expected {width} bytes."
        raise SchemaMismatch(msg)


def require_clients(name: str, clients: Iterable[int]) -> None:
    """Require clients in ascending order, each once.

    Raises:
        SchemaMismatch: for a duplicate, another order, or something that is no client.
    """
    before = -1
    for client in clients:
        require_client(client)
        if not client > before:
            what = "appears twice" if client == before else "is out of order"
            msg = f"{name}: client={client} {what}, expected ascending clients, each once."
            raise SchemaMismatch(msg)
        before = client


def require_table(name: str, rows: Sequence[Row], width: int) -> None:
    """Require rows of one width, ascending by client, each client once.

    Raises:
        SchemaMismatch: if they are not.
    """
    require_clients(name, (client for client, _ in rows))
    for _, value in rows:
        require_width(name, value, width)
