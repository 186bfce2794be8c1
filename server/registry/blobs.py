"""Files by the SHA-256 of what is in them: written once, durable, sealed where a sealer is given.

A blob appears under its digest whole or not at all. Its place is ``blobs/ab/abcdef...``, with the
ending ``.sealed`` if it is encrypted; one that was stored plain before a sealer was given is still
read. Whoever writes holds the registry's lock.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shared.documents import is_digest
from shared.errors import AdapterCorrupt, AdapterError, FleetError
from shared.files import disk_errors
from shared.privatefiles import make_private_folder
from shared.regularfile import open_regular
from shared.sealing import SealedReader, Sealer, sealed_key_id

SEALED = ".sealed"
PIECE = 1 << 20


@dataclass(slots=True, kw_only=True)
class Blob:
    """An open blob.

    Attributes:
        size: bytes of its content, sealed or not.
    """

    size: int
    _stream: BinaryIO
    _sealed: SealedReader | None

    def read(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from an offset.

        Raises:
            AdapterCorrupt: if what is sealed there was changed.
        """
        if self._sealed is not None:
            with _sealing_errors():
                return self._sealed.read(offset, size)
        self._stream.seek(offset)
        return self._stream.read(size)

    def pieces(self) -> Iterator[bytes]:
        """Yield the content in pieces of at most :data:`PIECE` bytes."""
        for offset in range(0, self.size, PIECE):
            yield self.read(offset, PIECE)


class BlobStore:
    """The blobs of a registry.

    Args:
        folder: made if missing when the first blob is put.
        sealer: seals new blobs and opens sealed ones; None stores them as they are.
    """

    def __init__(self, folder: Path, sealer: Sealer | None) -> None:
        self._folder, self._sealer = folder, sealer

    def put(self, source: BinaryIO, *, limit: int) -> tuple[str, int]:
        """Store a stream's content.

        Args:
            source: seekable; read twice, a piece at a time.
            limit: the most bytes that it may have.

        Returns:
            Its SHA-256 and size.

        Raises:
            AdapterError: if it is longer than the limit, or changes while it is read.
            OutOfDisk: if no space is left; nothing is stored then.
        """
        digest, size = hash_stream(source, limit=limit)
        if self._stored_well(digest, size):
            return digest, size
        path = self._path(digest, sealed=self._sealer is not None)
        source.seek(0)
        checked = _Hashing(source)
        with disk_errors(path), _placed(path) as target:
            if self._sealer is None:
                for piece in iter(lambda: checked.read(PIECE), b""):
                    target.write(piece)
            else:
                plain = io.BufferedReader(checked, PIECE)
                self._sealer.seal_stream(plain, target, context=_context(digest))
            if checked.digest() != digest:
                msg = "A file of an adapter changed while it was read."
                raise AdapterError(msg, hint="Wait until it is whole, then add it again.")
        return digest, size

    @contextmanager
    def open(self, digest: str) -> Iterator[Blob]:
        """Open a blob; what it holds is not compared with the digest (:meth:`check` does).

        Raises:
            AdapterError: if there is none, or it is sealed and no sealer is here.
            AdapterCorrupt: if it is no file, or what is sealed was changed.
        """
        path, sealed = self._find(digest)
        with open_regular(path) as stream:
            if not sealed:
                yield Blob(size=os.fstat(stream.fileno()).st_size, _stream=stream, _sealed=None)
                return
            if self._sealer is None:
                msg = f"Blob {digest[:12]} is sealed and no sealing key is here."
                raise AdapterError(msg, hint="Set FEDSLM_SEALING_KEYS or give the key file.")
            with _sealing_errors():
                reader = self._sealer.reader(stream, context=_context(digest))
            yield Blob(size=reader.size, _stream=stream, _sealed=reader)

    def check(self, digest: str, size: int) -> None:
        """Compare a blob with its digest and size.

        Raises:
            AdapterError: as :meth:`open`.
            AdapterCorrupt: if it is not what it should be.
        """
        found, seen = hashlib.sha256(), 0
        with self.open(digest) as blob:
            if blob.size == size:
                for piece in blob.pieces():
                    found.update(piece)
                    seen += len(piece)
            if seen != size or found.hexdigest() != digest:
                msg = f"Blob {digest[:12]} is damaged."
                raise AdapterCorrupt(msg, hint="Restore the registry's folder from a copy.")

    def digests(self) -> set[str]:
        """Return the digests of all blobs."""
        found = (path.name.removesuffix(SEALED) for path in self._folder.glob("??/*"))
        return {name for name in found if is_digest(name)}

    def strangers(self) -> list[Path]:
        """Return everything that is no blob in its place: left-overs of a crash, or planted."""
        found = []
        for path in self._folder.glob("**/*"):
            digest = path.name.removesuffix(SEALED)
            placed = is_digest(digest) and path.parent == self._folder / digest[:2]
            folder = path.parent == self._folder and path.is_dir() and not path.is_symlink()
            if not (folder or (placed and path.is_file() and not path.is_symlink())):
                found.append(path)
        return found

    def remove(self, digest: str) -> int:
        """Remove a blob in every form; return how many bytes were freed."""
        freed = 0
        for sealed in (False, True):
            path = self._path(digest, sealed=sealed)
            with disk_errors(path):
                try:
                    size = path.lstat().st_size
                    path.unlink()
                except FileNotFoundError:
                    continue
            freed += size
        return freed

    def reseal(self, digest: str, size: int) -> bool:
        """Bring a blob into the form that :meth:`put` writes now; tell whether it changed.

        Raises:
            AdapterCorrupt: if it is not what it should be; it stays as it is then.
        """
        path, sealed = self._find(digest)
        if self._sealer is None:
            return False
        changed = self._is_outdated(path, sealed=sealed)
        if changed:
            self.check(digest, size)
            new = self._path(digest, sealed=True)
            with disk_errors(new), open_regular(path) as stream, _placed(new) as target:
                if sealed:
                    self._sealer.reseal(stream, target, context=_context(digest))
                else:
                    self._sealer.seal_stream(stream, target, context=_context(digest))
        plain = self._path(digest, sealed=False)
        # A crash may have left it beside its sealed form.
        if plain.exists():
            with disk_errors(plain):
                plain.unlink()
            changed = True
        return changed

    def _is_outdated(self, path: Path, *, sealed: bool) -> bool:
        """Tell whether a blob is not sealed with the newest key."""
        if not sealed or self._sealer is None:
            return True
        with open_regular(path) as stream, _sealing_errors():
            return sealed_key_id(stream) != self._sealer.key_ids[0]

    def _stored_well(self, digest: str, size: int) -> bool:
        """Tell whether a blob is there, in the form that is wanted, and whole."""
        if not self._path(digest, sealed=self._sealer is not None).exists():
            return False
        try:
            self.check(digest, size)
        except AdapterError:
            return False
        return True

    def _find(self, digest: str) -> tuple[Path, bool]:
        """Return where a blob is, and whether it is sealed; the sealed form comes first."""
        if is_digest(digest):
            for sealed in (True, False):
                path = self._path(digest, sealed=sealed)
                if path.is_symlink() or path.exists():
                    return path, sealed
        msg = f"There is no blob {digest[:12]!r}."
        raise AdapterError(msg, hint="List what is there: fedslm adapter list")

    def _path(self, digest: str, *, sealed: bool) -> Path:
        """Return the place of a blob."""
        return self._folder / digest[:2] / (digest + (SEALED if sealed else ""))


def hash_stream(source: BinaryIO, *, limit: int) -> tuple[str, int]:
    """Return SHA-256 and size of a stream, reading a piece at a time.

    Raises:
        AdapterError: if it is longer than the limit.
    """
    digest, size = hashlib.sha256(), 0
    for piece in iter(lambda: source.read(PIECE), b""):
        digest.update(piece)
        size += len(piece)
        if not size <= limit:
            msg = f"A file of the adapter has more than {limit} bytes."
            raise AdapterError(msg, hint="It is larger than any adapter may be.")
    return digest.hexdigest(), size


@contextmanager
def _placed(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when all of it is on the disk."""
    for folder in (path.parent.parent, path.parent):
        make_private_folder(folder)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    for folder in (path.parent, path.parent.parent):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _sealing_errors() -> Iterator[None]:
    """Turn what sealing says about a file into what an adapter's user expects."""
    try:
        yield
    except FleetError as error:
        msg = f"A sealed blob cannot be opened: {error.message}"
        raise AdapterCorrupt(msg, hint=error.hint) from error


class _Hashing(io.RawIOBase):
    """A stream that hashes what is read from it."""

    def __init__(self, source: BinaryIO) -> None:
        super().__init__()
        self._source, self._digest = source, hashlib.sha256()

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer and hash what was read."""
        piece = self._source.read(len(buffer))
        buffer[: len(piece)] = piece
        self._digest.update(piece)
        return len(piece)

    def digest(self) -> str:
        """Return the SHA-256 of what was read so far."""
        return self._digest.hexdigest()


def _context(digest: str) -> bytes:
    """Return what a blob is sealed for: no blob opens in the place of another."""
    return f"fedslm-adapter-blob-v1|{digest}".encode()
