from __future__ import annotations

import copy
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import FedSLMError, PrivacyError, SchemaMismatch, SecureAggregationError
from shared.privacy.secagg import (
    Advertisement,
    ClientSession,
    Confirmation,
    Identity,
    MaskedInput,
    Phase,
    Reveals,
    Roster,
    SecAggTerms,
    Shares,
    Upload,
)
from shared.privacy.secagg.codec import seal
from shared.privacy.secagg.state import SessionState
from tests.shared.privacy.secagg.ensemble import Play

STEPS = ("advertise", "share", "mask", "confirm", "reveal")


def played(steps: int) -> Play:
    play = Play.of(3, honest_fraction=1.0)
    for step in STEPS[:steps]:
        getattr(play, step)()
    return play


@pytest.mark.parametrize("steps", range(1, 6))
def test_a_session_reads_back_in_every_phase(steps: int) -> None:
    play = played(steps)
    session = play.sessions[0]
    again = play.fork(0)
    assert again.phase == session.phase == Phase(steps)
    assert again.to_bytes() == session.to_bytes()
    assert (again.client, again.terms) == (0, play.terms)
    if steps in (2, 3, 4):
        assert again.announced == session.announced == 3
    else:
        with pytest.raises(SecureAggregationError, match="no cohort is announced"):
            _ = again.announced


@pytest.mark.parametrize("steps", range(1, 6))
def test_damaged_state_is_refused(steps: int) -> None:
    play = played(steps)
    raw = play.sessions[0].to_bytes()
    for bad in (raw[:-1], raw + b"\0", bytes((raw[0] ^ 1,)) + raw[1:], b""):
        with pytest.raises(SchemaMismatch):
            ClientSession.from_bytes(bad, identity=play.identities[0], roster=play.roster)


@given(st.integers(0, 255), st.data())
def test_an_altered_body_is_refused_or_has_one_form(value: int, data: st.DataObject) -> None:
    raw = STATE.to_bytes()
    body = bytearray(raw[6:-16])
    body[data.draw(st.integers(0, len(body) - 1))] = value
    altered = seal(raw[5], bytes(body))
    try:
        state = SessionState.from_bytes(altered)
    except FedSLMError:
        return
    assert state.to_bytes() == altered


STATE = played(1).fork(0)._state


def test_a_state_has_the_fields_of_its_phase() -> None:
    with pytest.raises(SchemaMismatch, match="phase=shared: the state has other fields"):
        replace(STATE, phase=Phase.SHARED)
    with pytest.raises(SchemaMismatch, match="phase=advertised: the state has other fields"):
        replace(STATE, survivors=(1,))
    raw = STATE.to_bytes()
    with pytest.raises(SchemaMismatch, match="phase=9, expected 1 to 5"):
        SessionState.from_bytes(seal(raw[5], b"\x09" + raw[7:-16]))


def test_secrets_are_dropped_when_they_are_no_longer_needed() -> None:
    own = STATE.own_secrets()
    early, late, end = played(2), played(3), played(5)
    for play, kept in ((early, True), (late, False), (end, False)):
        state = play.fork(0)._state
        assert (state.secrets is not None) is kept
    with pytest.raises(SecureAggregationError, match="phase=masked: this client's secrets are"):
        late.fork(0)._state.own_secrets()
    assert end.fork(0)._state.held == ()
    assert len({own.share_key, own.mask_key, own.seed}) == 3
    assert all(len(secret) == 32 for secret in (own.share_key, own.mask_key, own.seed))


def test_a_refused_message_leaves_no_secret_behind() -> None:
    play = played(2)
    secrets = play.fork(0)._state.own_secrets()
    with pytest.raises(SecureAggregationError):
        play.sessions[0].mask(play.dealt[1], play.masked_of(1).words)
    raw = play.sessions[0].to_bytes()
    for secret in (secrets.share_key, secrets.mask_key, secrets.seed):
        assert secret not in raw


@pytest.mark.parametrize("steps", range(1, 5))
def test_no_text_shows_a_secret(steps: int) -> None:
    play = played(steps)
    state = play.fork(0)._state
    text = repr(play.sessions[0]) + repr(state) + repr(state.secrets) + str(play.coordinator)
    assert "ClientSession(client=0, phase=" in text
    hidden = [pair for _, pair in state.held]
    if state.secrets is not None:
        hidden += [state.secrets.share_key, state.secrets.mask_key, state.secrets.seed]
    assert hidden
    for secret in hidden:
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text


def test_a_session_is_not_copied() -> None:
    session = played(1).sessions[0]
    for how in (copy.copy, copy.deepcopy):
        with pytest.raises(PrivacyError, match="copied or pickled"):
            how(session)


def test_a_session_is_restored_by_its_owner_under_its_roster() -> None:
    play = played(2)
    raw = play.sessions[0].to_bytes()
    with pytest.raises(SecureAggregationError, match="another identity key"):
        ClientSession.from_bytes(raw, identity=play.identities[1], roster=play.roster)
    keys = {client: play.roster.public_key(client) for client in play.roster}
    wider = Roster({**keys, 50: Identity.generate().public_key})
    with pytest.raises(SecureAggregationError, match="begun under another roster"):
        ClientSession.from_bytes(raw, identity=play.identities[0], roster=wider)


def test_nothing_but_the_protocol_leaves_a_client() -> None:
    """Every field of every upload, by name: a count, a metric or a time would be a new one."""
    allowed: dict[type[Upload], str] = {
        Advertisement: "context client share_key mask_key commitment signature",
        Shares: "context client ciphertexts signature",
        MaskedInput: "context client vector",
        Confirmation: "context client signature",
        Reveals: "context client seeds keys",
    }
    for message, names in allowed.items():
        assert [field.name for field in fields(message)] == names.split()


def test_sizes_depend_on_public_numbers_alone() -> None:
    """Two runs with other vectors and secrets have messages of equal sizes: 22 + 32 + body."""

    def sizes() -> list[int]:
        play = played(1)
        entry, shares = play.start(0), play.share_of(1)
        masked = played(2).masked_of(0)
        return [len(message.to_bytes()) for message in (entry, shares, masked)]

    # client, keys, commitment, signature; client, table of two, signature; client, table of words
    expected = [54 + 4 + 96 + 64, 54 + 4 + 4 + 2 * 86 + 64, 54 + 4 + 4 + 4 * 6]
    assert sizes() == sizes() == expected


def test_terms_hold_no_secret_and_show() -> None:
    assert "run_id='run'" in repr(played(1).sessions[0].terms)
    assert isinstance(STATE.terms, SecAggTerms)
