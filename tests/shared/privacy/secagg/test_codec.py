from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError, ConflictingSettings, InvalidValue, SchemaMismatch
from shared.privacy.secagg import (
    Advertisement,
    Confirmation,
    Confirmations,
    KeyList,
    MaskedInput,
    Reveals,
    SecAggTerms,
    Shares,
    SharesForYou,
    SurvivorList,
)
from shared.privacy.secagg.codec import Row, require_client, seal, unseal, write_blob, write_integer
from shared.privacy.secagg.message import Message
from tests.shared.privacy.secagg.ensemble import TERMS

CONTEXT = bytes(32)

indices = st.integers(0, 2**32 - 1)


def blobs(width: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=width, max_size=width)


def tables(width: int) -> st.SearchStrategy[tuple[Row, ...]]:
    rows = st.dictionaries(indices, blobs(width), max_size=4)
    return rows.map(lambda found: tuple(sorted(found.items())))


contexts = st.fixed_dictionaries({"context": blobs(32)})
advertisements = st.builds(
    Advertisement,
    context=st.just(CONTEXT),
    client=indices,
    share_key=blobs(32),
    mask_key=blobs(32),
    commitment=blobs(32),
    signature=blobs(64),
)
messages = st.one_of(
    advertisements,
    st.builds(
        KeyList,
        context=st.just(CONTEXT),
        advertisements=st.lists(advertisements, max_size=4, unique_by=lambda m: m.client).map(
            lambda found: tuple(sorted(found, key=lambda m: m.client))
        ),
    ),
    st.builds(
        Shares, context=blobs(32), client=indices, ciphertexts=tables(82), signature=blobs(64)
    ),
    st.builds(
        SharesForYou,
        context=blobs(32),
        receiver=indices,
        sharers=tables(64),
        ciphertexts=tables(82),
    ),
    st.builds(
        MaskedInput,
        context=blobs(32),
        client=indices,
        vector=st.integers(0, 5).flatmap(lambda n: blobs(4 * n)),
    ),
    st.builds(
        SurvivorList,
        context=blobs(32),
        survivors=st.sets(indices, max_size=5).map(lambda found: tuple(sorted(found))),
    ),
    st.builds(Confirmation, context=blobs(32), client=indices, signature=blobs(64)),
    st.builds(Confirmations, context=blobs(32), signatures=tables(64)),
    st.builds(Reveals, context=blobs(32), client=indices, seeds=tables(33), keys=st.just(())),
    st.builds(Reveals, context=blobs(32), client=indices, seeds=st.just(()), keys=tables(33)),
)


def resealed(message: Message, body: bytes) -> bytes:
    """An envelope that is intact around whatever body."""
    return seal(message.KIND, body)


@given(messages)
def test_every_message_reads_back(message: Message) -> None:
    raw = message.to_bytes()
    again = type(message).from_bytes(raw)
    assert again == message
    assert again.to_bytes() == raw


@given(messages, st.data())
def test_every_damage_is_found(message: Message, data: st.DataObject) -> None:
    """A flipped bit passes a 128-bit digest with probability 2**-128."""
    raw = bytearray(message.to_bytes())
    how = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    if how == "flip":
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        raw += data.draw(st.binary(min_size=1, max_size=9))
    with pytest.raises(SchemaMismatch):
        type(message).from_bytes(bytes(raw))


@given(messages, st.data())
def test_a_body_has_one_form(message: Message, data: st.DataObject) -> None:
    """Behind a digest that fits, an altered body is refused or is another message's one form."""
    body = bytearray(message.to_bytes()[6:-16])
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    raw = resealed(message, bytes(body))
    try:
        other = type(message).from_bytes(raw)
    except SchemaMismatch:
        return
    assert other != message
    assert other.to_bytes() == raw


@given(messages)
def test_a_body_is_read_to_the_end(message: Message) -> None:
    body = message.to_bytes()[6:-16]
    with pytest.raises(SchemaMismatch, match="too many"):
        type(message).from_bytes(resealed(message, body + b"\0"))
    with pytest.raises(SchemaMismatch):
        type(message).from_bytes(resealed(message, body[:-1]))


@given(messages, messages)
def test_kinds_are_not_confused(one: Message, other: Message) -> None:
    if type(one) is not type(other):
        with pytest.raises(SchemaMismatch, match="another kind"):
            type(one).from_bytes(other.to_bytes())


def test_another_version_is_refused() -> None:
    raw = bytearray(SurvivorList(context=CONTEXT, survivors=(1,)).to_bytes())
    raw[4] += 1
    raw[-16:] = hashlib.sha256(bytes(raw[:-16])).digest()[:16]
    with pytest.raises(SchemaMismatch, match="another version"):
        SurvivorList.from_bytes(bytes(raw))


def test_the_form_is_fixed() -> None:
    """Known bytes: whoever changes them must raise the version."""
    raw = SurvivorList(context=bytes(range(32)), survivors=(1, 258)).to_bytes()
    head = b"FSSA\x01\x07" + bytes(range(32))
    assert raw[:-16] == head + b"\0\0\0\x02" + b"\0\0\0\x01" + b"\0\0\x01\x02"
    assert raw[-16:] == hashlib.sha256(raw[:-16]).digest()[:16]


def test_a_table_that_claims_more_than_there_is_costs_no_memory() -> None:
    body = CONTEXT + b"\xff\xff\xff\xff"
    with pytest.raises(SchemaMismatch, match="ends after 0 bytes"):
        SurvivorList.from_bytes(seal(SurvivorList.KIND, body))


@pytest.mark.parametrize("clients", [(2, 1), (1, 1), (-1,), (2**32,), (True,), ("1",)])
def test_lists_of_clients_are_ascending_and_without_duplicates(clients: tuple[int, ...]) -> None:
    with pytest.raises(SchemaMismatch, match="expected"):
        SurvivorList(context=CONTEXT, survivors=clients)


@pytest.mark.parametrize("client", [-1, 2**32, True, 1.0, None])
def test_a_client_is_an_index(client: int) -> None:
    with pytest.raises(SchemaMismatch, match="expected an integer"):
        require_client(client)


def test_widths_are_required() -> None:
    with pytest.raises(SchemaMismatch, match="signature has 63 bytes, expected 64"):
        Confirmation(context=CONTEXT, client=1, signature=bytes(63))
    with pytest.raises(SchemaMismatch, match="signature has str, expected 64"):
        Confirmation(context=CONTEXT, client=1, signature="no")  # type: ignore[arg-type]
    with pytest.raises(SchemaMismatch, match="context has 31 bytes"):
        SurvivorList(context=bytes(31), survivors=())
    with pytest.raises(SchemaMismatch, match="ciphertexts has 81 bytes, expected 82"):
        Shares(context=CONTEXT, client=1, ciphertexts=((2, bytes(81)),), signature=bytes(64))
    with pytest.raises(SchemaMismatch, match="whole number of 32-bit words"):
        MaskedInput(context=CONTEXT, client=1, vector=bytes(5))
    with pytest.raises(SchemaMismatch, match="whole number"):
        MaskedInput(context=CONTEXT, client=1, vector="abcd")  # type: ignore[arg-type]


def test_nobody_has_both_secrets_revealed_in_one_message() -> None:
    row = ((4, bytes(33)),)
    with pytest.raises(SchemaMismatch, match="client=4 has both secrets revealed"):
        Reveals(context=CONTEXT, client=1, seeds=row, keys=row)


def test_a_list_holds_advertisements_of_its_own_terms_only() -> None:
    entry = Advertisement(
        context=bytes(32),
        client=1,
        share_key=bytes(32),
        mask_key=bytes(32),
        commitment=bytes(32),
        signature=bytes(64),
    )
    with pytest.raises(SchemaMismatch, match="client=1 advertised under other terms"):
        KeyList(context=b"\1" * 32, advertisements=(entry,))


terms = st.builds(
    SecAggTerms,
    run_id=st.text(min_size=1, max_size=40).filter(lambda t: t.isprintable()),
    server_round=indices,
    session=blobs(32),
    config_digest=st.text("0123456789abcdef", min_size=64, max_size=64),
    plan_digest=st.just("0" * 64),
    honest_fraction=st.floats(0.6, 1.0),
    survivor_fraction=st.floats(0.75, 1.0),
    min_cohort=st.integers(3, 2**32 - 1),
    dimension=st.integers(1, 2**31 - 1),
)


@given(terms, terms)
def test_terms_read_back_and_digests_differ(one: SecAggTerms, other: SecAggTerms) -> None:
    assert SecAggTerms.from_bytes(one.to_bytes()) == one
    assert len(one.digest()) == 32
    assert (one.digest() == other.digest()) == (one == other)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", "other"),
        ("server_round", 4),
        ("session", bytes(32)),
        ("config_digest", "e" * 64),
        ("plan_digest", "e" * 64),
        ("honest_fraction", 0.81),
        ("survivor_fraction", 0.81),
        ("min_cohort", 4),
        ("dimension", 7),
    ],
)
def test_every_term_is_in_the_digest(field: str, value: object) -> None:
    assert replace(TERMS, **{field: value}).digest() != TERMS.digest()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", ""),
        ("run_id", "x" * 257),
        ("run_id", 3),
        ("config_digest", "C" * 64),
        ("plan_digest", "c" * 63),
        ("plan_digest", None),
        ("server_round", -1),
        ("server_round", True),
        ("server_round", 1.0),
        ("min_cohort", 2),
        ("dimension", 0),
        ("dimension", 2**31),
        ("honest_fraction", 0.0),
        ("survivor_fraction", float("nan")),
    ],
)
def test_terms_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidValue, match=field):
        replace(TERMS, **{field: value})  # type: ignore[arg-type]


def test_a_short_session_is_refused() -> None:
    with pytest.raises(SchemaMismatch, match="session has 16 bytes"):
        replace(TERMS, session=bytes(16))


def test_fractions_that_no_cohort_can_serve_are_refused() -> None:
    with pytest.raises(ConflictingSettings, match="two different sums"):
        replace(TERMS, survivor_fraction=0.6)


@pytest.mark.parametrize("text", [b"0.80", b"8e-1", b"eight", b"\xff"])
def test_fractions_have_one_form(text: bytes) -> None:
    raw = TERMS.to_bytes()
    body = raw[6:-16]
    old = write_blob(b"0.8")
    altered = body.replace(old, write_blob(text), 1)
    assert altered != body
    with pytest.raises((InvalidValue, SchemaMismatch), match=r"fraction=|UTF-8"):
        SecAggTerms.from_bytes(seal(raw[5], altered))


@given(st.binary(max_size=80))
def test_noise_is_no_message(raw: bytes) -> None:
    with pytest.raises((SchemaMismatch, ConfigError)):
        SecAggTerms.from_bytes(raw)
    with pytest.raises(SchemaMismatch):
        KeyList.from_bytes(seal(KeyList.KIND, raw + b"\1"))


def test_the_envelope_costs_22_bytes() -> None:
    assert len(seal(9, b"abc")) == 25
    assert unseal(9, seal(9, write_integer(7))).integer() == 7
