"""What a lying server, or a client that colludes with it, can try before anything is shared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from shared.errors import (
    ConflictingSettings,
    QuorumNotReached,
    SchemaMismatch,
    SecureAggregationError,
)
from shared.privacy.secagg import Advertisement, ClientSession, Identity, KeyList, Phase
from shared.privacy.secagg.keys import new_private_key, public_key
from tests.shared.privacy.secagg.ensemble import Play

VICTIM = 0


def lists(play: Play, entries: Iterable[Advertisement]) -> KeyList:
    return KeyList(context=play.terms.digest(), advertisements=tuple(entries))


def forged(
    play: Play, client: int, signer: Identity | None = None, **changes: bytes
) -> Advertisement:
    """A well-signed advertisement with whatever keys, as a colluding client would make it."""
    context = changes.pop("context", play.terms.digest())
    keys = {
        "share_key": public_key(new_private_key()),
        "mask_key": public_key(new_private_key()),
        "commitment": new_private_key(),
        **changes,
    }
    who = signer or play.identities[client]
    content = keys["share_key"] + keys["mask_key"] + keys["commitment"]
    return Advertisement(
        context=context,
        client=client,
        signature=who.sign("advertise", context, client, content),
        **keys,
    )


def swap(play: Play, entry: Advertisement) -> KeyList:
    """The announcement with one entry put in the place of the client's own."""
    assert play.keys is not None
    rest = [e for e in play.keys.advertisements if e.client != entry.client]
    return lists(play, sorted([*rest, entry], key=lambda e: e.client))


def refused(play: Play, message: KeyList, match: str) -> None:
    """The victim refuses, says why, and is left without secrets."""
    session = play.sessions[VICTIM]
    with pytest.raises(SecureAggregationError, match=match):
        session.share(message)
    assert session.phase is Phase.CLOSED
    with pytest.raises(SecureAggregationError, match="expected advertised"):
        session.share(play.keys or message)


@pytest.fixture
def play() -> Play:
    found = Play.of(5)
    found.advertise()
    return found


def test_the_man_in_the_middle_cannot_swap_keys(play: Play) -> None:
    """The server puts its own keys in the place of client 2's, under its own identity."""
    refused(play, swap(play, forged(play, 2, Identity.generate())), "client=2: the signature")


def test_a_swapped_key_under_the_old_signature_is_refused(play: Play) -> None:
    assert play.keys is not None
    entry = play.keys.advertisements[2]
    for key in ("share_key", "mask_key", "commitment"):
        victim = Play.among(play.identities)
        victim.keys = play.keys
        victim.sessions = {VICTIM: play.fork(VICTIM)}
        changed = replace(entry, **{key: new_private_key()})  # type: ignore[arg-type]
        refused(victim, swap(play, changed), "client=2: the signature")


def test_a_key_signed_by_another_member_is_refused(play: Play) -> None:
    refused(play, swap(play, forged(play, 2, play.identities[3])), "client=2: the signature")


@pytest.mark.parametrize(
    "changes",
    [
        {"session": bytes(32)},
        {"server_round": 2},
        {"run_id": "another"},
        {"plan_digest": "0" * 64},
        {"config_digest": "0" * 64},
        {"min_cohort": 4},
        {"honest_fraction": 1.0},
        {"survivor_fraction": 0.9},
        {"dimension": 5},
    ],
)
def test_a_key_from_another_session_is_refused(play: Play, changes: dict[str, object]) -> None:
    """Replay: a signature that was valid under other terms, under the context of these."""
    other = Play.among(play.identities, **changes)
    old = other.start(2)
    moved = replace(old, context=play.terms.digest())
    refused(play, swap(play, moved), "client=2: the signature")


def test_an_announcement_for_other_terms_is_refused(play: Play) -> None:
    """A server with weaker terms: fewer survivors, no collusion, a cohort of three."""
    weak = Play.among(play.identities, survivor_fraction=0.7, honest_fraction=1.0)
    message = weak.advertise()
    refused(play, message, "for other terms")


def test_no_message_can_carry_a_threshold() -> None:
    """Parameters are each client's own; there is no field through which they could be weakened."""
    for message in (Advertisement, KeyList):
        names = set(message.__dataclass_fields__)
        assert not names & {"threshold", "degree", "neighbours", "quorum", "required", "graph"}


def test_two_entries_of_one_client_are_no_list(play: Play) -> None:
    assert play.keys is not None
    entries = play.keys.advertisements
    with pytest.raises(SchemaMismatch, match="client=1 appears twice"):
        lists(play, [*entries[:2], forged(play, 1), *entries[2:]])


@pytest.mark.parametrize("key", ["share_key", "mask_key", "commitment"])
def test_a_copied_key_is_refused(play: Play, key: str) -> None:
    """Client 4 colludes and announces client 2's key as its own."""
    assert play.keys is not None
    copied = getattr(play.keys.advertisements[2], key)
    entry = forged(play, 4, **{key: copied})
    refused(play, swap(play, entry), "client=4 and client=2 announce the same key")


def test_one_key_for_two_purposes_is_refused(play: Play) -> None:
    key = public_key(new_private_key())
    entry = forged(play, 4, share_key=key, mask_key=key)
    refused(play, swap(play, entry), "client=4 and client=4 announce the same key")


def test_a_stranger_is_refused(play: Play) -> None:
    """Sybils: whoever is not in the victim's own roster does not count."""
    assert play.keys is not None
    stranger = forged(play, 77, Identity.generate())
    message = lists(play, [*play.keys.advertisements, stranger])
    refused(play, message, "client=77 is not in the roster of 5 clients")


def test_a_changed_own_entry_is_refused(play: Play) -> None:
    """Even one that is signed well, as by a server that has stolen the identity."""
    refused(play, swap(play, forged(play, VICTIM)), "client=0: its own entry was changed")


def test_a_missing_own_entry_is_refused(play: Play) -> None:
    assert play.keys is not None
    message = lists(play, play.keys.advertisements[1:])
    refused(play, message, "client=0 is not among the 4 announced")


def test_a_small_cohort_is_refused() -> None:
    play = Play.of(5, min_cohort=5)
    keys = play.advertise()
    session = play.sessions[VICTIM]
    with pytest.raises(QuorumNotReached, match="phase=advertise: 4 clients, expected at least 5"):
        session.share(lists(play, keys.advertisements[:4]))
    assert session.phase is Phase.CLOSED


def test_a_cohort_that_cannot_be_safe_is_refused() -> None:
    """Five would do; of four, one may collude and one drop out, and that is too many."""
    play = Play.of(5, honest_fraction=0.7, survivor_fraction=0.7)
    keys = play.advertise()
    with pytest.raises(ConflictingSettings, match="clients=4"):
        play.sessions[VICTIM].share(lists(play, keys.advertisements[:4]))


def test_a_key_of_small_order_is_refused(play: Play) -> None:
    """It would make the victim's secrets with client 2 known to everybody."""
    refused(play, swap(play, forged(play, 2, share_key=bytes(32))), "small order")


def test_a_second_announcement_is_refused_without_harm(play: Play) -> None:
    """The same or another one: shares are made once, for one graph."""
    assert play.keys is not None
    play.share_of(VICTIM)
    for message in (play.keys, lists(play, play.keys.advertisements[:4])):
        with pytest.raises(SecureAggregationError, match="phase=shared, expected advertised"):
            play.sessions[VICTIM].share(message)
    assert play.sessions[VICTIM].phase is Phase.SHARED


def test_a_client_must_be_who_the_roster_says() -> None:
    play = Play.of(3, honest_fraction=1.0)
    with pytest.raises(SecureAggregationError, match="client=0: the roster has another identity"):
        ClientSession.start(play.terms, 0, play.identities[1], play.roster)
    with pytest.raises(SecureAggregationError, match="client=9 is not in the roster"):
        ClientSession.start(play.terms, 9, play.identities[1], play.roster)
