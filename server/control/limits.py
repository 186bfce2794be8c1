"""How much one caller may ask for: calls a minute, and calls at the same time.

Both are used from the event loop's thread alone and need no locks.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from shared import validate

# Of these at most are remembered; the one that was quiet for longest is forgotten first.
MAX_KEYS = 10_000


class TokenBuckets:
    """A token bucket for each key.

    Args:
        per_minute: how fast a bucket fills up again.
        burst: how many calls may come at once.
        clock: seconds that only go forward.
    """

    def __init__(self, *, per_minute: float, burst: float, clock: Callable[[], float]) -> None:
        validate.positive(per_minute=per_minute, burst=burst)
        self._rate = per_minute / 60.0
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, cost: float = 1.0) -> float:
        """Take the price of one call.

        Args:
            key: whose bucket.
            cost: what the call costs, at most the burst.

        Returns:
            0 if it was there and is taken now; otherwise the seconds until it will be.
        """
        now = self._clock()
        left, since = self._buckets.pop(key, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - since) * self._rate)
        allowed = left >= cost
        self._buckets[key] = (left - cost if allowed else left, now)
        while len(self._buckets) > MAX_KEYS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (cost - left) / self._rate

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._buckets)


class Slots:
    """Counts the calls that each key has under way.

    Args:
        each: how many one key may have.
    """

    def __init__(self, each: int) -> None:
        validate.positive_integer(each=each)
        self._each = each
        self._taken: Counter[str] = Counter()

    def enter(self, key: str) -> bool:
        """Take a slot if one is free."""
        if self._taken[key] >= self._each:
            return False
        self._taken[key] += 1
        return True

    def leave(self, key: str) -> None:
        """Give a slot back."""
        self._taken[key] -= 1
        if self._taken[key] <= 0:
            del self._taken[key]

    def __len__(self) -> int:
        """Return how many keys have a call under way."""
        return sum(count > 0 for count in self._taken.values())
