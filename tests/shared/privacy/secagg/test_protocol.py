"""Exact sums, whoever vanishes between which phases; the oracle adds Python integers."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import chain, combinations

import numpy as np
import pytest
from scipy import stats

from shared.errors import ConflictingSettings, QuorumNotReached
from shared.privacy.secagg import ClientSession, Coordinator, Identity, parameters
from tests.shared.privacy.secagg.ensemble import Play, plain_sum, vector_of


def subsets(clients: Iterable[int]) -> Iterator[tuple[int, ...]]:
    pool = tuple(clients)
    return chain.from_iterable(combinations(pool, size) for size in range(len(pool) + 1))


def branch(play: Play, clients: Iterable[int]) -> Play:
    """An independent copy of a play in which these clients can go on."""
    sessions = {client: play.fork(client) for client in clients}
    return Play(
        play.terms,
        play.identities,
        play.roster,
        copy.deepcopy(play.coordinator),
        sessions,
        play.keys,
        dict(play.dealt),
        play.survivors,
        play.confirmed,
    )


def goes_on(play: Play, step: str, who: tuple[int, ...], enough: bool) -> Iterator[Play]:
    """Let some clients answer a phase; it must close exactly if they are enough."""
    copied = branch(play, who)
    if enough:
        getattr(copied, step)(who)
        yield copied
        return
    with pytest.raises(QuorumNotReached, match="expected at least"):
        getattr(copied, step)(who)


def finishes(play: Play, who: tuple[int, ...], sharers: tuple[int, ...], threshold: int) -> int:
    """Let some clients reveal; everybody's secret needs the shares of ``threshold`` others."""
    assert play.survivors is not None
    copied = branch(play, who)
    if min(len(set(who) - {owner}) for owner in sharers) >= threshold:
        total = copied.reveal(who)
        assert total.survivors == play.survivors.survivors
        expected = plain_sum(total.survivors, play.terms.dimension)
        assert np.array_equal(total.total, expected)
        return 1
    with pytest.raises(QuorumNotReached, match="phase=reveal: client="):
        copied.reveal(who)
    return 0


def every_pattern(n: int, h: float, s: float) -> tuple[int, int]:
    """Go through every way to lose clients after the announcement; count rounds that succeed.

    Complete graphs only, where enough neighbours is the same as enough clients, so that the
    expectations below need none of the code's own numbers but the three.
    """
    bounds = parameters(n, h, s)
    need, quorum, threshold = bounds.required, bounds.quorum, bounds.threshold
    start = Play.of(n, honest_fraction=h, survivor_fraction=s)
    start.advertise()
    done = tried = 0
    for sharers in subsets(range(n)):
        for shared in goes_on(start, "share", sharers, len(sharers) >= need):
            for alive in subsets(sharers):
                for masked in goes_on(shared, "mask", alive, len(alive) >= need):
                    for signers in subsets(alive):
                        for confirmed in goes_on(
                            masked, "confirm", signers, len(signers) >= quorum
                        ):
                            for last in subsets(signers):
                                done += finishes(confirmed, last, sharers, threshold)
                                tried += 1
    return done, tried


@pytest.mark.parametrize(("n", "h", "s"), [(3, 1.0, 0.8), (4, 1.0, 0.75)])
def test_small_cohorts_survive_every_pattern_above_the_quorum(n: int, h: float, s: float) -> None:
    done, tried = every_pattern(n, h, s)
    assert 0 < done < tried


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "h", "s"), [(5, 0.8, 0.8), (5, 1.0, 0.8), (6, 1.0, 0.6), (6, 0.8, 0.8)]
)
def test_cohorts_of_five_and_six_survive_every_pattern(n: int, h: float, s: float) -> None:
    done, tried = every_pattern(n, h, s)
    assert 0 < done < tried


@pytest.mark.parametrize("here", list(subsets(range(4))))
def test_the_announcement_needs_the_least_cohort(here: tuple[int, ...]) -> None:
    play = Play.of(4, min_cohort=3, honest_fraction=1.0)
    if len(here) < 3:
        with pytest.raises(QuorumNotReached, match=r"phase=advertise: \d clients, expected"):
            play.advertise(here)
        return
    assert play.advertise(here).clients == here
    play.share()
    play.mask()
    play.confirm()
    total = play.reveal()
    assert np.array_equal(total.total, plain_sum(here, 6))
    assert (total.survivors, total.announced) == (here, len(here))


@pytest.mark.slow
def test_eighty_clients_on_a_sparse_graph_with_dropouts_between_phases() -> None:
    play = Play.of(range(3, 83), honest_fraction=0.9, survivor_fraction=0.9, dimension=1000)
    play.advertise()
    bounds = play.coordinator.bounds
    assert (bounds.degree, bounds.threshold, bounds.complete) == (34, 26, False)
    everybody = list(play.sessions)
    play.share(everybody[2:])
    survivors = play.mask(everybody[5:]).survivors
    play.confirm(everybody[6:])
    total = play.reveal(everybody[8:])
    assert total.survivors == survivors == tuple(everybody[5:])
    assert np.array_equal(total.total, plain_sum(survivors, 1000))
    assert all(session.phase.name == "CLOSED" for session in map(play.fork, everybody[8:]))


@pytest.mark.slow
def test_a_sparse_round_stops_below_its_quorum() -> None:
    play = Play.of(80, honest_fraction=0.9, survivor_fraction=0.9)
    play.advertise()
    play.share()
    with pytest.raises(QuorumNotReached, match=r"phase=mask: 71 of 80 .* at least 72"):
        play.mask(range(71))


def test_clients_with_any_indices_take_part() -> None:
    play = Play.of([0, 7, 2**32 - 1, 2**31, 99])
    play.until_confirmed()
    assert np.array_equal(play.reveal().total, plain_sum(play.identities, 6))


def test_a_cohort_whose_size_allows_no_safe_parameters_is_refused_on_both_sides() -> None:
    play = Play.of(4, honest_fraction=0.67, survivor_fraction=0.7)
    for client in range(4):
        play.coordinator.accept(client, play.start(client))
    with pytest.raises(ConflictingSettings, match="clients=4"):
        play.coordinator.key_list()


def test_the_caller_knows_the_announced_number_before_it_masks() -> None:
    """The noise share is V / n, n announced, though one of them never shared."""
    play = Play.of(6, honest_fraction=1.0)
    play.advertise()
    play.share(range(5))
    session = play.sessions[0]
    assert session.announced == 6
    assert session.bounds.required == 5
    assert len(play.dealt[0].clients) == 5
    play.mask()
    play.confirm()
    assert play.reveal().announced == 6


@pytest.mark.statistical
def test_a_masked_vector_is_uniform() -> None:
    """Of a constant vector; chi-square over bytes and over pairs of low bits.

    The keys come from the operating system: the false-alarm rate is 2e-9 a run.
    """
    play = Play.of(4, dimension=1 << 15, honest_fraction=1.0)
    play.until_shared()
    message = play.sessions[0].mask(play.dealt[0], np.full(1 << 15, 5, dtype=np.uint32))
    found = np.bincount(np.frombuffer(message.vector, dtype=np.uint8), minlength=256)
    expected = len(message.vector) / 256
    assert ((found - expected) ** 2 / expected).sum() < stats.chi2.isf(1e-9, 255)
    low = (message.words & 1).reshape(-1, 2)
    pairs = np.bincount(low[:, 0] * 2 + low[:, 1], minlength=4)
    assert ((pairs - 2**12) ** 2 / 2**12).sum() < stats.chi2.isf(1e-9, 3)


@pytest.mark.statistical
def test_no_sum_over_a_part_of_the_honest_survivors_is_open() -> None:
    """Less its plain sum, each of 30 parts is uniform: masks cancel only over all (3e-8)."""
    n, dimension = 5, 1 << 13
    play = Play.of(n, dimension=dimension)
    play.until_shared()
    sent = {client: play.masked_of(client).words for client in range(n)}
    for part in subsets(range(n)):
        if 0 < len(part) < n:
            words = sum((sent[client] for client in part), np.zeros(dimension, np.uint32))
            words = words - plain_sum(part, dimension)
            found = np.bincount(words.view(np.uint8), minlength=256)
            expected = 4 * dimension / 256
            assert ((found - expected) ** 2 / expected).sum() < stats.chi2.isf(1e-9, 255)


def test_the_server_holds_one_vector_however_many_come() -> None:
    dimension = 400_000
    play = Play.of(6, dimension=dimension, honest_fraction=1.0)
    play.until_shared()
    messages = [play.masked_of(client) for client in range(6)]
    tracemalloc.start()
    for client, message in enumerate(messages):
        play.coordinator.accept(client, message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * dimension


def test_long_vectors_wrap() -> None:
    play = Play.of(3, dimension=1 << 16, honest_fraction=1.0)
    play.until_confirmed()
    assert np.array_equal(play.reveal().total, plain_sum(range(3), 1 << 16))
    assert any(vector_of(client, 1 << 16).max() > 2**31 for client in range(3))


def test_a_session_can_change_process_between_any_two_phases() -> None:
    play = Play.of(5)
    play.advertise()
    for step in ("share", "mask", "confirm", "reveal"):
        play.sessions = {client: play.fork(client) for client in play.sessions}
        done = getattr(play, step)()
    assert np.array_equal(done.total, plain_sum(range(5), 6))


def test_two_sessions_of_one_client_share_nothing() -> None:
    identities = {client: Identity.generate() for client in range(3)}
    plays = [Play.among(identities, honest_fraction=1.0) for _ in range(2)]
    entries = [play.start(0) for play in plays]
    assert entries[0].share_key != entries[1].share_key
    assert entries[0].mask_key != entries[1].mask_key
    assert entries[0].commitment != entries[1].commitment
    assert isinstance(plays[0].sessions[0], ClientSession)
    assert isinstance(plays[0].coordinator, Coordinator)
