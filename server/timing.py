"""Synchronous rounds on the simulated clock: who answers in time, and when a round is over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.collect import Traffic
from shared.clock import SimulatedClock
from shared.config import RunConfig
from shared.errors import ConflictingSettings
from shared.mixedranks import MixedRanks

Ask = Callable[[Sequence[int], int], tuple[int, Traffic]]
"""Asks some clients, with how many updates were counted before; returns what came of it."""

SECONDS = "simulated_seconds"
BYTES_A_NUMBER = 4


def clock_of(config: RunConfig) -> SimulatedClock | None:
    """Return the clock of a scenario; None if it simulates no time."""
    if not config.clock.used:
        return None
    return SimulatedClock(
        config.clock, seed=config.run.seed, local_steps=config.clients.local_steps or 1
    )


def wanted_answers(config: RunConfig, asked: int) -> int | None:
    """Return after how many updates a round waits for nobody; None if it waits for all.

    Guarantee:
        None under a client-level guarantee. There the first to answer would decide who else is in
        the sum, so that one client's presence changed more than its own clipped update. Only the
        deadline cuts off, which each client meets or misses by itself.

    Args:
        config: the scenario.
        asked: clients that the round asks.
    """
    over = config.server.over_selection > 1 and config.clients.cohort is not None
    if not over or config.privacy.mode not in {"none", "example"}:
        return None
    return min(asked, max(1, round(config.clients.cohort or 0)))


def refuse_in_fleet(config: RunConfig) -> None:
    """Refuse what only a simulation can do, in a run on real devices.

    Raises:
        ConflictingSettings: for a scenario with a simulated clock.
    """
    if config.clock.used:
        msg = "clock.shares: time is simulated, and real devices have a time of their own."
        hint = "Leave [clock] out, or use: fedslm simulate. server.over_selection and [buffer] "
        hint += "work in a fleet without it."
        raise ConflictingSettings(msg, hint=hint)


def refuse_without_clock(config: RunConfig) -> None:
    """Refuse a simulation that would cut off whoever its engine happens to call last.

    Raises:
        ConflictingSettings: for over-selection, or asynchronous rounds, without a clock.
    """
    late = {"server.over_selection": config.server.over_selection > 1}
    late["buffer.size"] = config.buffer.used
    for key, used in late.items():
        if used and not config.clock.used:
            msg = f"{key} needs a clock in a simulation: clients there answer in the order in "
            msg += "which they are called, and nothing else says which answer comes first."
            raise ConflictingSettings(msg, hint="Set clock.shares, step_seconds, upload, download.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What the clock says of one round.

    Attributes:
        begin: when it begins; later than the end of the round before if nobody was there.
        arrivals: when each client's answer arrives, of those that answer in time.
        close: when the server stops waiting; the last arrival if everybody answers in time and the
            timer is not steady.
    """

    begin: float
    arrivals: Mapping[int, float]
    close: float

    def in_turn(self) -> list[int]:
        """Return the clients that answer in time, the first first."""
        return sorted(self.arrivals, key=lambda client: (self.arrivals[client], client))


class RankParts:
    """What part of the largest adapter's numbers a client holds: public, by its rank.

    Args:
        ranks: of the clients.
        kinds: of the factors that clients send.
    """

    def __init__(self, ranks: MixedRanks, kinds: str) -> None:
        self._ranks = ranks
        self._kinds = kinds

    def of(self, client: int) -> float:
        """Return a client's part."""
        return self.at(self._ranks.of(client))

    def at(self, r: int) -> float:
        """Return the part of a rank."""
        return self._ranks.size(r, self._kinds) / self._ranks.spec.size(self._kinds)


class RoundTimer:
    """Keeps the time of a run of synchronous rounds.

    Guarantee:
        A steady timer has rounds of one length where there is a deadline, and messages of fixed
        lengths, so that whether a client meets the deadline depends on no other client: with one
        client more or less, in this round or an earlier one, the same others are counted. Without
        a deadline devices are always there, and all are counted. Client-level guarantees need it.

    Args:
        clock: says when answers arrive.
        size: number of parameters that are sent to a client.
        steady: whether who takes part may move no other client's time.
        coded: bytes of an update of so many numbers, for a steady timer; default four each.
        parts: what part of the numbers each client holds, where ranks differ.
    """

    def __init__(
        self,
        clock: SimulatedClock,
        *,
        size: int,
        steady: bool = False,
        coded: Callable[[int], int] | None = None,
        parts: RankParts | None = None,
    ) -> None:
        self._parts = parts
        self._clock = clock
        self._steady = steady
        self._coded = coded
        self.now = 0.0
        self._size = size
        self._down = self._up = float(BYTES_A_NUMBER)

    @property
    def available_share(self) -> float:
        """Share of the clients that are there at any time, on average over their phases."""
        return self._clock.available_share

    def restore(self, record: Mapping[str, Any], *, size: int) -> None:
        """Go on after the round of a metrics line, in which ``size`` numbers came from a client."""
        self.now = float(record.get(SECONDS, 0.0))
        up, down = (int(record.get(f"bytes_{way}_per_client", 0)) for way in ("up", "down"))
        by_rank = {
            int(r): (int(sizes["up"]), int(sizes["down"]))
            for r, sizes in record.get("bytes_by_rank", {}).items()
        }
        self._measured(Traffic(up=up, down=down, by_rank=by_rank), size=size)

    def present(self, cohort: Sequence[int]) -> list[int]:
        """Return those of a cohort whose device is there once the first of them is."""
        begin = self._begin(cohort)
        return [client for client in cohort if self._clock.there_from(client, begin) <= begin]

    def schedule(self, server_round: int, cohort: Sequence[int], *, size: int) -> Schedule:
        """Say when the clients of a cohort answer that are there when the round begins.

        A number takes as many bytes as in the largest message of the round before; in the first
        round, and after one without answers, four. A steady timer takes what the code says.

        Args:
            server_round: the round.
            cohort: who is asked.
            size: numbers that a client sends.
        """
        begin = self._begin(cohort)
        close = begin + self._clock.deadline
        arrivals = {}
        for client in self.present(cohort):
            down, up = self._bytes(client, size)
            at = self._clock.arrival(client, server_round, at=begin, down=down, up=up)
            if at is not None and at <= close:
                arrivals[client] = at
        waits = self._steady or len(arrivals) < len(cohort)
        if not (waits and math.isfinite(close)):
            close = max(arrivals.values(), default=begin)
        return Schedule(begin=begin, arrivals=arrivals, close=close)

    def run(
        self, schedule: Schedule, ask: Ask, *, enough: int | None, size: int
    ) -> tuple[int, Traffic]:
        """Ask who answers in time, move the clock to the end of the round, and return the answers.

        With ``enough``, clients are asked in the order of their arrival until so many updates are
        counted; the others are left out without being computed. Whoever is asked was charged.

        Args:
            schedule: of the round.
            ask: asks clients for updates.
            enough: updates after which nobody is waited for.
            size: numbers that a client sends.

        Returns:
            How many updates were counted, and the traffic.
        """
        waiting = schedule.in_turn()
        answered, traffic, end = 0, Traffic(), schedule.close
        while waiting and (enough is None or answered < enough):
            count = len(waiting) if enough is None else enough - answered
            wave, waiting = waiting[:count], waiting[count:]
            more, used = ask(sorted(wave), answered)
            answered += more
            traffic = traffic.most(used)
            if enough is not None and answered >= enough:
                end = schedule.arrivals[wave[-1]]
        self.now = end
        self._measured(traffic, size=size)
        return answered, traffic

    def _begin(self, cohort: Sequence[int]) -> float:
        """Return when a round begins: now, or (not steady) when the first of its clients comes."""
        if self._steady:
            return self.now
        return min(
            (self._clock.there_from(client, self.now) for client in cohort), default=self.now
        )

    def _bytes(self, client: int, size: int) -> tuple[int, int]:
        """Return the bytes that go down to a client and come up from it."""
        part = 1.0 if self._parts is None else self._parts.of(client)
        down, up = round(self._down * self._size * part), round(self._up * size * part)
        if self._steady and self._coded is not None:
            up = self._coded(round(size * part))
        return down, up

    def _measured(self, traffic: Traffic, *, size: int) -> None:
        """Take the bytes of a number in the next round from this one."""
        if self._steady:
            return
        up, down = float(traffic.up), float(traffic.down)
        if self._parts is not None and traffic.by_rank:
            # As if somebody of the largest rank had answered.
            parts = {r: self._parts.at(r) for r in traffic.by_rank}
            up = max(sizes[0] / parts[r] for r, sizes in traffic.by_rank.items())
            down = max(sizes[1] / parts[r] for r, sizes in traffic.by_rank.items())
        self._up = up / size if up else float(BYTES_A_NUMBER)
        self._down = down / self._size if down else float(BYTES_A_NUMBER)
