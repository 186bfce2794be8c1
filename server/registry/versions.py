"""A version of an adapter as the registry shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.registry.history import SignedOrder, stack_of
from shared.canonical import canonical_json
from shared.crypto import Signature
from shared.errors import ReleaseRefused
from shared.manifest import AdapterManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVersion:
    """A version of an adapter.

    Attributes:
        digest: SHA-256 of the manifest's canonical JSON.
        manifest: the manifest's JSON form.
        signature: of the digest, for "fedslm-adapter-v1".
        created_at: UTC, ``YYYY-MM-DDTHH:MM:SSZ``.
        state: "current", "released" (was in use), "registered" (never was), or "withheld".
    """

    digest: str
    manifest: Mapping[str, Any]
    signature: Signature
    created_at: str
    state: str

    @property
    def manifest_bytes(self) -> bytes:
        """The bytes whose SHA-256 is the digest: what a device is given."""
        return canonical_json(dict(self.manifest)).encode()

    @property
    def facts(self) -> AdapterManifest:
        """The manifest as an object."""
        return AdapterManifest.from_dict(self.manifest)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that commands print."""
        return {
            "digest": self.digest,
            "state": self.state,
            "created_at": self.created_at,
            "manifest": dict(self.manifest),
            "signature": self.signature.to_dict(),
        }


def version(
    manifest: AdapterManifest, signature: Signature, states: Mapping[str, str]
) -> AdapterVersion:
    """Return a version with its state."""
    state = "withheld" if manifest.withheld else states.get(signature.sha256, "registered")
    return AdapterVersion(
        digest=signature.sha256,
        manifest=manifest.to_dict(),
        signature=signature,
        created_at=manifest.created,
        state=state,
    )


def states_of(orders: Sequence[SignedOrder]) -> dict[str, str]:
    """Return the states of versions that orders put in use."""
    stack = stack_of(orders)
    ordered = {signed.order.digest for signed in orders}
    return {digest: "current" if digest in stack[-1:] else "released" for digest in ordered}


def content(manifest: AdapterManifest) -> tuple[object, ...]:
    """Return what makes two versions the same."""
    return (
        manifest.name,
        manifest.base_digest,
        manifest.plan_digest,
        manifest.ledger_head,
        manifest.parent,
        manifest.files,
        manifest.privacy,
        manifest.audit,
        manifest.withheld,
    )


def require_usable(manifest: AdapterManifest, *, unaudited: bool) -> None:
    """Refuse to put in use what is withheld or was not audited."""
    name = manifest.digest[:12]
    if manifest.withheld:
        msg = f"adapter {name} is withheld: verdict={manifest.verdict}."
        raise ReleaseRefused(msg, hint="It is kept as evidence, and never put in use.")
    if manifest.audit is None and not unaudited:
        msg = f"adapter {name} has no audit report about its weights."
        raise ReleaseRefused(msg, hint="Run `fedslm audit run`, then add it again.")
