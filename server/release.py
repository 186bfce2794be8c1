"""From a cohort to the one thing that a round releases, by the mechanism of the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.aggregation import Aggregate, Aggregator, correlated_noise, make_aggregator
from server.asyncround import AsyncRounds, async_rounds
from server.collect import (
    OnAnswer,
    OnRefused,
    SecureRound,
    Traffic,
    ask_nobody,
    collect_updates,
    tell_nobody,
)
from server.fedex import ExactMean
from server.flexlora import ProductMean
from server.liverounds import LiveRounds
from server.messenger import Messenger
from server.rankedround import RankedRound
from server.reading import UpdateReader
from server.robust import rule_of
from server.setup import RoundObserver, RunSetup
from server.timing import SECONDS, RankParts, RoundTimer, clock_of, wanted_answers
from server.updatebuffer import Holder
from shared.errors import QuorumNotReached, SecureAggregationError
from shared.link import Coded, uplink
from shared.lora import Vector
from shared.mixedranks import mixed_ranks
from shared.privacy.correlated import CorrelatedNoise
from shared.privacy.noise import SEEDED, NoiseSource
from shared.privacy.noiserows import forget_rows
from shared.privacy.vote import VoteSum
from shared.ranklinks import first_links
from shared.residual import Residual
from shared.seeding import data_rng
from shared.wire import Instruction

NodesOf = Callable[[Sequence[int]], Mapping[int, int]]


def keep_nothing() -> None:
    """Make nothing durable: what a killed run computed is computed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What a round came to.

    Attributes:
        aggregate: the mean; None if there was nothing to release.
        traffic: bytes.
        failure: why the round was aborted, or None.
        opened: whether anybody could have read something of an aborted round.
        vote: the noised votes over the expected cohort, in a round that has a vote.
    """

    aggregate: Aggregate | None
    traffic: Traffic
    failure: str | None = None
    opened: bool = True
    vote: float | None = None


def choose_others(
    rng: np.random.Generator, cohort: Sequence[int], *, count: int, population: int
) -> list[int]:
    """Draw clients that are not in a cohort, without listing the population.

    Args:
        rng: where the draw comes from.
        cohort: different clients of the population.
        count: how many others, at most ``population - len(cohort)``.
        population: number of clients.

    Returns:
        Different clients in ascending order, every set of that many equally likely. Memory grows
        with cohort and count alone.
    """
    taken = np.sort(np.asarray(cohort, dtype=np.int64))
    ranks = rng.choice(population - taken.size, size=count, replace=False)
    # So many clients before the i-th of the cohort are not in it.
    before = taken - np.arange(taken.size)
    others: list[int] = (ranks + np.searchsorted(before, ranks, side="right")).tolist()
    return sorted(others)


class Releaser:
    """Holds what a mechanism remembers between rounds, and releases one mean a round.

    Args:
        setup: what the run is.
        start: the factors of the public seed that move, of which devices know.
        observer: is told about each answer.
        nodes_of: returns client by node for some clients.
        on_refused: is told of a message that breaks the protocol.
        keep: makes durable what has arrived of a step that is under way.
    """

    def __init__(
        self,
        setup: RunSetup,
        *,
        start: Vector,
        observer: RoundObserver,
        nodes_of: NodesOf,
        on_refused: OnRefused = tell_nobody,
        keep: Callable[[], None] = keep_nothing,
    ) -> None:
        self._on_refused = on_refused
        self._keep = keep
        self._setup = setup
        self._observer = observer
        self._nodes_of = nodes_of
        self._link = uplink(setup.config.link)
        self._ranks = mixed_ranks(setup.config, setup.spec)
        self._downlinks = first_links(setup.config, start, self._ranks, r=setup.spec.r)
        self._rows: CorrelatedNoise | None = None
        moved = setup.spec.size(setup.config.trained_kinds)
        self.asynchronous: AsyncRounds | LiveRounds | None = async_rounds(setup, size=self._size(1))
        clock = None if self.asynchronous is not None else clock_of(setup.config)
        self.timer = None
        if clock is not None:
            steady = setup.plan.mode not in {"none", "example"}
            coded = None if self._link is None else self._link.code.length
            parts = None if self._ranks is None else RankParts(self._ranks, "B")
            self.timer = RoundTimer(clock, size=moved, steady=steady, coded=coded, parts=parts)
        self._rule = rule_of(setup.config.aggregation)
        quantile = setup.plan.quantile
        self.clip: float | None = None if quantile is None else quantile.initial
        self.residual: Residual | None = None

    def begin(self, finished_rounds: int) -> None:
        """Make ready for the round after ``finished_rounds``; before anything is charged."""
        setup = self._setup
        self._rows = correlated_noise(
            self._size(finished_rounds + 1),
            plan=setup.plan,
            folder=setup.folder,
            seed=setup.config.run.seed,
            finished=finished_rounds,
        )

    def end(self) -> None:
        """Forget what would let a reader of the folder take the noise off, after the last round."""
        if self._rows is not None:
            forget_rows(self._setup.folder)

    def release(
        self, messenger: Messenger, instruction: Instruction, cohort: Sequence[int]
    ) -> Release:
        """Send the round, sum what comes back, and release the mean.

        Raises:
            QuorumNotReached: if too few clients answered and the server adds the noise.
        """
        if self._setup.plan.distributed is not None:
            return self._secure_sum(messenger, instruction, cohort)
        if isinstance(self.asynchronous, LiveRounds):
            return self._live(messenger, instruction, cohort, self.asynchronous)
        if self.asynchronous is not None:
            return self._buffered(messenger, instruction, self.asynchronous)
        return self._updates(messenger, instruction, cohort)

    def _updates(
        self, messenger: Messenger, instruction: Instruction, cohort: Sequence[int]
    ) -> Release:
        """Aggregate updates as they come, at the server."""
        setup = self._setup
        plan, server_round = setup.plan, instruction.server_round
        size = self._size(server_round)
        ranked = self._ranked(instruction)
        aggregator = self._aggregator(instruction, ranked)
        on_next = aggregator.of if isinstance(aggregator, ProductMean) else ask_nobody
        enough = wanted_answers(setup.config, len(cohort))
        due = plan.vote is not None and plan.vote.taken(server_round)
        votes = VoteSum(plan.vote) if plan.vote is not None and due else None

        def ask(clients: Sequence[int], before: int) -> tuple[int, Traffic]:
            return collect_updates(
                messenger,
                self._nodes_of(clients),
                instruction,
                aggregator=aggregator,
                plan=plan,
                on_answer=self._teller(server_round, len(cohort), before=before),
                on_refused=self._on_refused,
                size=size,
                link=self._link,
                enough=None if enough is None else enough - before,
                on_next=on_next,
                ranked=ranked,
                on_vote=None if votes is None else votes.add,
            )

        if self.timer is None:
            answered, traffic = ask(cohort, 0)
        else:
            schedule = self.timer.schedule(server_round, cohort, size=size)
            answered, traffic = self.timer.run(schedule, ask, enough=enough, size=size)
        self._check_quorum(answered, enough or len(cohort), server_round)
        try:
            aggregate = aggregator.release()
        except QuorumNotReached as error:
            # A robust rule with too few updates: what it made of them could be an attacker's.
            return Release(aggregate=None, traffic=traffic, failure=error.message)
        if aggregate is not None:
            self.clip, self.residual = aggregate.next_clip, aggregate.residual
        vote = None
        if votes is not None:
            source = self._noise(server_round, "vote-noise")
            vote = votes.release(expected_count=plan.expected_cohort, source=source)
        return Release(aggregate=aggregate, traffic=traffic, vote=vote)

    def _buffered(
        self, messenger: Messenger, instruction: Instruction, rounds: AsyncRounds
    ) -> Release:
        """Compute the answers of the clients that began, and release the buffer that is full."""
        server_round = instruction.server_round
        ranked = self._ranked(instruction)

        def collect(clients: Sequence[int], holder: Holder) -> Traffic:
            _, traffic = collect_updates(
                messenger,
                self._nodes_of(clients),
                instruction,
                aggregator=holder,
                plan=self._setup.plan,
                on_answer=self._teller(server_round, len(clients)),
                on_refused=self._on_refused,
                link=self._link,
                on_next=holder.of,
                ranked=ranked,
            )
            return traffic

        aggregate, answered, traffic = rounds.step(server_round, collect)
        self._check_quorum(answered, rounds.size, server_round)
        return Release(aggregate=aggregate, traffic=traffic)

    def _live(
        self,
        messenger: Messenger,
        instruction: Instruction,
        cohort: Sequence[int],
        rounds: LiveRounds,
    ) -> Release:
        """Ask devices that begin, and release the buffer once enough of any step have answered."""
        server_round = instruction.server_round
        reader = UpdateReader(
            instruction=instruction,
            plan=self._setup.plan,
            size=self._size(server_round),
            link=self._link,
            ranked=self._ranked(instruction),
            on_refused=self._on_refused,
        )
        aggregate, failure, traffic = rounds.step(
            messenger,
            self._nodes_of(cohort),
            reader,
            keep=self._keep,
            on_answer=self._teller(server_round, rounds.size),
        )
        return Release(aggregate=aggregate, traffic=traffic, failure=failure)

    def resume_time(self, record: Mapping[str, Any]) -> None:
        """Go on at the time of the last finished round's metrics line."""
        if self.timer is not None:
            self.timer.restore(record, size=self._size(int(record["round"])))

    def time_notes(self) -> dict[str, float | int]:
        """Return what a metrics line says of simulated time; nothing where none is simulated."""
        if self.asynchronous is not None:
            return self.asynchronous.notes()
        return {} if self.timer is None else {SECONDS: self.timer.now}

    def coded(self, server_round: int, vector: Vector) -> tuple[Vector, Coded | None]:
        """Return the adapter as clients of a round read it, and its bytes where they are coded.

        Where ranks differ it is cut and coded for each of them later, and is whole here.
        """
        if server_round == 0 or self._ranks is not None:
            return vector, None
        return self._downlinks[self._setup.spec.r].seen(vector)

    def _ranked(self, instruction: Instruction) -> RankedRound | None:
        """Return the round by rank; None where all clients have one."""
        if self._ranks is None:
            return None
        return RankedRound(self._setup.config, self._ranks, self._downlinks, instruction)

    def _aggregator(self, instruction: Instruction, ranked: RankedRound | None) -> Aggregator:
        """Return what takes the round's updates: the mechanism's, or the policy's own."""
        setup, server_round = self._setup, instruction.server_round
        if setup.config.policy_facts.residual:
            return ExactMean(
                setup.spec, instruction.vector, plan=setup.plan, residual=instruction.residual
            )
        if not setup.config.policy_facts.linear:
            start_of = None if ranked is None else ranked.start
            return ProductMean(setup.spec, instruction.vector, plan=setup.plan, start_of=start_of)
        return make_aggregator(
            self._size(server_round),
            plan=setup.plan,
            source=self._noise(server_round),
            server_round=server_round,
            clip=self.clip,
            noise=self._rows,
            robust=self._rule,
            norm_bound=setup.config.aggregation.norm_bound,
        )

    def _secure_sum(
        self, messenger: Messenger, instruction: Instruction, cohort: Sequence[int]
    ) -> Release:
        """Let clients add their noised updates up among themselves, and open the sum.

        A cohort below the minimum is filled up with clients that take part with an empty update,
        so that its size decides nothing; the noise of the whole is the same for every cohort.
        """
        setup, plan = self._setup, self._setup.plan
        if setup.roster is None or plan.distributed is None:
            msg = "mode client-distributed needs the identity keys of all clients."
            raise SecureAggregationError(msg, hint="Give the run its roster.")
        server_round = instruction.server_round
        padding = self._padding(server_round, cohort, plan.distributed.min_cohort)
        outcome = SecureRound(
            messenger,
            self._nodes_of([*cohort, *padding]),
            plan=plan,
            roster=setup.roster,
            instruction=instruction,
            padding=frozenset(padding),
            on_refused=self._on_refused,
            size=self._size(server_round),
            ranked=self._ranked(instruction),
        ).run(self._teller(server_round, len(cohort) + len(padding)))
        if outcome.result is None:
            return Release(
                aggregate=None,
                traffic=outcome.traffic,
                failure=outcome.failure,
                opened=outcome.opened,
            )
        mean = plan.distributed_mechanism.release(
            outcome.result.total,
            cohort=outcome.result.announced,
            survivors=len(outcome.result.survivors),
            expected_count=plan.expected_cohort,
            source=self._noise(server_round),
        )
        aggregate = Aggregate(
            vector=np.asarray(mean.vector, dtype=np.float64), count=len(outcome.result.survivors)
        )
        return Release(aggregate=aggregate, traffic=outcome.traffic)

    def _size(self, server_round: int) -> int:
        """Return the number of parameters that a round releases; correlated noise has one."""
        return self._setup.spec.size(self._setup.config.sent_kinds(server_round))

    def _padding(self, server_round: int, cohort: Sequence[int], least: int) -> list[int]:
        """Choose clients that fill a cohort up to its least size."""
        missing = least - len(cohort)
        if missing <= 0:
            return []
        rng = data_rng(self._setup.config.run.seed, "padding", server_round)
        return choose_others(rng, cohort, count=missing, population=self._setup.population)

    def _teller(self, server_round: int, cohort: int, *, before: int = 0) -> OnAnswer:
        """Return what tells the observer about each answer after the first ``before``."""

        def tell(answered: int) -> None:
            self._observer.client_done(server_round, before + answered, cohort)

        return tell

    def _check_quorum(self, answered: int, cohort: int, server_round: int) -> None:
        """Refuse a round that too few clients answered; what was charged stays charged."""
        needed = math.ceil(self._setup.config.server.quorum * cohort)
        if answered < needed:
            msg = f"Round {server_round}: {answered} of {cohort} clients answered, needed {needed}."
            raise QuorumNotReached(
                msg, hint="The log names what failed; --resume repeats the round."
            )

    def _noise(self, server_round: int, stream: str = "central-noise") -> NoiseSource:
        """Return a generator of the server's noise in a round."""
        if self._setup.plan.noise_source == SEEDED:
            return NoiseSource.seeded(self._setup.config.run.seed, stream, server_round)
        return NoiseSource.from_os()
