"""What was released, in a form that is stored for ever and accounted for later.

Events are stored, epsilon is derived: a better accountant may be applied to an old ledger. The
JSON form carries a schema version; a reader that meets a type, version or field that it does not
know refuses, because an ignored event is an unaccounted release.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import TypeAlias

from shared import validate
from shared.canonical import canonical_json
from shared.errors import InvalidValue, UnsupportedEvent

SCHEMA_VERSION = 1
# Coordinates of the longest vector that a Skellam release may have.
MAX_DIMENSION = 2**31 - 1


class PrivacyUnit(StrEnum):
    """Whose presence the guarantee hides: one training example, or one client's whole data."""

    EXAMPLE = "example"
    CLIENT = "client"


class NeighboringRelation(StrEnum):
    """When two datasets count as neighbours.

    ``add-or-remove-one``: one has a unit more. ``replace-one``: same size, one unit differs; with
    the same noise its epsilon is larger (for one Gaussian release, that of half the noise).
    """

    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    REPLACE_ONE = "replace-one"


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianEvent:
    """Poisson-subsampled Gaussian releases, ``count`` of them.

    Each release takes every unit with its own coin of bias ``sampling_probability`` (1 means that
    every unit takes part), sums contributions of L2 norm at most C, and adds normal noise of
    standard deviation ``noise_multiplier * C``. Under ``replace-one`` C still bounds one
    contribution, so the sum may move by 2C: the accountant knows, the noise multiplier does not
    change its meaning.

    Attributes:
        noise_multiplier: noise standard deviation divided by the clip C, > 0.
        sampling_probability: in ``(0, 1]``.
        count: number of releases, an integer >= 1. Empty samples are releases too.

    Raises:
        InvalidValue: for a value out of range. Zero noise is :class:`NonPrivateEvent`.
    """

    noise_multiplier: float
    sampling_probability: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        validate.positive(noise_multiplier=self.noise_multiplier)
        validate.probability(sampling_probability=self.sampling_probability)
        validate.positive_integer(count=self.count)

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return _tagged(
            "gaussian",
            noise_multiplier=float(self.noise_multiplier),
            sampling_probability=float(self.sampling_probability),
            count=self.count,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SkellamEvent:
    """Poisson-subsampled Skellam releases on an integer grid, ``count`` of them.

    Each release takes every unit with its own coin of bias ``sampling_probability``, sums integer
    vectors of L2 norm at most ``grid`` and at most ``2**31 - 1`` coordinates, and adds to every
    coordinate independent Skellam noise of variance ``(noise_multiplier * grid)**2``. Sums of
    independent Skellam variables are Skellam, so the noise may have been added in shares by many
    clients. Under ``replace-one`` the sum may move by twice the grid, as with
    :class:`GaussianEvent`.

    Attributes:
        noise_multiplier: noise standard deviation divided by ``grid``, > 0.
        grid: the clip in units of the grid, an integer >= 1.
        sampling_probability: in ``(0, 1]``.
        count: number of releases, an integer >= 1. Empty samples are releases too.

    Raises:
        InvalidValue: for a value out of range.
    """

    noise_multiplier: float
    grid: int
    sampling_probability: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        validate.positive(noise_multiplier=self.noise_multiplier)
        validate.probability(sampling_probability=self.sampling_probability)
        validate.positive_integer(grid=self.grid, count=self.count)

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return _tagged(
            "skellam",
            noise_multiplier=float(self.noise_multiplier),
            grid=self.grid,
            sampling_probability=float(self.sampling_probability),
            count=self.count,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NonPrivateEvent:
    """A release without a guarantee: epsilon is infinite from here on."""

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return _tagged("non-private")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOpEvent:
    """Nothing that depends on private data was released."""

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return _tagged("no-op")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedEvent:
    """Several events on the same data, one after the other."""

    events: tuple[PrivacyEvent, ...]

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return _tagged("composed", events=[event.to_json() for event in self.events])


PrivacyEvent: TypeAlias = GaussianEvent | SkellamEvent | NonPrivateEvent | NoOpEvent | ComposedEvent


def event_from_json(value: object) -> PrivacyEvent:
    """Read a stored event.

    Args:
        value: the object that ``to_json`` gave, or its text.

    Returns:
        The event.

    Raises:
        UnsupportedEvent: for anything that this version cannot account for: another schema
            version or type, a missing or unknown field, a value out of range, broken JSON.

    >>> event_from_json(GaussianEvent(noise_multiplier=1.5).to_json())
    GaussianEvent(noise_multiplier=1.5, sampling_probability=1.0, count=1)
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            msg = "a stored event is not JSON."
            raise UnsupportedEvent(msg, hint="The ledger may be damaged.") from error
    if not isinstance(value, Mapping):
        msg = f"a stored event is a {type(value).__name__}, expected an object."
        raise UnsupportedEvent(msg)
    known = dict(value)
    version, kind = known.pop("schema", None), known.pop("type", None)
    if version != SCHEMA_VERSION or isinstance(version, bool):
        msg = f"event schema={version!r}, expected {SCHEMA_VERSION}."
        raise UnsupportedEvent(msg, hint="A newer fedslm may have written it.")
    return _from_fields(kind, known)


def _from_fields(kind: object, values: dict[str, object]) -> PrivacyEvent:
    """Build the event of one type from exactly its fields."""
    match kind, sorted(values):
        case "gaussian", ["count", "noise_multiplier", "sampling_probability"]:
            return _in_range(GaussianEvent, values)
        case "skellam", ["count", "grid", "noise_multiplier", "sampling_probability"]:
            return _in_range(SkellamEvent, values)
        case "non-private", []:
            return NonPrivateEvent()
        case "no-op", []:
            return NoOpEvent()
        case "composed", ["events"] if isinstance(values["events"], list):
            return ComposedEvent(events=tuple(event_from_json(e) for e in values["events"]))
    msg = f"event type={kind!r} with fields {sorted(values)}, which no accountant here knows."
    raise UnsupportedEvent(msg, hint="A newer fedslm may have written it.")


def _in_range(kind: type[GaussianEvent | SkellamEvent], values: dict[str, object]) -> PrivacyEvent:
    """Build a noised event whose values an accountant can use."""
    try:
        return kind(**values)  # type: ignore[arg-type]
    except InvalidValue as error:
        raise UnsupportedEvent(error.message) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """Events merged into what composition depends on; the order of events does not matter.

    Attributes:
        pairs: of Gaussian releases, ascending ``(sampling_probability, noise_multiplier, count)``,
            each pair once.
        private: ``False`` if any event was :class:`NonPrivateEvent`.
        skellams: of Skellam releases, ascending ``(sampling_probability, noise_multiplier, grid,
            count)``, each kind once.
    """

    pairs: tuple[tuple[float, float, int], ...] = ()
    private: bool = True
    skellams: tuple[tuple[float, float, int, int], ...] = ()

    @classmethod
    def of(cls, *events: PrivacyEvent) -> Composition:
        """Merge events.

        Raises:
            UnsupportedEvent: for an object that is not an event of this module, nested or not.
        """
        gaussian: Counter[tuple[float, float]] = Counter()
        skellam: Counter[tuple[float, float, int]] = Counter()
        private = True
        queue: list[object] = list(events)
        while queue:
            match queue.pop():
                case GaussianEvent() as e:
                    gaussian[float(e.sampling_probability), float(e.noise_multiplier)] += e.count
                case SkellamEvent() as e:
                    kind = (float(e.sampling_probability), float(e.noise_multiplier), e.grid)
                    skellam[kind] += e.count
                case NonPrivateEvent():
                    private = False
                case NoOpEvent():
                    pass
                case ComposedEvent() as e:
                    queue.extend(e.events)
                case other:
                    msg = f"an event of type {type(other).__name__} cannot be accounted for."
                    raise UnsupportedEvent(msg)
        return cls(
            pairs=tuple(sorted((q, z, n) for (q, z), n in gaussian.items())),
            private=private,
            skellams=tuple(sorted((q, z, g, n) for (q, z, g), n in skellam.items())),
        )

    @classmethod
    def from_counts(cls, rows: Iterable[tuple[str, int]]) -> Composition:
        """Read what :meth:`counts` gave.

        Raises:
            UnsupportedEvent: for a release that no accountant here knows, or a count below 1.
        """
        return cls.of(*(_repeated(event_from_json(text), count) for text, count in rows))

    def counts(self) -> tuple[tuple[str, int], ...]:
        """Return how many there are of each kind of release, ascending.

        A kind is the canonical JSON of one release of it, the form in which a ledger keeps sums. A
        non-private release is a kind of its own, with count 1.
        """
        kinds = [(_kind(event), _releases(event)) for event in self.to_event().events]
        return tuple(sorted(kinds))

    def plus(self, other: Composition) -> Composition:
        """Return the composition of both."""
        return Composition.of(self.to_event(), other.to_event())

    def within(self, other: Composition) -> bool:
        """Tell whether this is a part of ``other``, which then has at least its epsilon."""
        room = dict(other.counts())
        return all(n <= room.get(kind, 0) for kind, n in self.counts())

    def to_event(self) -> ComposedEvent:
        """Return one event that stands for the whole."""
        gaussians: list[PrivacyEvent] = [
            GaussianEvent(noise_multiplier=z, sampling_probability=q, count=n)
            for q, z, n in self.pairs
        ]
        skellams: list[PrivacyEvent] = [
            SkellamEvent(noise_multiplier=z, grid=g, sampling_probability=q, count=n)
            for q, z, g, n in self.skellams
        ]
        extra: list[PrivacyEvent] = [] if self.private else [NonPrivateEvent()]
        return ComposedEvent(events=tuple(gaussians + skellams + extra))

    @property
    def releases(self) -> float:
        """Return the number of noised releases; infinite if one was not private."""
        noised = sum(pair[-1] for pair in self.pairs) + sum(kind[-1] for kind in self.skellams)
        return noised if self.private else math.inf


def _repeated(release: PrivacyEvent, count: int) -> PrivacyEvent:
    """Return one kind of release so many times."""
    if isinstance(release, GaussianEvent | SkellamEvent) and release.count == 1:
        return _in_range(type(release), {**_fields(release), "count": count})
    if release == NonPrivateEvent() and count == 1:
        return release
    msg = f"a sum of {count} times an event that is not a single release."
    raise UnsupportedEvent(msg, hint="The ledger may be damaged.")


def _kind(event: PrivacyEvent) -> str:
    """Return the canonical JSON of one release of an event."""
    if isinstance(event, GaussianEvent | SkellamEvent):
        event = replace(event, count=1)
    return canonical_json(event.to_json())


def _releases(event: PrivacyEvent) -> int:
    """Return how many releases a merged event stands for."""
    return event.count if isinstance(event, GaussianEvent | SkellamEvent) else 1


def _fields(event: GaussianEvent | SkellamEvent) -> dict[str, object]:
    """Return an event's fields by name."""
    return {field.name: getattr(event, field.name) for field in fields(event)}


def _tagged(kind: str, **values: object) -> dict[str, object]:
    """Return a stored event with its schema version and type."""
    return {"schema": SCHEMA_VERSION, "type": kind, **values}
