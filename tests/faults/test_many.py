"""Many nodes that vanish, answer twice or late, or are revoked with work in hand."""

from __future__ import annotations

import math
import random
import time

import pytest

from client.fleet.messages import Question
from server.fleetdb import FleetDatabase
from simulations.benchmarks.lightnodes import Habit
from tests.faults.fleet import Fleet, check_books
from tests.server.fleetkit import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(240)]

ROUNDS = 20
POPULATION = 10
COHORT = 5
VANISHING = 3


def test_thirty_percent_vanish_in_each_of_twenty_rounds(fleet: Fleet) -> None:
    """Three of ten are not heard of in a round, message or not; half of all are drawn."""
    chance = random.Random(7)
    gone = [frozenset(chance.sample(range(2, POPULATION), VANISHING)) for _ in range(ROUNDS)]

    def choose(client: int, question: Question) -> Habit:
        return "vanish" if client in gone[int(question.group) - 1] else "answer"

    before = fleet.tally.counts["vanished"]
    fleet.orders.choose = choose
    fleet.order(
        "vanishing",
        f"run.rounds={ROUNDS}",
        f"clients.population={POPULATION}",
        f"clients.cohort={COHORT}",
        "server.deadline_seconds=3",
        "server.quorum=0.2",
    )
    records = fleet.finish("vanishing", seconds=230)
    check_books(fleet, "vanishing", ROUNDS, lost=4)
    # In twenty rounds of five, thirty are expected to be drawn and gone.
    assert fleet.tally.counts["vanished"] - before >= ROUNDS / 2
    assert sum(record["answered"] for record in records) >= ROUNDS
    for record in (record for record in records if not record["aborted"]):
        needed = math.ceil(0.2 * record["cohort"])
        assert needed <= record["answered"] <= min(record["cohort"], POPULATION - VANISHING)


def test_below_quorum_a_round_is_not_released_and_the_next_one_follows(fleet: Fleet) -> None:
    """Two of five answer, three are needed: the round stays charged, and is not done again."""
    fleet.orders.choose = lambda client, question: "vanish" if client in {2, 3, 4} else "answer"
    fleet.order("quorum", "run.rounds=4", "server.quorum=0.6", "server.deadline_seconds=8")
    wait_until(
        "a lack", lambda: "answered, needed 3" in fleet.runs.view("quorum").reason, seconds=90
    )
    assert not any(record["answered"] for record in fleet.rounds("quorum"))
    fleet.orders.release()
    fleet.finish("quorum")
    lost = check_books(fleet, "quorum", 4, lost=2)
    assert lost[0] == 1
    assert fleet.rounds("quorum")[-1]["releases"] == 4


def test_who_answers_twice_or_late_counts_once_or_not_at_all(fleet: Fleet) -> None:
    """Client 2 answers again with the opposite update, client 3 after the deadline."""

    def choose(client: int, question: Question) -> Habit:
        del question
        found: dict[int, Habit] = {2: "twice", 3: "late"}
        return found.get(client, "answer")

    counts = fleet.tally.counts
    twice, late = counts["answered-again"], counts["late"]
    fleet.orders.choose = choose
    fleet.order("twice", "run.rounds=3", "server.deadline_seconds=12", "server.quorum=0.4")
    records = fleet.finish("twice")
    # Never six of five, and never client 3.
    assert max(record["answered"] for record in records) <= 4
    wait_until("its deeds", lambda: counts["answered-again"] > twice, seconds=5)
    wait_until("its answers", lambda: counts["late"] > late or late_refused(fleet), seconds=15)
    check_books(fleet, "twice", 3, lost=1)


def late_refused(fleet: Fleet) -> bool:
    """Tell whether answers that came too late were turned away."""
    return bool(fleet.tally.errors)


def test_a_node_revoked_with_work_in_hand_is_not_heard(fleet: Fleet) -> None:
    """Client 12, the last light node, is revoked between its message and its answer."""
    since = len(fleet.orders.asked)
    fleet.orders.holding = frozenset({12})
    fleet.order("revoked", "run.rounds=2", "clients.population=13", "server.deadline_seconds=25")
    wait_until("work", lambda: fleet.orders.held(since) == {12}, seconds=90)
    with FleetDatabase(fleet.home.fleet_database) as database:
        name = next(node.name for node in database.nodes() if node.client_index == 12)
        database.revoke(name, "stolen")
    revoked = time.monotonic()
    denied = fleet.tally.errors["access-denied"]
    fleet.orders.release()
    wait_until("a refusal", lambda: fleet.tally.errors["access-denied"] > denied, seconds=20)
    assert time.monotonic() - revoked < 20
    records = fleet.finish("revoked")
    assert max(record["answered"] for record in records) <= 12
    check_books(fleet, "revoked", 2, lost=1)
