"""Who shares keys with whom, how many shares open a secret, and with what probability that fails.

The graph
---------
The announced clients are put on a ring in an order that is drawn from a digest of the announcement
itself, and each is joined to the ``degree / 2`` clients before and after it (a Harary circulant
graph). Below 64 clients, and wherever nothing sparser will do, everyone is joined to everyone.
Every party computes order, degree and threshold for itself; no message carries them.

The parameters
--------------
With n announced clients, honest fraction h and survivor fraction s, write ``c = floor((1-h)n)`` for
the clients that may collude with the server, ``R = ceil(sn)`` for those that must be in the sum,
k for the degree and t for the threshold. Three bounds hold for all clients at once:

* at most ``c_k`` of any client's k neighbours collude,
* at most ``c_w`` of the k/2 clients that follow any client on the ring collude,
* at most ``d_k`` of any client's k neighbours are missing, if ``n - R`` clients drop out at random.

The threshold is the smallest that satisfies

1. ``t > (k + c_k) / 2``. Whoever holds two disjoint sets of t shares of one client's two secrets
   needs ``2 (t - c_k)`` honest holders, more than the ``k - c_k`` there are. With a third of the
   holders corrupt this is Bonawitz et al.'s ``t > 2k/3`` (2017, section 6.2): a smaller threshold
   is never used, whatever the server says.
2. ``t > k/2 + c_w`` (sparse graphs). Clients refuse a set of survivors in which anybody has fewer
   than t surviving neighbours. Of those at most k/2 come before him on the ring, so more than
   ``c_w`` come after, one of them honest: the next honest survivor on the ring is a neighbour of
   every honest survivor, and the honest survivors are connected *whichever* clients the server
   leaves out, not only with high probability over random dropouts. Bell et al. (2020) concede sums
   over parts of the survivors instead.

and it must not exceed ``k - d_k``, so that the round succeeds; the degree is the smallest for which
that is so. The confirmations that a client wants to see before it reveals anything number
``q = floor((n + c) / 2) + 1`` of all n, so two sets of them have an honest client in common, and
honest clients sign once.

Failure probabilities
---------------------
The tails are those of the hypergeometric distribution, as exact integers, with a union bound over
all clients. A round that should succeed fails with probability at most ``2**-40``. The graph is
bad for privacy with probability at most ``2**-120``: whoever chooses the announcement can try many
(other keys of colluding clients, other subsets) and each try draws a new graph, so 80 bits of work
are conceded and ``2**-40`` is left. Often the bounds are the worst case and the probability is 0;
complete graphs never fail. Colluding clients are assumed to be fixed before the graph is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from shared import validate
from shared.errors import ConflictingSettings, QuorumNotReached

SPARSE_FROM = 64
LIVENESS_BITS = 40
GRINDING_BITS = 80
PRIVACY_BITS = LIVENESS_BITS + GRINDING_BITS
MIN_CLIENTS = 3

_WORD_BYTES = 16
_CACHED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphParameters:
    """What a cohort of one size is held to.

    Attributes:
        clients: n, the number of announced clients.
        degree: k, the number of neighbours of each client; ``clients - 1`` if complete.
        threshold: t, the number of shares that open a secret, and the least number of neighbours
            that each client must keep, >= 2.
        required: R, the least number of clients in the sum.
        corrupt: c, the number of colluding clients that the guarantee tolerates.
        quorum: q, the number of equal confirmations that a client wants to see.
    """

    clients: int
    degree: int
    threshold: int
    required: int
    corrupt: int
    quorum: int

    @property
    def complete(self) -> bool:
        """Tell whether everyone is everyone's neighbour."""
        return self.degree == self.clients - 1

    @property
    def honest_survivors(self) -> int:
        """Return the least number of honest clients in a sum that is revealed, >= 2."""
        return self.required - self.corrupt


def required_survivors(clients: int, survivor_fraction: float) -> int:
    """Return ``ceil(s * n)``, exact for the decimal number that ``s`` is written as.

    >>> required_survivors(10, 0.7)
    7
    """
    return math.ceil(_exact(survivor_fraction) * clients)


def tolerated_corrupt(clients: int, honest_fraction: float) -> int:
    """Return ``floor((1 - h) * n)``, exact for the decimal number that ``h`` is written as.

    >>> tolerated_corrupt(100, 0.9)
    10
    """
    return math.floor((1 - _exact(honest_fraction)) * clients)


@lru_cache(maxsize=_CACHED)
def parameters(clients: int, honest_fraction: float, survivor_fraction: float) -> GraphParameters:
    """Compute degree and threshold for a cohort.

    Args:
        clients: n, >= 3.
        honest_fraction: h in ``(0, 1]``.
        survivor_fraction: s in ``(0, 1]``.

    Returns:
        The parameters; see the module for the conditions that they satisfy.

    Raises:
        InvalidValue: for an argument out of range.
        ConflictingSettings: if no degree and threshold are both safe and live.
    """
    validate.positive_integer(clients=clients)
    validate.probability(honest_fraction=honest_fraction, survivor_fraction=survivor_fraction)
    corrupt = tolerated_corrupt(clients, honest_fraction)
    required = required_survivors(clients, survivor_fraction)
    quorum = (clients + corrupt) // 2 + 1
    degree = _sparse_degree(clients, corrupt, required) if clients >= SPARSE_FROM else None
    if degree is None:
        degree = clients - 1
        threshold = (degree + corrupt) // 2 + 1
    else:
        threshold = _safe_threshold(clients, corrupt, degree)
    if not (
        clients >= MIN_CLIENTS and threshold <= min(degree, required - 1) and quorum <= required
    ):
        msg = (
            f"clients={clients}, honest_fraction={honest_fraction!r}, survivor_fraction="
            f"{survivor_fraction!r}: {corrupt} colluding clients need a threshold of {threshold} "
            f"shares and {quorum} confirmations, but only {required} clients must survive."
        )
        hint = "Raise survivor_fraction, honest_fraction or the number of clients."
        raise ConflictingSettings(msg, hint=hint)
    return GraphParameters(
        clients=clients,
        degree=degree,
        threshold=threshold,
        required=required,
        corrupt=corrupt,
        quorum=quorum,
    )


@dataclass(frozen=True, slots=True)
class NeighbourGraph:
    """A circulant graph on a ring of clients.

    Attributes:
        order: the clients in ring order, each once.
        degree: number of neighbours of each: even, or ``len(order) - 1``.
    """

    order: tuple[int, ...]
    degree: int
    _position: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_position", {c: i for i, c in enumerate(self.order)})

    @classmethod
    def drawn(cls, clients: Sequence[int], degree: int, seed: bytes) -> NeighbourGraph:
        """Put clients on a ring in the order that a digest gives.

        Each client, in ascending order, gets the next 128 bits of the ChaCha20 key stream of the
        seed, and the ring is sorted by them: uniform up to collisions (below ``n**2 * 2**-129``).

        Args:
            clients: ascending, each once.
            degree: number of neighbours.
            seed: 32 bytes, used for nothing else.
        """
        stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
        words = stream.update(bytes(_WORD_BYTES * len(clients)))
        place = {c: words[_WORD_BYTES * i :][:_WORD_BYTES] for i, c in enumerate(clients)}
        return cls(tuple(sorted(clients, key=lambda client: (place[client], client))), degree)

    def neighbours(self, client: int) -> tuple[int, ...]:
        """Return the neighbours of a client, ascending."""
        size, at = len(self.order), self._position[client]
        after = self.degree // 2
        before = self.degree - after
        steps = (*range(1, after + 1), *range(size - before, size))
        return tuple(sorted(self.order[(at + step) % size] for step in steps))

    def point(self, owner: int, holder: int) -> int:
        """Return which share of ``owner``'s secrets ``holder``, a neighbour, holds: 1 to degree."""
        size = len(self.order)
        step = (self._position[holder] - self._position[owner]) % size
        return step if step <= self.degree // 2 else step - (size - 1 - self.degree)

    def fewest_neighbours(self, members: Iterable[int]) -> int:
        """Return how many neighbours within a set its loneliest member has.

        Args:
            members: clients of the ring, at least one.

        Returns:
            The least number of neighbours among the members that any member has.
        """
        size = len(self.order)
        here = np.zeros(size, dtype=np.int64)
        here[[self._position[client] for client in members]] = 1
        return int(self._counts(here)[here == 1].min())

    def _counts(self, here: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return for every position the number of marked neighbours."""
        size, after = len(here), self.degree // 2
        before = self.degree - after
        sums = np.concatenate(([0], np.cumsum(np.tile(here, 3))))
        at = np.arange(size, 2 * size)
        counts: npt.NDArray[np.int64] = sums[at + after + 1] - sums[at - before] - here
        return counts


def require_kept(
    graph: NeighbourGraph, bounds: GraphParameters, members: Sequence[int], *, phase: str
) -> None:
    """Require that enough clients are left, and enough neighbours of each of them.

    Args:
        graph: on the announced clients.
        bounds: for their number.
        members: the clients that are left.
        phase: where the protocol is, for the message.

    Raises:
        QuorumNotReached: with the phase and the numbers.
    """
    if not len(members) >= bounds.required:
        msg = (
            f"phase={phase}: {len(members)} of {bounds.clients} announced clients are left, "
            f"expected at least {bounds.required}."
        )
        raise QuorumNotReached(msg, hint="The round is void; nothing was revealed.")
    fewest = graph.fewest_neighbours(members)
    if not fewest >= bounds.threshold:
        msg = (
            f"phase={phase}: a client has {fewest} of its {bounds.degree} neighbours left, "
            f"expected at least {bounds.threshold}."
        )
        raise QuorumNotReached(msg, hint="The round is void; nothing was revealed.")


def _exact(fraction: float) -> Fraction:
    """Return the decimal number that a float is written as: 0.9 is nine tenths."""
    return Fraction(repr(float(fraction)))


def _sparse_degree(clients: int, corrupt: int, required: int) -> int | None:
    """Return a small even degree that is safe and live, or None if the graph must be complete.

    Bisection: within rounding, a larger degree only helps.
    """
    low, high = 1, (clients - 2) // 2
    if not _sparse_works(clients, corrupt, required, 2 * high):
        return None
    while low < high:
        middle = (low + high) // 2
        if _sparse_works(clients, corrupt, required, 2 * middle):
            high = middle
        else:
            low = middle + 1
    return 2 * high


def _sparse_works(clients: int, corrupt: int, required: int, degree: int) -> bool:
    """Tell whether the safe threshold is also live."""
    others, dropped = clients - 1, clients - required
    missing = tail_bound(others, dropped, degree, events=clients, bits=LIVENESS_BITS)
    return _safe_threshold(clients, corrupt, degree) <= degree - missing


def _safe_threshold(clients: int, corrupt: int, degree: int) -> int:
    """Return the smallest safe threshold of a sparse graph."""
    others, half = clients - 1, degree // 2
    around = tail_bound(others, corrupt, degree, events=2 * clients, bits=PRIVACY_BITS)
    after = tail_bound(others, corrupt, half, events=2 * clients, bits=PRIVACY_BITS)
    return max((degree + around) // 2, half + after) + 1


def tail_bound(population: int, marked: int, draws: int, *, events: int, bits: int) -> int:
    """Return a number of marked draws that is hardly ever exceeded.

    Args:
        population: size of the population.
        marked: how many of it are marked, at most the population.
        draws: how many are drawn without replacement, at most the population.
        events: how many such draws are made; a union bound covers them.
        bits: none of them may exceed the bound but with probability ``2**-bits``.

    Returns:
        The smallest m with ``events * P(hypergeometric > m) <= 2**-bits``, in exact arithmetic.
    """
    total = math.comb(population, draws)
    m = min(marked, draws)
    ways = math.comb(marked, m) * math.comb(population - marked, draws - m)
    tail = 0
    while ((tail + ways) * events) << bits <= total:
        tail += ways
        ways = ways * m * (population - marked - draws + m)
        ways //= (marked - m + 1) * (draws - m + 1)
        m -= 1
    return m
