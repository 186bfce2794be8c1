"""The manifests of a registry: ``versions/DIGEST.json``, written once and never changed."""

from __future__ import annotations

from pathlib import Path

from server.registry.history import read_json, to_json
from shared.canonical import canonical_json
from shared.crypto import Signature, SigningKey
from shared.documents import LARGEST_DOCUMENT, is_digest
from shared.errors import AdapterCorrupt, AdapterError, AdapterUntrusted, InvalidValue
from shared.files import disk_errors
from shared.manifest import AdapterManifest, read_manifest, sign_manifest
from shared.privatefiles import create_private, make_private_folder

Signed = tuple[AdapterManifest, Signature]


class Manifests:
    """Reads and writes manifests; whoever writes holds the registry's lock.

    Args:
        folder: made when the first manifest is written.
        trusted: the public key that signs them.
    """

    def __init__(self, folder: Path, *, trusted: str) -> None:
        self._folder, self._trusted = folder, trusted
        self._known: dict[str, Signed] = {}

    def get(self, digest: str) -> Signed:
        """Return a manifest; it never changes, so it is read once."""
        if digest not in self._known:
            self._known[digest] = self.read(digest)
        return self._known[digest]

    def all(self) -> dict[str, Signed]:
        """Return all manifests by digest; those that are gone are forgotten."""
        there = self.digests()
        for digest in set(self._known) - set(there):
            self._known.pop(digest, None)
        return {digest: self.get(digest) for digest in there}

    def digests(self) -> list[str]:
        """Return the digests that manifest files are named by; nothing is opened."""
        names = [path.stem for path in self._folder.glob("*.json")]
        return sorted(name for name in names if is_digest(name))

    def parts(self, digest: str) -> list[tuple[str, int]]:
        """Return blobs and sizes of what a digest names: a whole version, or one file of one.

        Raises:
            AdapterError: if it names nothing.
            AdapterUntrusted: if it belongs to withheld versions alone.
        """
        if not is_digest(digest):
            msg = f"digest={digest[:12]!r}, expected 64 lower-case hexadecimal digits."
            raise AdapterError(msg)
        withheld = False
        for manifest, signature in self.all().values():
            parts = [(entry.sha256, entry.size) for entry in manifest.files]
            if signature.sha256 != digest:
                parts = [part for part in parts if part[0] == digest][:1]
            if parts and not manifest.withheld:
                return parts
            withheld = withheld or bool(parts)
        if withheld:
            msg = f"adapter {digest[:12]} is withheld."
            raise AdapterUntrusted(msg, hint="It is kept as evidence, and never given out.")
        msg = f"There is no adapter and no file {digest[:12]!r}."
        raise AdapterError(msg, hint="List what is there: fedslm adapter list")

    def strangers(self) -> list[Path]:
        """Return what is in the folder and no manifest in its place."""
        return [
            path
            for path in self._folder.glob("*")
            if path.is_symlink() or path.suffix != ".json" or not is_digest(path.stem)
        ]

    def read(self, digest: str) -> Signed:
        """Read a manifest from the disk, whatever is remembered of it.

        Raises:
            AdapterError: if there is none.
            AdapterCorrupt: if it is damaged; AdapterUntrusted if it is not signed.
        """
        path = self._path(digest)
        if not path.exists():
            msg = f"There is no adapter {digest[:12]!r}."
            raise AdapterError(msg, hint="List what is there: fedslm adapter list")
        found = read_json(path, largest=2 * LARGEST_DOCUMENT)
        try:
            signature = Signature.from_dict(found["signature"])
            data = canonical_json(found["manifest"]).encode()
        except (KeyError, AttributeError, InvalidValue) as error:
            msg = f"adapter {digest[:12]}: its manifest is damaged."
            raise AdapterCorrupt(msg, hint="Restore the registry's folder from a copy.") from error
        manifest = read_manifest(data, signature, trusted=self._trusted)
        if signature.sha256 != digest:
            msg = f"adapter {digest[:12]}: its file holds adapter {signature.sha256[:12]}."
            raise AdapterCorrupt(msg, hint="Restore the registry's folder from a copy.")
        return manifest, signature

    def write(self, manifest: AdapterManifest, signer: SigningKey) -> None:
        """Write the file that makes a version exist."""
        make_private_folder(self._folder)
        signature = sign_manifest(manifest, signer)
        value = {"manifest": manifest.to_dict(), "signature": signature.to_dict()}
        create_private(self._path(manifest.digest), to_json(value))

    def remove(self, digest: str) -> None:
        """Take a manifest away.

        Raises:
            RunFolderError: if it cannot be removed.
        """
        path = self._path(digest)
        with disk_errors(path):
            path.unlink()
        self._known.pop(digest, None)

    def _path(self, digest: str) -> Path:
        """Return where a manifest is."""
        if not is_digest(digest):
            msg = f"digest={digest[:12]!r}, expected 64 lower-case hexadecimal digits."
            raise AdapterError(msg)
        return self._folder / f"{digest}.json"
