"""What every message is: a frozen dataclass with a context and one binary form.

Five messages go to the server (:mod:`shared.privacy.secagg.uploads`): ``Advertisement``,
``Shares``, ``MaskedInput``, ``Confirmation``, ``Reveals``. Four come from it
(:mod:`shared.privacy.secagg.downloads`): ``KeyList``, ``SharesForYou``, ``SurvivorList``,
``Confirmations``. There is nothing else: no count of examples, no loss, no time, no threshold.

A message for another context than its receiver's is refused before anything else is looked at.
Tables are ascending by client and name each client once; the constructors require it, so a message
that exists is well formed. Whether it is *true* is for :mod:`shared.privacy.secagg.session` and
:mod:`shared.privacy.secagg.coordinator` to find out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from shared.privacy.secagg.codec import CONTEXT_BYTES, Reader, require_width, seal, unseal


@dataclass(frozen=True, slots=True, kw_only=True)
class Message(ABC):
    """What all messages have in common.

    Attributes:
        context: 32 bytes, the digest of everything agreed on before this message.
    """

    KIND: ClassVar[int]

    context: bytes

    def __post_init__(self) -> None:
        require_width("context", self.context, CONTEXT_BYTES)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return seal(self.KIND, self.context + self._body())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a message.

        Raises:
            SchemaMismatch: if the bytes are damaged, of another kind or version, or not canonical.
        """
        reader = unseal(cls.KIND, data)
        message = cls._read(reader.take(CONTEXT_BYTES), reader)
        reader.end()
        return message

    @abstractmethod
    def _body(self) -> bytes:
        """Return the bytes after the context."""

    @classmethod
    @abstractmethod
    def _read(cls, context: bytes, reader: Reader) -> Self:
        """Read what follows the context."""
