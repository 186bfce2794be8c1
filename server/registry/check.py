"""Checking everything that a registry has on disk, and listing all that is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.registry.history import History, SignedOrder
from server.registry.store import AdapterRegistry
from shared.errors import FedSLMError
from shared.manifest import AdapterManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryReport:
    """What a check found.

    Attributes:
        versions: how many manifests are signed and whole.
        orders: how many orders form the chain.
        files: how many different files were compared with their digests.
        bytes: of those files.
        problems: what does not hold, one sentence each; empty if all does.
        leftovers: files that belong to nothing (``collect`` removes them); no problem.
    """

    versions: int
    orders: int
    files: int
    bytes: int
    problems: tuple[str, ...]
    leftovers: int

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that commands print."""
        return {
            "holds": self.holds,
            "versions": self.versions,
            "orders": self.orders,
            "files": self.files,
            "bytes": self.bytes,
            "problems": list(self.problems),
            "leftovers": self.leftovers,
        }


def verify_registry(registry: AdapterRegistry) -> RegistryReport:
    """Check signatures, the chain of orders, and every byte of every file.

    Args:
        registry: is only read; other processes may go on working in it.

    Returns:
        What holds and what does not; nothing is raised for what does not hold.
    """
    problems: list[str] = []
    manifests = _manifests(registry, problems)
    orders = _orders(registry, manifests, problems)
    files = {f.sha256: f.size for manifest in manifests.values() for f in manifest.files}
    good = 0
    for digest, size in sorted(files.items()):
        try:
            registry.blobs.check(digest, size)
        except FedSLMError as error:
            problems.append(error.message)
        else:
            good += size
    _sequences(manifests, problems)
    unwanted = registry.blobs.digests() - files.keys()
    strangers = [
        *registry.blobs.strangers(),
        *registry.manifests.strangers(),
        *registry.history.strangers(),
    ]
    return RegistryReport(
        versions=len(manifests),
        orders=len(orders),
        files=len(files),
        bytes=good,
        problems=tuple(problems),
        leftovers=len(unwanted) + len(strangers),
    )


def _manifests(registry: AdapterRegistry, problems: list[str]) -> dict[str, AdapterManifest]:
    """Read every manifest from the disk."""
    found = {}
    for digest in registry.manifests.digests():
        try:
            found[digest], _ = registry.manifests.read(digest)
        except FedSLMError as error:
            problems.append(error.message)
    return found


def _orders(
    registry: AdapterRegistry, manifests: dict[str, AdapterManifest], problems: list[str]
) -> tuple[SignedOrder, ...]:
    """Read the chain of orders; the version in use must be there and usable."""
    try:
        orders = History(registry.root / "history", trusted=registry.trusted).all()
    except FedSLMError as error:
        problems.append(error.message)
        return ()
    for signed in orders:
        order, manifest = signed.order, manifests.get(signed.order.digest)
        if manifest is None:
            if signed is orders[-1]:
                problems.append(f"The version in use, {order.digest[:12]}, is missing.")
        elif manifest.withheld or manifest.sequence != order.sequence:
            problems.append(f"Order {order.number} names a version that it cannot name.")
    return orders


def _sequences(manifests: dict[str, AdapterManifest], problems: list[str]) -> None:
    """Require that no two versions have one number."""
    numbers = [manifest.sequence for manifest in manifests.values()]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    problems += [f"Several versions have number {number}." for number in twice]
