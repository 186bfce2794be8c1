"""Fetching the adapter that the server wants to be used: decided, downloaded, verified, put in use.

Nothing is fetched before the device's own rules have let the signed manifest and order pass; each
file is compared with its digest as it arrives, and all of them again when they are put in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from client.adapterstore import AdapterStore, InstalledAdapter, Offer
from client.control import ControlClient
from shared.control.fedslm.control.v1 import control_pb2 as pb
from shared.crypto import Signature
from shared.errors import AdapterCorrupt, AdapterUntrusted
from shared.files import disk_errors
from shared.orders import read_order


def fetch_adapter(
    client: ControlClient, store: AdapterStore, *, again: bool = False
) -> InstalledAdapter | None:
    """Take the server's newest order and use the version that it names.

    Args:
        client: a connection to the control service.
        store: the device's adapters.
        again: whether the owner wants a version that they rolled back from.

    Returns:
        The version in use now; None before the server's first order.

    Raises:
        AdapterUntrusted: for a signature, base, verdict or order that is not what it must be.
        AdapterCorrupt: if a file is not the one that the manifest names.
        AdapterIncompatible: if it is no plain LoRA.
        ServerUnreachable: if the server stays away; what was fetched stays for next time.
        OutOfDisk: if no space is left. After any error, what was in use is still in use.
    """
    ordered = client.order()
    if not ordered.order:
        return None
    order_signature = signature_of(ordered.signature)
    wanted = read_order(ordered.order, order_signature, trusted=store.trusted_key)
    found = client.manifest(wanted.digest)
    signature = signature_of(found.signature)
    offer = store.examine(
        found.manifest,
        signature,
        order=ordered.order,
        order_signature=order_signature,
        again=again,
    )
    if offer.digest != wanted.digest:
        msg = f"The server gave adapter {offer.digest[:12]} for {wanted.digest[:12]}."
        raise AdapterUntrusted(msg, hint="Ask the operator to check the registry.")
    files = {} if offer.installed else _fetch(client, store, offer)

    def install() -> InstalledAdapter:
        return store.install(
            found.manifest,
            signature,
            files,
            order=ordered.order,
            order_signature=order_signature,
            again=again,
        )

    try:
        installed = install()
    except AdapterCorrupt:
        if not offer.installed:
            _remove(files)
            raise
        # What was installed is damaged: it is fetched anew.
        files = _fetch(client, store, offer)
        installed = install()
    _remove(files)
    return installed


def _fetch(client: ControlClient, store: AdapterStore, offer: Offer) -> dict[str, bytes | Path]:
    """Download every file of a version beside the others; return where each is."""
    files: dict[str, bytes | Path] = {}
    for entry in offer.files:
        files[entry.name] = path = store.incoming(entry.sha256)
        with disk_errors(path):
            path.touch(mode=0o600)
            with path.open("r+b") as target:
                client.download(entry.sha256, target, size=entry.size)
    return files


def _remove(files: Mapping[str, bytes | Path]) -> None:
    """Remove downloads that were copied, or are worth nothing."""
    for path in files.values():
        if isinstance(path, Path):
            path.unlink(missing_ok=True)


def signature_of(found: pb.Signature) -> Signature:
    """Return a signature as the control service sends it; whether it holds is not checked here."""
    return Signature(
        domain=found.domain,
        sha256=found.sha256,
        public_key=found.public_key,
        signature=found.signature,
    )
