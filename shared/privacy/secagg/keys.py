"""Identities, signatures, key agreement, and the encryption of shares.

Ed25519 (RFC 8032), X25519 (RFC 7748), HKDF-SHA256 (RFC 5869) and ChaCha20-Poly1305 (RFC 8439), all
by the ``cryptography`` package. Every use has a purpose of its own in what is signed or derived,
together with a digest of everything that was agreed on so far, so that nothing made in one place
or one session means anything in another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Final, NoReturn, Self

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.errors import PrivacyError, SecureAggregationError
from shared.privacy.secagg.codec import require_table, require_width, write_integer

KEY_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16

_DOMAIN: Final = b"fedslm-secagg-v1|"
# Each share key encrypts one message, so the nonce needs no variety.
_NONCE = bytes(12)


class Identity:
    """The long-lived signing key of one client.

    Attributes:
        public_key: 32 bytes, what rosters hold.
    """

    __slots__ = ("_key", "public_key")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key: bytes = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Self:
        """Return a new identity from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, raw: bytes) -> Self:
        """Return the identity with a stored private key.

        Args:
            raw: 32 bytes.

        Raises:
            SchemaMismatch: for another length.
        """
        require_width("identity key", raw, KEY_BYTES)
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    def private_bytes(self) -> bytes:
        """Return the 32 secret bytes, to be stored where only the client can read them."""
        return self._key.private_bytes_raw()

    def sign(self, purpose: str, context: bytes, client: int, content: bytes = b"") -> bytes:
        """Sign for one purpose.

        Args:
            purpose: which message of the protocol.
            context: 32 bytes that stand for everything agreed on so far.
            client: the signer's index.
            content: what else is signed.

        Returns:
            64 bytes.
        """
        return self._key.sign(_signed(purpose, context, client, content))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse copy and pickle."""
        msg = "an Identity cannot be copied or pickled."
        raise PrivacyError(msg, hint="Use private_bytes(), knowingly.")

    def __repr__(self) -> str:
        """Return the public key alone."""
        return f"Identity(public_key={self.public_key.hex()})"


class Roster:
    """The identity keys that a client holds of all clients; never taken from the server.

    Whoever can write to a client's roster can sit in the middle of all of its keys. A roster may
    have more clients than a cohort. At most ``(1 - h) * min_cohort`` of its identities may collude
    if the server chooses the cohort: then no choice leaves fewer than a share h honest.

    Args:
        keys: client index to Ed25519 public key (32 bytes), each key once.

    Raises:
        SchemaMismatch: for an index out of range or a key of another length.
        SecureAggregationError: if two clients have one key, or a key is no point of the curve.
    """

    __slots__ = ("_digest", "_keys")

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        rows = tuple(sorted(keys.items()))
        require_table("roster", rows, KEY_BYTES)
        owners: dict[bytes, int] = {}
        for client, key in rows:
            if key in owners:
                msg = f"client={client} and client={owners[key]} have one identity key."
                raise SecureAggregationError(msg)
            owners[key] = client
        self._keys = dict(rows)
        parts = (write_integer(client) + key for client, key in rows)
        self._digest = hashlib.sha256(_DOMAIN + b"roster" + b"".join(parts)).hexdigest()

    def __contains__(self, client: object) -> bool:
        """Tell whether a client is known."""
        return client in self._keys

    def __iter__(self) -> Iterator[int]:
        """Iterate over the clients, ascending."""
        return iter(self._keys)

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self._keys)

    def public_key(self, client: int) -> bytes:
        """Return a client's identity key.

        Raises:
            SecureAggregationError: if the client is not in the roster.
        """
        if client not in self._keys:
            msg = f"client={client} is not in the roster of {len(self)} clients."
            raise SecureAggregationError(msg)
        return self._keys[client]

    def digest(self) -> str:
        """Return the SHA-256 digest of indices and keys, 64 hexadecimal digits."""
        return self._digest

    def verify(
        self, purpose: str, context: bytes, client: int, signature: bytes, content: bytes = b""
    ) -> None:
        """Require that a client signed something for one purpose.

        Raises:
            SecureAggregationError: if the client is unknown or the signature is not its own.
        """
        signed = _signed(purpose, context, client, content)
        if not _fits(self.public_key(client), signature, signed):
            msg = (
                f"client={client}: the signature of its {purpose!r} message does not fit its "
                "identity in the roster."
            )
            hint = "Signed by somebody else, for another run, round, session or plan, or altered."
            raise SecureAggregationError(msg, hint=hint)


@lru_cache(maxsize=16_384)
def _fits(public: bytes, signature: bytes, signed: bytes) -> bool:
    """Tell whether a signature fits; kept, because clients of one process check the same ones."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def new_private_key() -> bytes:
    """Return a new X25519 private key, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> bytes:
    """Return the public key of an X25519 private key, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    """Return the X25519 secret of two parties, 32 bytes.

    Raises:
        SecureAggregationError: if the public key is a point of small order, which would make the
            secret known to all.
    """
    return agreement(private)(public)


def agreement(private: bytes) -> Callable[[bytes], bytes]:
    """Return :func:`agree` for one private key; reading that costs as much as agreeing with one."""
    mine = X25519PrivateKey.from_private_bytes(private)

    def agree_with(public: bytes) -> bytes:
        try:
            return mine.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            msg = "a public key is a point of small order."
            raise SecureAggregationError(msg, hint="No honest client makes such a key.") from error

    return agree_with


def derive(secret: bytes, purpose: str, view: bytes, content: bytes, length: int) -> bytes:
    """Derive key bytes with HKDF-SHA256.

    Args:
        secret: 32 bytes with 256 bits of entropy, or an X25519 secret.
        purpose: what the key is for.
        view: 32 bytes that stand for everything agreed on so far; the salt.
        content: who uses it.
        length: number of bytes.

    Returns:
        The key bytes.
    """
    info = _DOMAIN + purpose.encode() + b"|" + content
    return HKDF(hashes.SHA256(), length, salt=view, info=info).derive(secret)


def digest(purpose: str, *parts: bytes) -> bytes:
    """Return SHA-256 over parts of public length, 32 bytes."""
    state = hashlib.sha256(_DOMAIN + purpose.encode() + b"|")
    for part in parts:
        state.update(part)
    return state.digest()


def encrypt(secret: bytes, view: bytes, sender: int, receiver: int, shares: bytes) -> bytes:
    """Encrypt what one client shares with another.

    Args:
        secret: the X25519 secret of the two.
        view: digest of the announcement.
        sender: who encrypts.
        receiver: who decrypts.
        shares: the plaintext.

    Returns:
        The ciphertext, 16 bytes longer.
    """
    ends = write_integer(sender) + write_integer(receiver)
    key = derive(secret, "share", view, ends, KEY_BYTES)
    return ChaCha20Poly1305(key).encrypt(_NONCE, shares, view + ends)


def decrypt(secret: bytes, view: bytes, sender: int, receiver: int, ciphertext: bytes) -> bytes:
    """Decrypt what one client shared with another.

    Raises:
        SecureAggregationError: if it was altered, or made by or for somebody else or elsewhere.
    """
    ends = write_integer(sender) + write_integer(receiver)
    key = derive(secret, "share", view, ends, KEY_BYTES)
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, ciphertext, view + ends)
    except InvalidTag as error:
        msg = f"the shares of client={sender} for client={receiver} are not authentic."
        hint = "Altered on the way, or not made for this announcement."
        raise SecureAggregationError(msg, hint=hint) from error


def _signed(purpose: str, context: bytes, client: int, content: bytes) -> bytes:
    """Return the bytes that a signature covers."""
    return _DOMAIN + purpose.encode() + b"|" + context + write_integer(client) + content
