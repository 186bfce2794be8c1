"""Signed heads: who stood at the end of a ledger's chain, and with which key.

A hash chain shows that nothing inside it was changed, to whoever knows its end. A signature of the
end, made with a key that is kept away from the ledger, shows that the holder of that key wrote
it. Neither shows that it is the newest: for that, keep a head elsewhere (the anchor).

Ed25519 (RFC 8032) by the ``cryptography`` package. What is signed is the text
``fedslm-ledger-head-v1|seq|hash``, which no other signature of this project can be mistaken for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.crypto import KEY_BYTES, read_or_create_secret, signature_holds
from shared.errors import LedgerError, LedgerTampered
from shared.privacy.ledger_store import Head

DOMAIN = "fedslm-ledger-head-v1"


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
    if not signature_holds(head.public_key, head.signature, _message(head.seq, head.hash)):
        msg = f"head {head.seq} does not have a valid signature of key {head.public_key[:12]}."
        raise LedgerTampered(msg, hint="Do not rely on this head or its ledger.")


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
        return cls(
            read_or_create_secret(
                Path(path),
                error=LedgerError,
                hint="Check that its folder exists and can be written.",
            )
        )

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
