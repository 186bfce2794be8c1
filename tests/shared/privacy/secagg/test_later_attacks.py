"""What a lying server, or a client that colludes with it, can try once shares are out."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from shared.errors import QuorumNotReached, SchemaMismatch, SecureAggregationError
from shared.privacy.secagg import (
    ClientSession,
    Confirmation,
    Confirmations,
    Phase,
    SharesForYou,
    SurvivorList,
)
from shared.privacy.secagg.codec import Row
from shared.privacy.secagg.cohort import Cohort, survivors_view
from shared.privacy.secagg.keys import agree, encrypt
from shared.privacy.secagg.masks import MaskedSum, pair_mask_key, self_mask_key
from shared.privacy.secagg.shamir import PRIME, SHARE_BYTES
from shared.privacy.secagg.steps import mask_vector
from tests.shared.privacy.secagg.ensemble import Play, vector_of

VICTIM = 0


def shared(n: int = 5, **changes: object) -> Play:
    return Play.of(n, **changes).until_shared()


def masked(n: int = 5, **changes: object) -> Play:
    return Play.of(n, **changes).until_masked()


def cohort_of(play: Play) -> Cohort:
    assert play.keys is not None
    return Cohort.announced(play.terms, play.keys)


def refuses_to_mask(play: Play, message: SharesForYou, match: str) -> None:
    session = play.sessions[VICTIM]
    with pytest.raises((SecureAggregationError, QuorumNotReached), match=match):
        session.mask(message, vector_of(VICTIM, play.terms.dimension))
    assert session.phase is Phase.CLOSED


def refuses_to_confirm(play: Play, survivors: tuple[int, ...], match: str) -> None:
    assert play.survivors is not None
    session = play.sessions[VICTIM]
    with pytest.raises((SecureAggregationError, QuorumNotReached), match=match):
        session.confirm(replace(play.survivors, survivors=survivors))
    assert session.phase is Phase.CLOSED
    with pytest.raises(SecureAggregationError, match="expected masked"):
        session.confirm(play.survivors)


def refuses_to_reveal(play: Play, message: Confirmations, match: str) -> None:
    session = play.sessions[VICTIM]
    with pytest.raises((SecureAggregationError, QuorumNotReached), match=match):
        session.reveal(message)
    assert session.phase is Phase.CLOSED
    assert play.confirmed is None or message is not play.confirmed


# Sharers and their shares.


def test_a_sharer_that_did_not_sign_is_refused() -> None:
    """A server that counts a dropped client as alive, for a quorum without its noise."""
    play = Play.of(6, honest_fraction=1.0)
    play.advertise()
    play.share(range(5))
    message = play.dealt[VICTIM]
    ghost = replace(message, sharers=(*message.sharers, (5, bytes(64))))
    refuses_to_mask(play, ghost, "client=5: the signature of its 'share' message")


def test_a_sharer_of_another_announcement_is_refused() -> None:
    """Client 5 signed in an earlier attempt of the same terms; its keys of then are not these."""
    first = Play.of(6, honest_fraction=1.0)
    second = Play.among(first.identities, honest_fraction=1.0)
    first.advertise()
    second.advertise()
    stale = first.share_of(5).signature
    second.share(range(5))
    message = second.dealt[VICTIM]
    ghost = replace(message, sharers=(*message.sharers, (5, stale)))
    refuses_to_mask(second, ghost, "client=5: the signature of its 'share' message")


def test_a_sharer_who_was_not_announced_is_refused() -> None:
    play = shared()
    message = play.dealt[VICTIM]
    refuses_to_mask(
        play,
        replace(message, sharers=(*message.sharers, (9, bytes(64)))),
        "phase=share: client=9 was not in the phase before",
    )


def test_too_few_sharers_are_refused() -> None:
    play = shared()
    message = play.dealt[VICTIM]
    few = replace(message, sharers=message.sharers[:3], ciphertexts=message.ciphertexts[:2])
    refuses_to_mask(play, few, "phase=share: 3 of 5 announced clients are left")


def test_another_clients_shares_are_refused() -> None:
    play = shared()
    refuses_to_mask(play, play.dealt[1], "found shares for client=1 and sharers with this")


def test_a_list_of_sharers_without_this_client_is_refused() -> None:
    play = shared()
    message = replace(play.dealt[VICTIM], sharers=play.dealt[VICTIM].sharers[1:])
    refuses_to_mask(play, message, "without this client")


def test_shares_for_another_announcement_are_refused() -> None:
    play, other = shared(), shared()
    refuses_to_mask(play, other.dealt[VICTIM], "phase=share: view=")


@pytest.mark.parametrize(
    ("bend", "match"),
    [
        (lambda rows: rows[1:], "shares of client=1 are missing"),
        (lambda rows: (*rows, (9, rows[0][1])), "client=9 are missing or not a neighbour's"),
        (lambda rows: (), "shares of client=1 are missing"),
        (lambda rows: ((1, rows[1][1]), *rows[1:]), "shares of client=1 .* not authentic"),
        (lambda rows: ((1, bytes(82)), *rows[1:]), "shares of client=1 .* not authentic"),
        (
            lambda rows: ((1, rows[0][1][:-1] + bytes((rows[0][1][-1] ^ 1,))), *rows[1:]),
            "shares of client=1 for client=0 are not authentic",
        ),
    ],
)
def test_shares_that_were_tampered_with_are_refused(bend: object, match: str) -> None:
    assert callable(bend)
    play = shared()
    rows: tuple[Row, ...] = bend(play.dealt[VICTIM].ciphertexts)
    refuses_to_mask(play, replace(play.dealt[VICTIM], ciphertexts=rows), match)


def test_truncated_shares_are_no_message() -> None:
    message = shared().dealt[VICTIM]
    sender, ciphertext = message.ciphertexts[0]
    with pytest.raises(SchemaMismatch, match="81 bytes, expected 82"):
        replace(message, ciphertexts=((sender, ciphertext[:-1]), *message.ciphertexts[1:]))


@pytest.mark.parametrize("which", [0, 1])
def test_a_colluding_client_cannot_share_what_is_no_field_element(which: int) -> None:
    """Encrypted well, by the right client; refused before the vector is masked."""
    play = shared()
    cohort = cohort_of(play)
    secrets = play.fork(1)._state
    assert secrets.secrets is not None
    secret = agree(secrets.secrets.share_key, cohort.entries[VICTIM].share_key)
    shares = [bytes(SHARE_BYTES), bytes(SHARE_BYTES)]
    shares[which] = PRIME.to_bytes(SHARE_BYTES, "big")
    bad = encrypt(secret, cohort.view, 1, VICTIM, b"".join(shares))
    message = play.dealt[VICTIM]
    rows = ((1, bad), *message.ciphertexts[1:])
    refuses_to_mask(play, replace(message, ciphertexts=rows), "not an element of the field")


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(5, dtype=np.uint32),
        np.zeros(7, dtype=np.uint32),
        np.zeros((6, 1), dtype=np.uint32),
        np.zeros(6, dtype=np.int32),
        np.zeros(6, dtype=np.float64),
        [0] * 6,
    ],
)
def test_a_vector_of_another_form_is_refused(vector: object) -> None:
    play = shared()
    session = play.sessions[VICTIM]
    with pytest.raises(SchemaMismatch, match="expected uint32 of shape"):
        session.mask(play.dealt[VICTIM], vector)  # type: ignore[arg-type]
    assert session.phase is Phase.CLOSED


def test_a_vector_is_masked_once() -> None:
    """Two vectors under one mask would give away their difference."""
    play = shared()
    play.masked_of(VICTIM)
    with pytest.raises(SecureAggregationError, match="phase=masked, expected shared"):
        play.masked_of(VICTIM)
    assert play.sessions[VICTIM].phase is Phase.MASKED


def test_clients_with_other_sharers_have_masks_that_do_not_cancel() -> None:
    """The server shows client 0 sharers without client 5, whom all others see and who colludes.

    It is even given all seeds. If masks did not depend on the sharers it could take off everything
    but the masks among 0 to 4, which cancel: the control, in which nobody is shown another list.
    """
    play = Play.of(6, honest_fraction=1.0).until_shared()
    message = play.dealt[0]
    split = replace(
        message,
        sharers=message.sharers[:5],
        ciphertexts=tuple(row for row in message.ciphertexts if row[0] != 5),
    )
    cohort, states = cohort_of(play), {c: play.fork(c)._state for c in range(6)}
    everyone, zero = tuple(range(6)), np.zeros(6, dtype=np.uint32)

    def opened(first: bytes, shown: tuple[int, ...]) -> list[int]:
        """The sum over 0 to 4, less their own masks and those with client 5."""
        total = MaskedSum(6)
        total.add(np.frombuffer(first, dtype="<u4"))
        for client in range(5):
            sharers = shown if client == 0 else everyone
            view, own = cohort.sharers_view(sharers), states[client].own_secrets()
            if client:
                masked = mask_vector(states[client], cohort, sharers, zero)
                total.add(np.frombuffer(masked, dtype="<u4"))
            total.add_mask(self_mask_key(own.seed, view, client), -1)
            if 5 in sharers:
                secret = agree(own.mask_key, cohort.entries[5].mask_key)
                total.add_mask(pair_mask_key(secret, view, client, 5), -1)
        return [int(word) for word in total.words]

    answer = play.sessions[0].mask(split, zero)
    assert opened(mask_vector(states[0], cohort, everyone, zero), everyone) == [0] * 6
    assert 0 not in opened(answer.vector, everyone[:5])
    with pytest.raises(SecureAggregationError, match="phase=mask: view="):
        play.coordinator.accept(0, answer)


# Survivors.


def test_a_peer_cannot_be_listed_active_and_dead() -> None:
    """There is one list; the dead are whoever is not on it, and a duplicate is no list."""
    assert [field.name for field in fields(SurvivorList)] == ["context", "survivors"]
    play = masked()
    assert play.survivors is not None
    with pytest.raises(SchemaMismatch, match="client=2 appears twice"):
        replace(play.survivors, survivors=(0, 1, 2, 2, 3))
    play.confirm()
    for client in range(5):
        message = play.reveals_of(client)
        assert not {c for c, _ in message.seeds} & {c for c, _ in message.keys}


def test_survivors_below_the_quorum_are_refused() -> None:
    refuses_to_confirm(masked(), (0, 1, 2), r"phase=confirm: 3 of 5 .* at least 4")


def test_survivors_who_leave_a_client_alone_are_refused() -> None:
    """Enough in number, but client ``ring[0]`` is cut off: refused by a client far from it too."""
    play = Play.of(200, honest_fraction=0.99, survivor_fraction=0.9, dimension=1)
    play.advertise()
    cohort = cohort_of(play)
    ring, bounds = cohort.graph.order, cohort.bounds
    near = cohort.graph.neighbours(ring[0])
    survivors = tuple(sorted(set(ring) - set(near[: bounds.clients - bounds.required])))
    assert len(survivors) == bounds.required
    far = ring[100]
    assert far not in near
    play.share_of(far)
    sharers = tuple(range(200))
    state = replace(
        play.fork(far)._state,
        phase=Phase.MASKED,
        secrets=None,
        sharers=sharers,
        held=tuple((client, bytes(66)) for client in cohort.graph.neighbours(far)),
    )
    session = ClientSession(state, play.identities[far], play.roster)
    message = SurvivorList(context=cohort.sharers_view(sharers), survivors=survivors)
    with pytest.raises(QuorumNotReached, match=r"phase=confirm: a client has 24 of its 44"):
        session.confirm(message)


def test_survivors_without_this_client_are_refused() -> None:
    refuses_to_confirm(masked(), (1, 2, 3, 4), "client=0 is not among the survivors")


def test_a_survivor_who_never_shared_is_refused() -> None:
    refuses_to_confirm(masked(), (0, 1, 2, 3, 9), "client=9 was not in the phase before")


def test_survivors_of_another_session_are_refused() -> None:
    play, other = masked(), masked()
    assert other.survivors is not None
    with pytest.raises(SecureAggregationError, match="phase=confirm: view="):
        play.sessions[VICTIM].confirm(other.survivors)


def test_both_secrets_of_a_peer_are_not_given_over_two_requests() -> None:
    """The server asks with client 4 alive, then dead: the second question has no answer."""
    play = masked()
    assert play.survivors is not None
    play.confirmation_of(VICTIM)
    dead = replace(play.survivors, survivors=(0, 1, 2, 3))
    with pytest.raises(SecureAggregationError, match="phase=confirmed, expected masked"):
        play.sessions[VICTIM].confirm(dead)


def test_a_revealed_session_answers_nothing_more() -> None:
    play = Play.of(5).until_confirmed()
    assert play.confirmed is not None
    assert play.survivors is not None
    session = play.sessions[VICTIM]
    play.reveals_of(VICTIM)
    assert session.phase is Phase.CLOSED
    with pytest.raises(SecureAggregationError, match="phase=closed, expected confirmed"):
        session.reveal(play.confirmed)
    with pytest.raises(SecureAggregationError, match="phase=closed, expected masked"):
        session.confirm(play.survivors)
    with pytest.raises(SecureAggregationError, match="phase=closed, expected shared"):
        session.mask(play.dealt[VICTIM], vector_of(0, 6))


# Confirmations.


def split_view(play: Play, views: dict[int, tuple[int, ...]]) -> dict[int, Confirmation]:
    """Show each client its own list of survivors and collect what they sign."""
    assert play.survivors is not None
    return {
        client: play.sessions[client].confirm(replace(play.survivors, survivors=survivors))
        for client, survivors in views.items()
    }


def test_a_split_view_reaches_no_quorum_anywhere() -> None:
    """Half of the clients see client 5 alive, half see client 4 alive instead."""
    play = Play.of(6, honest_fraction=1.0).until_masked()
    one, other = (0, 1, 2, 3, 5), (0, 1, 2, 3, 4)
    signed = split_view(play, {0: one, 1: one, 2: other, 3: other})
    for client, view in ((0, (0, 1)), (2, (2, 3))):
        message = Confirmations(
            context=signed[client].context,
            signatures=tuple((c, signed[c].signature) for c in view),
        )
        with pytest.raises(QuorumNotReached, match="2 confirmations, expected 4"):
            play.sessions[client].reveal(message)


def test_signatures_over_another_view_do_not_count() -> None:
    play = Play.of(6, honest_fraction=1.0).until_masked()
    one, other = (0, 1, 2, 3, 5), (0, 1, 2, 3, 4)
    signed = split_view(play, {0: one, 1: one, 2: other, 3: other})
    mixed = Confirmations(
        context=signed[0].context,
        signatures=tuple((c, signed[c].signature) for c in range(4)),
    )
    refuses_to_reveal(play, mixed, "client=2: the signature of its 'confirm' message")


def test_two_quorums_always_share_an_honest_client() -> None:
    """With one colluding client that signs everything, five clients cannot be split."""
    play = masked(5)
    everyone, without = (0, 1, 2, 3, 4), (0, 1, 2, 4)
    signed = split_view(play, {0: everyone, 3: everyone, 1: without, 2: without})
    view = survivors_view(cohort_of(play).sharers_view(everyone), everyone)
    corrupt = play.identities[4].sign("confirm", view, 4)
    rows = ((0, signed[0].signature), (3, signed[3].signature), (4, corrupt))
    message = Confirmations(context=view, signatures=rows)
    refuses_to_reveal(play, message, "3 confirmations, expected 4")


def test_a_confirmation_of_a_dropped_client_does_not_count() -> None:
    play = Play.of(6, honest_fraction=1.0).until_shared()
    play.mask(range(5))
    confirmed = play.confirm()
    rows = (*confirmed.signatures, (5, bytes(64)))
    play.confirmed = None
    refuses_to_reveal(
        play, replace(confirmed, signatures=rows), "client=5 was not in the phase before"
    )


def test_a_signature_counts_once() -> None:
    play = masked()
    confirmed = play.confirm()
    with pytest.raises(SchemaMismatch, match="client=0 appears twice"):
        replace(confirmed, signatures=(confirmed.signatures[0],) * 4)


def test_confirmations_of_other_survivors_are_refused() -> None:
    play = masked()
    confirmed = play.confirm()
    play.confirmed = None
    refuses_to_reveal(play, replace(confirmed, context=bytes(32)), "phase=confirm: view=")


@pytest.mark.parametrize("phase", ["advertised", "shared", "masked", "confirmed"])
def test_phases_cannot_be_skipped(phase: str) -> None:
    """Every message but the next one is refused, and the next one still works."""
    done = Play.of(3, honest_fraction=1.0).until_confirmed()
    play = Play.among(done.identities, honest_fraction=1.0)
    steps = ["share", "mask", "confirm", "reveal"]
    at = ["advertised", "shared", "masked", "confirmed"].index(phase)
    play.advertise()
    for step in steps[:at]:
        getattr(play, step)()
    assert done.keys is not None
    assert done.survivors is not None
    assert done.confirmed is not None
    session = play.sessions[VICTIM]
    messages = (done.keys, done.dealt[VICTIM], done.survivors, done.confirmed)
    for step, message in zip(steps, messages, strict=True):
        if step != steps[at]:
            more = (vector_of(0, 6),) if step == "mask" else ()
            with pytest.raises(SecureAggregationError, match=f"phase={phase}, expected"):
                getattr(session, step)(message, *more)
    getattr(play, steps[at])()
