"""What a version of an adapter is, as its server signs it: one canonical JSON object.

The digest of a version is the SHA-256 of the manifest's canonical JSON; the manifest names every
file by size and SHA-256, so that one signature stands for all of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shared.canonical import canonical_json, sha256_hex
from shared.crypto import Signature, SigningKey
from shared.documents import (
    SCHEMA,
    check_signed,
    digest_field,
    is_label,
    label_field,
    load_object,
    number_field,
    record,
    refuse_field,
    time_field,
)
from shared.errors import AdapterCorrupt, InvalidValue

ADAPTER_DOMAIN = "fedslm-adapter-v1"

# The names of PEFT's format, of the run's manifest, and of what the release gate writes.
WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
RUN_MANIFEST = "fedslm.json"
REPORT = "audit.json"
REPORT_SIGNATURE = "audit.sig.json"
RELEASE = "release.json"
NEEDED = (PEFT_CONFIG, WEIGHTS)
OPTIONAL = (RUN_MANIFEST, REPORT, REPORT_SIGNATURE, RELEASE)

MOST_FILES = 16
LARGEST_WEIGHTS = 1 << 30
LARGEST_OTHER = 1 << 24

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,79}(?:\.[A-Za-z0-9_\-]{1,20}){0,3}")
_RESERVED = {"manifest.json", "signature.json", "order.json"}
_VERDICTS = {"consistent", "inconclusive", "violation"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file of an adapter: its plain name, bytes, and SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """What is claimed about an adapter, as in ``release.json``; None where nothing is claimed.

    Attributes:
        mode: who added noise ("example", "client-central", "client-distributed", "none").
        epsilon: spent by all releases of the run; worth nothing without the next three.
        delta: of that epsilon.
        unit: "example" or "client".
        neighboring_relation: "add-or-remove-one" or "replace-one".
    """

    mode: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    unit: str | None = None
    neighboring_relation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """The audit report that the registry saw.

    Attributes:
        sha256: digest of its canonical form.
        verdict: "consistent", "inconclusive" or "violation".
        profile: which audits were asked for.
        signed_by: public key of a signature that held; None without one.
    """

    sha256: str
    verdict: str
    profile: str | None = None
    signed_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterManifest:
    """A version of an adapter.

    Attributes:
        name: what the line of adapters is called (a scenario's name).
        sequence: number of the version in its registry, from 1; later versions have larger ones.
        order: number of the last order when it was added; 0 before the first.
        created: UTC, ``YYYY-MM-DDTHH:MM:SSZ``.
        base_digest: of the base checkpoint (:func:`client.model.base_digest`).
        plan_digest: of the privacy plan of the run; None for an adapter from elsewhere.
        ledger_head: hash at the end of the ledger's chain; None likewise.
        parent: digest of the version that training went on from; None for the first.
        files: sorted by name; weights and PEFT's configuration are among them.
        privacy: what is claimed.
        audit: the report that was seen; None without one.
        withheld: whether it is kept as evidence alone, and must never be used.
    """

    name: str
    sequence: int
    order: int
    created: str
    base_digest: str
    plan_digest: str | None
    ledger_head: str | None
    parent: str | None
    files: tuple[FileEntry, ...]
    privacy: Privacy
    audit: Audited | None
    withheld: bool = False

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidValue: for the first one that is not as described.
        """
        label_field("name", self.name)
        number_field("sequence", self.sequence, 1)
        number_field("order", self.order, 0)
        time_field("created", self.created)
        digest_field("base_digest", self.base_digest)
        for key in ("plan_digest", "ledger_head", "parent"):
            if getattr(self, key) is not None:
                digest_field(key, getattr(self, key))
        _check_files(self.files)
        _check_privacy(self.privacy)
        _check_audit(self.audit)
        if not isinstance(self.withheld, bool):
            refuse_field("withheld", "true or false")
        if self.verdict == "violation" and not self.withheld:
            refuse_field("withheld", "true for an adapter with a violation")

    @property
    def verdict(self) -> str | None:
        """The audit's verdict, or None without an audit."""
        return None if self.audit is None else self.audit.verdict

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files)

    def file(self, name: str) -> FileEntry:
        """Return a file by name.

        Raises:
            AdapterCorrupt: if there is none.
        """
        for entry in self.files:
            if entry.name == name:
                return entry
        msg = f"adapter {self.digest[:12]} has no file {name}."
        raise AdapterCorrupt(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"schema": SCHEMA, **asdict(self), "files": [asdict(f) for f in self.files]}

    def to_bytes(self) -> bytes:
        """Return the canonical JSON, whose SHA-256 is the digest."""
        return canonical_json(self.to_dict()).encode()

    @property
    def digest(self) -> str:
        """What names the version, 64 hexadecimal digits."""
        return sha256_hex(self.to_bytes())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AdapterManifest:
        """Read the JSON form.

        Raises:
            InvalidValue: if a key is missing, unknown, or not as described.
        """
        found = record(data, cls, "a manifest")
        files = data["files"]
        if not isinstance(files, list) or not len(files) <= MOST_FILES:
            refuse_field("files", f"a list of at most {MOST_FILES}")
        found["files"] = tuple(
            FileEntry(**record(entry, FileEntry, "a file", versioned=False)) for entry in files
        )
        found["privacy"] = Privacy(**record(data["privacy"], Privacy, "privacy", versioned=False))
        if data["audit"] is not None:
            found["audit"] = Audited(**record(data["audit"], Audited, "audit", versioned=False))
        return cls(**found)


def sign_manifest(manifest: AdapterManifest, key: SigningKey) -> Signature:
    """Sign a version."""
    return key.sign(ADAPTER_DOMAIN, manifest.digest)


def read_manifest(data: bytes, signature: Signature, *, trusted: str) -> AdapterManifest:
    """Read a version that a trusted key signed; the signature is checked before the text.

    Args:
        data: canonical JSON, at most :data:`shared.documents.LARGEST_DOCUMENT` bytes.
        signature: detached, for :data:`ADAPTER_DOMAIN`.
        trusted: the only public key that counts.

    Raises:
        AdapterUntrusted: if the signature is of another key, purpose or text.
        AdapterCorrupt: if the text is no manifest.
    """
    check_signed(data, signature, domain=ADAPTER_DOMAIN, trusted=trusted)
    try:
        manifest = AdapterManifest.from_dict(load_object(data))
        canonical = manifest.to_bytes() == data
    except (InvalidValue, ValueError, TypeError, RecursionError) as error:
        msg = "The manifest of an adapter is signed and is no manifest of schema 1."
        raise AdapterCorrupt(msg, hint="Is the server newer than this program?") from error
    if not canonical:
        msg = "The manifest of an adapter is not in canonical form."
        raise AdapterCorrupt(msg)
    return manifest


def is_file_name(name: str) -> bool:
    """Tell whether a name is plain: no separator, no leading dot, no name that is taken."""
    return _FILE.fullmatch(name) is not None and name not in _RESERVED


def _check_files(files: tuple[FileEntry, ...]) -> None:
    """Require plain, sorted, unique names, sizes within limits, and what every adapter has."""
    for entry in files:
        if not (isinstance(entry.name, str) and is_file_name(entry.name)):
            refuse_field("file name", "letters, digits, '_', '-' and single dots")
        largest = LARGEST_WEIGHTS if entry.name == WEIGHTS else LARGEST_OTHER
        number_field(f"size of {entry.name}", entry.size, 1, largest)
        digest_field(f"sha256 of {entry.name}", entry.sha256)
    names = [entry.name for entry in files]
    # On some systems names that differ in case are one file.
    if names != sorted(names) or len({name.lower() for name in names}) != len(names):
        refuse_field("files", "sorted by unique names")
    if not (set(NEEDED) <= set(names) and len(names) <= MOST_FILES):
        refuse_field("files", f"{' and '.join(NEEDED)}, and at most {MOST_FILES}")


def _check_privacy(privacy: Privacy) -> None:
    """Require short words, and finite numbers that are not below zero."""
    for word in (privacy.mode, privacy.unit, privacy.neighboring_relation):
        if word is not None and not (isinstance(word, str) and is_label(word)):
            refuse_field("privacy", "plain words")
    for number in (privacy.epsilon, privacy.delta):
        if number is not None and not (
            isinstance(number, int | float)
            and not isinstance(number, bool)
            and 0 <= number < float("inf")
        ):
            refuse_field("privacy", "finite numbers that are not negative")
    if privacy.epsilon is not None and None in (
        privacy.delta,
        privacy.unit,
        privacy.neighboring_relation,
    ):
        refuse_field("privacy", "delta, unit and relation with every epsilon")


def _check_audit(audit: Audited | None) -> None:
    """Require a report's digest and verdict."""
    if audit is None:
        return
    digest_field("audit", audit.sha256)
    if not (isinstance(audit.verdict, str) and audit.verdict in _VERDICTS):
        refuse_field("audit verdict", ", ".join(sorted(_VERDICTS)))
    if audit.profile is not None:
        label_field("audit profile", audit.profile)
    if audit.signed_by is not None:
        digest_field("audit signed_by", audit.signed_by)
