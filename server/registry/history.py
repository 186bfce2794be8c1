"""The orders of a registry: one file each, numbered without gaps, never changed, chained, signed.

Whoever may write to the folder can take the newest orders away unnoticed; devices remember the
number of the newest one that they saw, and refuse what comes before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.crypto import Signature, SigningKey
from shared.errors import AdapterCorrupt, InvalidValue
from shared.files import disk_errors
from shared.orders import Order, read_order, sign_order
from shared.privatefiles import create_private, make_private_folder

_FILE = re.compile(r"([0-9]{8})\.json")
_LARGEST = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedOrder:
    """An order with its signature; ``order.to_bytes()`` is what was signed."""

    order: Order
    signature: Signature

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of a history file."""
        return {"order": self.order.to_dict(), "signature": self.signature.to_dict()}


class History:
    """Reads and appends orders; whoever appends holds the registry's lock.

    Args:
        folder: made when the first order is written.
        trusted: the public key that signs them.
    """

    def __init__(self, folder: Path, *, trusted: str) -> None:
        self._folder, self._trusted = folder, trusted
        self._known: dict[int, SignedOrder] = {}

    def numbers(self) -> list[int]:
        """Return the numbers of all orders, ascending."""
        if not self._folder.is_dir():
            return []
        with disk_errors(self._folder):
            names = [path.name for path in self._folder.iterdir()]
        return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))

    def get(self, number: int) -> SignedOrder:
        """Return one order; it never changes, so it is read once. Errors as :meth:`read`."""
        if number not in self._known:
            self._known[number] = self.read(number)
        return self._known[number]

    def strangers(self) -> list[Path]:
        """Return what is in the folder and no order in its place."""
        return [
            path
            for path in self._folder.glob("*")
            if path.is_symlink() or not _FILE.fullmatch(path.name)
        ]

    def read(self, number: int) -> SignedOrder:
        """Read one order from the disk.

        Raises:
            AdapterCorrupt: if it is missing, damaged, or has another number.
            AdapterUntrusted: if the signature does not hold.
        """
        found = read_json(self._folder / f"{number:08d}.json", largest=_LARGEST)
        try:
            signature = Signature.from_dict(found["signature"])
            claimed = Order.from_dict(found["order"])
        except (KeyError, TypeError, AttributeError, InvalidValue) as error:
            msg = f"Order {number} of the registry is damaged."
            raise AdapterCorrupt(msg, hint="Restore the registry's folder from a copy.") from error
        order = read_order(claimed.to_bytes(), signature, trusted=self._trusted)
        if order.number != number:
            msg = f"Order {number} of the registry says that it is number {order.number}."
            raise AdapterCorrupt(msg)
        return SignedOrder(order=order, signature=signature)

    def last(self) -> SignedOrder | None:
        """Return the newest order, or None; errors as :meth:`read`."""
        numbers = self.numbers()
        return self.get(numbers[-1]) if numbers else None

    def all(self) -> tuple[SignedOrder, ...]:
        """Return all orders, oldest first, after checking that they are a chain.

        Raises:
            AdapterCorrupt: at the first order that does not follow from the one before it.
            AdapterUntrusted: if a signature does not hold.
        """
        found: list[SignedOrder] = []
        for expected, number in enumerate(self.numbers(), start=1):
            signed = self.get(number)
            before = found[-1].order if found else None
            follows = ((None, None) if before is None else (before.hash, before.digest)) == (
                signed.order.previous,
                signed.order.replaces,
            )
            if number != expected or not follows:
                msg = f"Order {number} of the registry does not follow from the one before it."
                raise AdapterCorrupt(msg, hint="The history was changed; restore it from a copy.")
            found.append(signed)
        return tuple(found)

    def append(self, *, kind: str, digest: str, sequence: int, now: str, key: SigningKey) -> None:
        """Write the next order.

        Raises:
            FleetError: if it cannot be written, or another process was first.
            OutOfDisk: if no space is left; there is no order then.
        """
        last = self.last()
        order = Order(
            number=1 if last is None else last.order.number + 1,
            kind=kind,
            digest=digest,
            sequence=sequence,
            replaces=None if last is None else last.order.digest,
            previous=None if last is None else last.order.hash,
            created=now,
        )
        signed = SignedOrder(order=order, signature=sign_order(order, key))
        make_private_folder(self._folder)
        create_private(self._folder / f"{order.number:08d}.json", to_json(signed.to_dict()))


def stack_of(orders: Sequence[SignedOrder]) -> list[str]:
    """Return the digests that rollbacks go through, oldest first; the last one is in use.

    >>> stack_of([])
    []
    """
    stack: list[str] = []
    for signed in orders:
        digest = signed.order.digest
        if signed.order.kind == "rollback" and digest in stack:
            del stack[stack.index(digest) + 1 :]
        else:
            stack = [kept for kept in stack if kept != digest] + [digest]
    return stack


def read_json(path: Path, *, largest: int) -> Mapping[str, Any]:
    """Read a JSON object from a file of the registry.

    Raises:
        AdapterCorrupt: if it is missing, too long, or no JSON object.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(largest + 1)
        value = json.loads(data.decode("utf-8")) if len(data) <= largest else None
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path.name[:16]} of the registry cannot be read ({type(error).__name__})."
        raise AdapterCorrupt(msg, hint="Restore the registry's folder from a copy.") from error
    if not isinstance(value, dict):
        msg = f"{path.name[:16]} of the registry is no JSON object."
        raise AdapterCorrupt(msg, hint="Restore the registry's folder from a copy.")
    return value


def to_json(value: Mapping[str, Any]) -> bytes:
    """Return indented JSON with sorted keys."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
