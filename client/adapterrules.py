"""Which adapters a device takes: what its owner demands, and what it remembers against downgrades.

A network or a server's disk may be made to offer what was good once. A device therefore remembers
the newest version and the newest order that it took. Without orders it takes larger sequence
numbers only; once it has seen an order it goes by orders alone, and each must be newer than the
one before. A device that has no memory yet cannot tell old from new.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from shared.documents import digest_field, label_field, number_field, record, time_field, utc_now
from shared.errors import AdapterUntrusted, FedSLMError, InvalidValue
from shared.manifest import AdapterManifest
from shared.orders import Order

MOST_REFUSALS = 16
MOST_DECLINED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPolicy:
    """What the owner of a device demands of an adapter, besides the server's signature.

    Attributes:
        verdicts: audit verdicts that are good enough.
        unaudited: whether an adapter without an audit is.
        audit_key: the public key that must have signed the audit report; None accepts any and none.
        max_bytes: the most that all files of an adapter may have together.
    """

    verdicts: frozenset[str] = frozenset({"consistent", "inconclusive"})
    unaudited: bool = False
    audit_key: str | None = None
    max_bytes: int = 1 << 30

    @classmethod
    def of_owner(cls, policy: Path) -> AdapterPolicy:
        """Return what the owner's policy file demands; what is usual without one.

        Raises:
            ConfigError: if the file is damaged: nothing is used then.
        """
        from client.policyfile import read_adapters_section

        asked = read_adapters_section(policy)
        return cls(
            verdicts=frozenset(asked.verdicts),
            unaudited=asked.unaudited,
            audit_key=asked.audit_key,
            max_bytes=asked.max_megabytes * 1_000_000,
        )

    def check(self, manifest: AdapterManifest, *, base_digest: str | None) -> None:
        """Require an adapter of this base that the owner would take.

        Raises:
            AdapterUntrusted: with the first reason why not.
        """
        if manifest.withheld:
            _refuse(manifest, "the server withholds it", "It is evidence, not for use.")
        if base_digest is not None and manifest.base_digest != base_digest:
            found = f"base={manifest.base_digest[:12]}, expected {base_digest[:12]}"
            _refuse(manifest, found, "It belongs to another base model.")
        self._check_audit(manifest)
        if not manifest.size <= self.max_bytes:
            found = f"it has {manifest.size} bytes, expected at most {self.max_bytes}"
            _refuse(manifest, found, "Allow more, or ask for a smaller adapter.")

    def _check_audit(self, manifest: AdapterManifest) -> None:
        """Require a verdict that is good enough, by the right auditor."""
        if manifest.audit is None:
            if not self.unaudited:
                _refuse(manifest, "no audit of it was made", "Ask for an audited one.")
            return
        if manifest.audit.verdict not in self.verdicts or manifest.audit.verdict == "violation":
            found = f"audit verdict={manifest.audit.verdict}"
            _refuse(manifest, found, f"Allowed: {', '.join(sorted(self.verdicts))}.")
        if self.audit_key is not None and manifest.audit.signed_by != self.audit_key:
            found = "its audit is not signed with the key that is trusted for audits"
            _refuse(manifest, found, "Ask whoever audits for this server.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An adapter that was refused.

    Attributes:
        digest: of its manifest, or of the bytes that were offered as one.
        code: of the error.
        reason: the error's message.
        at: UTC, ``YYYY-MM-DDTHH:MM:SSZ``.
    """

    digest: str
    code: str
    reason: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a device remembers about adapters.

    Attributes:
        current: digest of the adapter in use; None before the first.
        previous: digest of the one that was in use before it.
        sequence: the largest sequence number that was taken without an order.
        order: the largest number of an order that was taken, or that a taken manifest knew of.
        order_hash: of that order, if it was taken.
        declined: digests that the owner rolled back from.
        refusals: the last few.
    """

    current: str | None = None
    previous: str | None = None
    sequence: int = 0
    order: int = 0
    order_hash: str | None = None
    declined: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidValue: for the first one that is not as described.
        """
        number_field("sequence", self.sequence, 0)
        number_field("order", self.order, 0)
        for name in ("current", "previous", "order_hash"):
            if getattr(self, name) is not None:
                digest_field(name, getattr(self, name))
        for digest in self.declined:
            digest_field("declined", digest)
        for refusal in self.refusals:
            digest_field("refused digest", refusal.digest)
            label_field("refusal code", refusal.code)
            time_field("refused", refusal.at)

    @classmethod
    def from_dict(cls, data: object) -> Memory:
        """Read the JSON form.

        Raises:
            InvalidValue: if it is not one.
        """
        found = record(data, cls, "the memory of adapters")
        declined, refusals = found["declined"], found["refusals"]
        if not (isinstance(declined, list) and isinstance(refusals, list)):
            msg = "the memory of adapters holds no lists where lists are expected."
            raise InvalidValue(msg)
        found["declined"] = tuple(declined)
        found["refusals"] = tuple(
            Refusal(**record(item, Refusal, "a refusal", versioned=False)) for item in refusals
        )
        return cls(**found)

    def check(self, manifest: AdapterManifest, order: Order | None, *, again: bool) -> None:
        """Require that a version is newer than what is known, or wanted by a newer order.

        Args:
            manifest: of the version; its signature was checked.
            order: the order that came with it; its signature was checked.
            again: whether the owner wants a version that they rolled back from.

        Raises:
            AdapterUntrusted: if it is not.
        """
        if manifest.digest in self.declined and not again:
            _refuse(manifest, "the owner of this device rolled back from it", "Ask for it again.")
        if order is not None:
            self._check_order(manifest, order)
        elif manifest.digest != self.current:
            if self.order_hash is not None:
                found = f"it comes without an order, after order {self.order} was taken"
                _refuse(manifest, found, "Ask the server for its newest order.")
            if not manifest.sequence > self.sequence:
                found = f"sequence={manifest.sequence}, expected above {self.sequence}"
                _refuse(manifest, found, "Going back needs an order that the server signed.")

    def _check_order(self, manifest: AdapterManifest, order: Order) -> None:
        """Require an order about this version that is new, or the one that was taken last."""
        if (order.digest, order.sequence) != (manifest.digest, manifest.sequence):
            found = f"order {order.number} that came with it is about another one"
            _refuse(manifest, found, "Ask the server for its newest order.")
        known = order.number == self.order and order.hash == self.order_hash
        if not (known or order.number > self.order):
            found = f"order {order.number} that came with it is not newer than {self.order}"
            _refuse(manifest, found, "An old order was played back, or the server lost some.")

    def taking(self, manifest: AdapterManifest, order: Order | None) -> Memory:
        """Return what is remembered once a version is in use."""
        digest = manifest.digest
        known = max(self.order, manifest.order)
        hashed = self.order_hash if known == self.order else None
        if order is not None:
            known, hashed = order.number, order.hash
        return replace(
            self,
            current=digest,
            previous=self.previous if digest == self.current else self.current,
            sequence=max(self.sequence, manifest.sequence),
            order=known,
            order_hash=hashed,
            declined=tuple(d for d in self.declined if d != digest),
        )

    def back(self) -> Memory:
        """Return what is remembered once the owner went back to the previous version.

        Raises:
            AdapterUntrusted: if there is none.
        """
        if self.current is None or self.previous is None:
            msg = "There is no adapter to go back to."
            raise AdapterUntrusted(msg, hint="The base model answers without one: --base-only.")
        declined = (*self.declined, self.current)[-MOST_DECLINED:]
        return replace(self, current=self.previous, previous=None, declined=declined)

    def refusing(self, digest: str, error: FedSLMError) -> Memory:
        """Return what is remembered once something was refused."""
        refusal = Refusal(digest=digest, code=error.code, reason=error.message, at=utc_now())
        return replace(self, refusals=(*self.refusals, refusal)[-MOST_REFUSALS:])


def needs_order(memory: Memory) -> bool:
    """Tell whether a device goes by orders alone."""
    return memory.order_hash is not None


def _refuse(manifest: AdapterManifest, found: str, hint: str) -> NoReturn:
    """Raise the refusal of an adapter."""
    msg = f"adapter {manifest.digest[:12]}: {found}."
    raise AdapterUntrusted(msg, hint=hint)
