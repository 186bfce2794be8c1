"""Signed heads: who stood at the end of a ledger's chain, and with which key.

A hash chain shows that nothing inside it was changed, to whoever knows its end. A signature of the
end, made with a key that is kept away from the ledger, shows that the holder of that key wrote
it. Neither shows that it is the newest: for that, keep a head elsewhere (the anchor).

Ed25519 (RFC 8032) by the ``cryptography`` package. What is signed is the text
``fedslm-ledger-head-v1|seq|hash``, which no other signature of this project can be mistaken for.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.errors import LedgerError, LedgerTampered
from shared.privacy.ledger_store import Head

DOMAIN = "fedslm-ledger-head-v1"
KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedHead:
    """The end of a chain with the signature of whoever wrote it.

    Attributes:
        seq: number of the last entry.
        hash: its hash, 64 hexadecimal digits.
        public_key: Ed25519, 64 hexadecimal digits.
        signature: Ed25519, 128 hexadecimal digits.
    """

    seq: int
    hash: str
    public_key: str
    signature: str

    @property
    def head(self) -> Head:
        """Return the head without its signature."""
        return Head(seq=self.seq, hash=self.hash)


def verify_head(head: SignedHead, *, trusted: str | None = None) -> None:
    """Require that a head was signed by the key that it names.

    Args:
        head: what was received or read.
        trusted: the key that it must be, known from elsewhere; without it the signature only shows
            that whoever made it had *some* key.

    Raises:
        LedgerTampered: if the key is another one or the signature is not valid.
    """
    if trusted is not None and head.public_key != trusted:
        msg = f"head {head.seq} is signed by key {head.public_key[:12]}, expected {trusted[:12]}."
        raise LedgerTampered(msg, hint="Ask the ledger's holder why the key changed.")
    try:
        key = Ed25519PublicKey.from_public_bytes(_unhex(head.public_key, 64))
        key.verify(_unhex(head.signature, 128), _message(head.seq, head.hash))
    except (InvalidSignature, ValueError) as error:
        msg = f"head {head.seq} does not have a valid signature of key {head.public_key[:12]}."
        raise LedgerTampered(msg, hint="Do not rely on this head or its ledger.") from error


class LedgerSigner:
    """Signs heads with an Ed25519 key.

    Args:
        secret: the raw private key, 32 bytes.

    Raises:
        LedgerError: if the key has another length.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            msg = f"a signing key of {len(secret)} bytes, expected {KEY_BYTES}."
            raise LedgerError(msg, hint="Restore the key file from a copy.")
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self._public = self._key.public_key().public_bytes_raw().hex()

    @classmethod
    def load_or_create(cls, path: str | Path) -> LedgerSigner:
        """Read a key file, or make one that only its owner can read.

        Several processes may do this at once; all of them get the same key.

        Args:
            path: 32 raw bytes, mode 600. Keep a copy: a signed ledger cannot be written without it.

        Raises:
            LedgerError: if the file cannot be read or created, is not a key, or may be read by
                others than its owner.
        """
        file = Path(path)
        try:
            if not file.exists():
                _create(file)
            with file.open("rb") as stream:
                mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
                secret = stream.read(KEY_BYTES + 1)
        except OSError as error:
            msg = f"the signing key {file.name} cannot be read or created: {error.strerror}."
            raise LedgerError(
                msg, hint="Check that its folder exists and can be written."
            ) from error
        if mode & 0o077:
            msg = f"the signing key {file.name} has mode {mode:03o}, expected 600."
            raise LedgerError(
                msg, hint="Others may have read it: make a new key, or run chmod 600."
            )
        return cls(secret)

    @property
    def public_key(self) -> str:
        """Return the public key, 64 hexadecimal digits."""
        return self._public

    def sign(self, head: Head) -> SignedHead:
        """Sign the end of a chain; the same head always gets the same signature."""
        signature = self._key.sign(_message(head.seq, head.hash)).hex()
        return SignedHead(
            seq=head.seq, hash=head.hash, public_key=self._public, signature=signature
        )


def _message(seq: int, digest: str) -> bytes:
    """Return what is signed."""
    return f"{DOMAIN}|{seq}|{digest}".encode()


def _unhex(text: str, digits: int) -> bytes:
    """Read lower-case hexadecimal digits of one length, and nothing else.

    Raises:
        ValueError: for any other text.
    """
    if re.fullmatch(rf"[0-9a-f]{{{digits}}}", text) is None:
        msg = f"expected {digits} hexadecimal digits"
        raise ValueError(msg)
    return bytes.fromhex(text)


def _create(path: Path) -> None:
    """Write a new key durably, unless another process was first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
