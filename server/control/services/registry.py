"""Released adapters: everyone who is enrolled may list and fetch them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from server.control.identity import Caller
from server.control.refusals import Malformed, NotThere
from server.control.requests import digest, page_size
from server.registry import AdapterRegistry, AdapterVersion
from shared.control.fedslm.control.v1 import control_pb2 as pb
from shared.control.methods import CHUNK_BYTES
from shared.crypto import Signature
from shared.errors import AdapterCorrupt, AdapterError, AdapterUntrusted, FleetError
from shared.sealingkeys import find_sealer

_MAX_PAGE = 100
SEALING_KEYS = "sealing.keys"


class Adapters:
    """The registry's folder, which need not hold anything yet; opened once it does.

    Args:
        folder: of the registry.
        keys: of the server, where the keys that seal files may lie.
        trusted: the public key that signs the registry.
    """

    def __init__(self, folder: Path, *, keys: Path, trusted: str) -> None:
        self._folder = folder
        self._keys = keys
        self._trusted = trusted
        self._lock = threading.Lock()
        self._opened: AdapterRegistry | None = None

    def open(self) -> AdapterRegistry | None:
        """Return the registry; None while there is none.

        Raises:
            FleetError: if there is a registry of another form, or its sealing keys are wrong.
        """
        with self._lock:
            if self._opened is None and self._folder.is_dir() and any(self._folder.iterdir()):
                sealer = find_sealer(self._keys / SEALING_KEYS, os.environ)
                self._opened = AdapterRegistry(self._folder, sealer=sealer, trusted=self._trusted)
            return self._opened

    def base_digest(self) -> str:
        """Return the digest of the base model of the version in use; empty without one.

        What a new device is told is no reason to refuse it: a damaged registry says nothing here.
        """
        try:
            registry = self.open()
            current = None if registry is None else registry.current()
        except (AdapterError, FleetError):
            return ""
        return "" if current is None else str(current.manifest.get("base_digest", ""))


class RegistryService:
    """The service ``Registry``.

    Args:
        adapters: the registry.
    """

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    def list_adapters(
        self, request: pb.ListAdaptersRequest, caller: Caller
    ) -> pb.ListAdaptersResponse:
        """Return a page of versions, newest first; nodes are not shown what is withheld.

        Raises:
            NotThere: if the page is to begin after a version that does not exist.
        """
        registry = self._adapters.open()
        found = () if registry is None else registry.versions()
        shown = [v for v in found if caller.role != "node" or v.state != "withheld"]
        start = 0
        if request.after:
            after = digest(request.after)
            start = next((n for n, v in enumerate(shown, start=1) if v.digest == after), -1)
            if start < 0:
                raise _nothing()
        page = shown[start : start + page_size(request.page_size, _MAX_PAGE)]
        more = start + len(page) < len(shown)
        return pb.ListAdaptersResponse(adapters=[_adapter(v) for v in page], more=more)

    def get_manifest(
        self, request: pb.GetManifestRequest, caller: Caller
    ) -> pb.GetManifestResponse:
        """Return what was signed about a version.

        Raises:
            NotThere: if there is no such version, or none is in use.
            AdapterUntrusted: to a node, if it is withheld.
        """
        registry = self._registry()
        version = registry.current() if not request.digest else _get(registry, request.digest)
        if version is None:
            raise _nothing()
        if version.state == "withheld" and caller.role == "node":
            msg = "this adapter is withheld."
            raise AdapterUntrusted(msg, hint="It is kept as evidence, and never given out.")
        return pb.GetManifestResponse(
            digest=version.digest,
            manifest=version.manifest_bytes,
            signature=_signature(version.signature),
            state=version.state,
            size=version.facts.size,
        )

    def get_order(self, request: pb.GetOrderRequest, caller: Caller) -> pb.GetOrderResponse:
        """Return the newest order; nothing before the first."""
        del request, caller
        registry = self._adapters.open()
        signed = None if registry is None else registry.order()
        if signed is None:
            return pb.GetOrderResponse()
        return pb.GetOrderResponse(
            order=signed.order.to_bytes(), signature=_signature(signed.signature)
        )

    def download(
        self, request: pb.DownloadRequest, caller: Caller
    ) -> Iterator[pb.DownloadResponse]:
        """Yield an adapter or a file of one from an offset on; at its end, one empty part.

        Raises:
            NotThere: if there is nothing of this digest.
            Malformed: for an offset beyond the end.
            AdapterUntrusted: for what is withheld.
        """
        del caller
        registry, wanted = self._registry(), digest(request.digest)
        try:
            total = registry.size(wanted)
        except (AdapterCorrupt, AdapterUntrusted):
            raise
        except AdapterError as error:
            raise _nothing() from error
        if request.offset > total:
            msg = f"offset={request.offset}, expected at most {total}."
            raise Malformed(msg, hint="Begin again.")
        return _parts(registry, wanted, request.offset, total)

    def _registry(self) -> AdapterRegistry:
        """Return the registry.

        Raises:
            NotThere: while there is none.
        """
        registry = self._adapters.open()
        if registry is None:
            raise _nothing()
        return registry


def _parts(
    registry: AdapterRegistry, wanted: str, offset: int, total: int
) -> Iterator[pb.DownloadResponse]:
    """Yield content piece by piece."""
    if offset == total:
        yield pb.DownloadResponse(offset=offset, total=total)
    while offset < total:
        data = registry.read(wanted, offset, min(CHUNK_BYTES, total - offset))
        yield pb.DownloadResponse(offset=offset, data=data, total=total)
        offset += len(data)


def _get(registry: AdapterRegistry, wanted: str) -> AdapterVersion:
    """Return a version.

    Raises:
        NotThere: if there is none.
    """
    try:
        return registry.get(digest(wanted))
    except (AdapterCorrupt, AdapterUntrusted):
        raise
    except AdapterError as error:
        raise _nothing() from error


def _nothing() -> NotThere:
    """Return the error for what is not there."""
    msg = "there is no such adapter."
    return NotThere(msg, hint="List what is there: fedslm adapter list")


def _adapter(version: AdapterVersion) -> pb.Adapter:
    """Return a version's line in a list."""
    return pb.Adapter(
        digest=version.digest,
        name=str(version.manifest.get("name", "")),
        created_at=version.created_at,
        state=version.state,
        current=version.state == "current",
    )


def _signature(signature: Signature) -> pb.Signature:
    """Return a signature."""
    return pb.Signature(
        domain=signature.domain,
        sha256=signature.sha256,
        public_key=signature.public_key,
        signature=signature.signature,
    )
