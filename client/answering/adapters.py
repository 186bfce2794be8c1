"""Which adapter a device answers with: the newest that verifies, and the owner's own on top."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from client.adapterrules import AdapterPolicy
from client.adapterstore import AdapterStore
from client.personalstore import PersonalFacts, PersonalStore
from shared.errors import AdapterError, AdapterUntrusted, UsageError

if TYPE_CHECKING:
    from client.adapterfiles import VerifiedAdapter
    from client.answering.engine import Engine
    from client.home import DeviceHome
    from shared.manifest import AdapterManifest

BASE_ONLY = "To get answers without an adapter: --base-only, or base_only=True."


@dataclass(slots=True)
class Notes:
    """What the user should know; each note is told at once, and kept."""

    tell: Callable[[str], None]
    said: list[str] = field(default_factory=list)

    def add(self, note: str) -> None:
        """Tell and keep a note."""
        self.said.append(note)
        self.tell(note)


def store_of(
    device: DeviceHome | None, base_digest: str, policy: AdapterPolicy | None
) -> AdapterStore:
    """Return the verified adapters of a device.

    Raises:
        AdapterUntrusted: if the device knows no key that signs adapters.
    """
    key = None if device is None else device.config.adapter_key
    if device is None or key is None:
        msg = "This device knows no key that signs adapters."
        raise AdapterUntrusted(msg, hint=f"Enroll again to get it. {BASE_ONLY}")
    asked = policy or AdapterPolicy.of_owner(device.policy)
    return AdapterStore(device.adapters, trusted_key=key, base_digest=base_digest, policy=asked)


def wear_newest(
    engine: Callable[[], Engine], store: AdapterStore, base_digest: str, notes: Notes
) -> VerifiedAdapter:
    """Put the newest adapter that verifies on the base; say which were refused.

    Args:
        engine: returns the runtime; is not called before an adapter has verified.
        store: the verified adapters.
        base_digest: of the base.
        notes: is told.

    Raises:
        AdapterUntrusted: if there is none, or none verifies.
    """
    found = store.candidates()
    for digest in found:
        try:
            verified = store.load(digest)
            _require_base(verified, base_digest)
            engine().wear(verified.factors, verified.terms)
        except AdapterError as error:
            notes.add(f"Adapter {digest[:12]} is not used [{error.code}]: {error.message}")
            continue
        if notes.said:
            notes.add(f"Going on with the adapter before it, {digest[:12]}.")
        return verified
    if not found:
        msg = "No adapter is installed on this device."
        raise AdapterUntrusted(msg, hint=f"A running node fetches the newest. {BASE_ONLY}")
    msg = f"None of {len(found)} installed adapters verifies: {' '.join(notes.said)}"
    raise AdapterUntrusted(msg, hint=f"Fetch the newest again. {BASE_ONLY}")


def own_store(device: DeviceHome | None, *, base_only: bool) -> PersonalStore:
    """Return where the owner's own adapter is.

    Raises:
        UsageError: if there is none, or no adapter is wanted at all.
    """
    if base_only or device is None:
        msg = "A personal adapter goes on top of a device's shared one."
        raise UsageError(msg, hint="Leave out --base-only, and give the device's folder.")
    store = PersonalStore(device.personal)
    if store.facts() is None:
        msg = "There is no personal adapter on this device."
        raise UsageError(msg, hint="Make it: fedslm client personalise")
    return store


def wear_own(
    store: PersonalStore, engine: Engine, verified: VerifiedAdapter, notes: Notes
) -> PersonalFacts | None:
    """Put the owner's own factors in the place of the shared ones, unless they are stale."""
    manifest: AdapterManifest = verified.manifest
    found = store.load({name: values.shape for name, values in verified.factors.items()})
    if found is None or found[0].adapter != manifest.digest:
        made_on = "another" if found is None else found[0].adapter[:12]
        note = f"The personal adapter is not used: it was made on adapter {made_on}, and "
        note += f"{manifest.digest[:12]} is in use. Make it again: fedslm client personalise"
        notes.add(note)
        return None
    facts, factors = found
    engine.wear(factors, verified.terms)
    return facts


def _require_base(verified: VerifiedAdapter, base_digest: str) -> None:
    """Refuse an adapter of another base, also where its store does not know the base."""
    if verified.manifest.base_digest != base_digest:
        msg = f"adapter {verified.digest[:12]}: it belongs to another base model."
        raise AdapterUntrusted(msg)
