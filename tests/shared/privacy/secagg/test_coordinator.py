from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shared.errors import QuorumNotReached, SchemaMismatch, SecureAggregationError
from shared.privacy.secagg import Coordinator, MaskedInput, Stage
from shared.privacy.secagg.shamir import PRIME
from tests.shared.privacy.secagg.ensemble import Play, plain_sum


def bump(share: bytes) -> bytes:
    """Another field element."""
    return ((int.from_bytes(share, "big") + 1) % PRIME).to_bytes(33, "big")


def test_only_invited_clients_advertise_each_once_for_itself() -> None:
    play = Play.of(4)
    coordinator = Coordinator(play.terms, play.roster, invited=[0, 1, 2])
    assert list(coordinator.expected) == [0, 1, 2]
    entries = {client: play.start(client) for client in range(4)}
    coordinator.accept(0, entries[0])
    assert list(coordinator.expected) == [1, 2]
    for sender, client in ((0, 0), (1, 2), (3, 3)):
        with pytest.raises(SecureAggregationError, match=f"client={client} from sender={sender}"):
            coordinator.accept(sender, entries[client])


def test_a_bad_advertisement_is_one_dropout_and_not_the_end() -> None:
    play = Play.of(5)
    entries = {client: play.start(client) for client in range(5)}
    copied = replace(entries[4], share_key=entries[0].share_key)
    content = copied.share_key + copied.mask_key + copied.commitment
    signature = play.identities[4].sign("advertise", play.terms.digest(), 4, content)
    for client in range(3):
        play.coordinator.accept(client, entries[client])
    with pytest.raises(SecureAggregationError, match="does not fit its identity"):
        play.coordinator.accept(3, replace(entries[3], mask_key=bytes(32)))
    with pytest.raises(SecureAggregationError, match="client=4 and client=0 announce the same"):
        play.coordinator.accept(4, replace(copied, signature=signature))
    play.coordinator.accept(4, entries[4])
    play.keys = play.coordinator.key_list()
    assert play.keys.clients == (0, 1, 2, 4)


def test_an_advertisement_for_another_session_is_refused() -> None:
    play = Play.of(3)
    other = Play.among(play.identities, session=bytes(32))
    with pytest.raises(SecureAggregationError, match="phase=advertise: view="):
        play.coordinator.accept(0, other.start(0))


def test_stages_close_once_in_order() -> None:
    play = Play.of(3, honest_fraction=1.0)
    coordinator = play.coordinator
    with pytest.raises(SecureAggregationError, match="no cohort is announced"):
        _ = coordinator.bounds
    closers = {
        Stage.ADVERTISE: coordinator.key_list,
        Stage.SHARE: coordinator.deal,
        Stage.MASK: coordinator.survivor_list,
        Stage.CONFIRM: coordinator.confirmations,
        Stage.REVEAL: coordinator.result,
    }
    steps = (play.advertise, play.share, play.mask, play.confirm, play.reveal)
    for stage, step in zip(closers, steps, strict=True):
        assert coordinator.stage is stage
        for other, close in closers.items():
            if other is not stage:
                with pytest.raises(SecureAggregationError, match=f"stage={stage.name.lower()}, "):
                    close()
        step()
    assert coordinator.stage is Stage.DONE
    assert repr(coordinator) == "Coordinator(stage='done', answered=0)"


def test_late_and_early_answers_are_refused() -> None:
    play = Play.of(4, min_cohort=3, honest_fraction=1.0)
    late = play.start(3)
    play.advertise(range(3))
    with pytest.raises(SecureAggregationError, match="stage=share, expected advertise"):
        play.coordinator.accept(3, late)
    early = MaskedInput(context=bytes(32), client=0, vector=bytes(24))
    with pytest.raises(SecureAggregationError, match="stage=share, expected mask"):
        play.coordinator.accept(0, early)


def test_shares_go_to_neighbours_and_are_signed() -> None:
    play = Play.of(5)
    play.advertise()
    shares = play.share_of(0)
    for bad, match in (
        (replace(shares, ciphertexts=shares.ciphertexts[1:]), "others than its neighbours"),
        (replace(shares, signature=bytes(64)), "does not fit its identity"),
        (replace(shares, context=bytes(32)), "phase=share: view="),
    ):
        with pytest.raises(SecureAggregationError, match=match):
            play.coordinator.accept(0, bad)
    play.coordinator.accept(0, shares)
    play.share(range(1, 5))
    assert play.coordinator.stage is Stage.MASK


@pytest.mark.parametrize("words", [0, 5, 7])
def test_a_masked_vector_of_another_length_is_refused(words: int) -> None:
    play = Play.of(5).until_shared()
    message = play.masked_of(0)
    with pytest.raises(SchemaMismatch, match=f"sent {words} words, expected 6"):
        play.coordinator.accept(0, replace(message, vector=bytes(4 * words)))
    play.coordinator.accept(0, message)
    play.mask(range(1, 5))
    play.confirm()
    assert np.array_equal(play.reveal().total, plain_sum(range(5), 6))


def test_a_false_confirmation_is_not_passed_on() -> None:
    play = Play.of(5).until_masked()
    message = play.confirmation_of(0)
    with pytest.raises(SecureAggregationError, match="does not fit its identity"):
        play.coordinator.accept(0, replace(message, signature=bytes(64)))
    with pytest.raises(QuorumNotReached, match="phase=confirm: 3 confirmations, expected at lea"):
        play.confirm(range(1, 4))


def test_reveals_are_of_the_right_secrets_of_the_right_clients() -> None:
    play = Play.of(6, honest_fraction=1.0).until_shared()
    play.mask(range(5))
    play.confirm()
    message = play.reveals_of(0)
    for bad in (
        replace(message, seeds=message.seeds[1:]),
        replace(message, keys=()),
        replace(message, seeds=message.seeds[1:], keys=(message.seeds[0], *message.keys)),
    ):
        with pytest.raises(SecureAggregationError, match="others than its neighbours"):
            play.coordinator.accept(0, bad)
    owner, _ = message.seeds[0]
    wide = replace(message, seeds=((owner, b"\xff" * 33), *message.seeds[1:]))
    with pytest.raises(SecureAggregationError, match="not an element"):
        play.coordinator.accept(0, wide)
    play.coordinator.accept(0, message)
    assert np.array_equal(play.reveal(range(1, 5)).total, plain_sum(range(5), 6))


@pytest.mark.parametrize(("which", "owner"), [("seeds", 1), ("keys", 5)])
def test_a_wrong_share_is_found_and_named(which: str, owner: int) -> None:
    """A lying neighbour: without the commitment the sum would be noise, silently."""
    play = Play.of(6, honest_fraction=1.0).until_shared()
    play.mask(range(5))
    play.confirm()
    message = play.reveals_of(0)
    rows = tuple((c, bump(s) if c == owner else s) for c, s in getattr(message, which))
    play.coordinator.accept(0, replace(message, **{which: rows}))  # type: ignore[arg-type]
    match = rf"client={owner} do not give its advertised|no 32-byte secret"
    with pytest.raises(SecureAggregationError, match=match):
        play.reveal(range(1, 5))


def test_a_commitment_to_another_seed_is_found() -> None:
    """Client 0 advertises a commitment to something else, signed well, and goes on with it."""
    play = Play.of(4, honest_fraction=1.0).until_confirmed()
    cohort = play.coordinator._known_cohort()
    false = replace(cohort.entries[0], commitment=bytes(range(1, 33)))
    cohort.entries[0] = false
    with pytest.raises(SecureAggregationError, match="client=0 do not give its advertised seed"):
        play.reveal()


def test_two_dropped_clients_have_no_mask_in_the_sum_with_each_other() -> None:
    play = Play.of(6, honest_fraction=1.0, survivor_fraction=0.6).until_shared()
    play.mask([0, 2, 3, 5])
    play.confirm()
    assert np.array_equal(play.reveal().total, plain_sum([0, 2, 3, 5], 6))
