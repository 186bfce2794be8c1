"""Manifests and orders: one text for one meaning, one signature, and nothing else gets through."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import adapters
from server.audit import gate
from server.audit import verify as reports
from shared import manifest as names
from shared.crypto import Signature, SigningKey
from shared.documents import LARGEST_DOCUMENT
from shared.errors import AdapterCorrupt, AdapterUntrusted, FedSLMError, InvalidValue
from shared.manifest import (
    ADAPTER_DOMAIN,
    AdapterManifest,
    Audited,
    FileEntry,
    Privacy,
    is_file_name,
    read_manifest,
    sign_manifest,
)
from shared.orders import ORDER_DOMAIN, Order, read_order, sign_order

KEY, OTHER = SigningKey(b"\x01" * 32), SigningKey(b"\x02" * 32)
MANIFEST = AdapterManifest(
    name="quickstart",
    sequence=3,
    order=2,
    created="2026-01-31T12:00:00Z",
    base_digest="ba" * 32,
    plan_digest="1a" * 32,
    ledger_head="1e" * 32,
    parent="0a" * 32,
    files=(
        FileEntry(name="adapter_config.json", size=400, sha256="c0" * 32),
        FileEntry(name="adapter_model.safetensors", size=5000, sha256="fe" * 32),
    ),
    privacy=Privacy(
        mode="client-central",
        epsilon=7.5,
        delta=1e-5,
        unit="client",
        neighboring_relation="add-or-remove-one",
    ),
    audit=Audited(sha256="ad" * 32, verdict="consistent", profile="smoke", signed_by="5e" * 32),
)
ORDER = Order(
    number=4,
    kind="promote",
    digest=MANIFEST.digest,
    sequence=3,
    replaces="0a" * 32,
    previous="0b" * 32,
    created="2026-02-01T00:00:00Z",
)

DIGEST = "ce11e9fc2269411322b2e508fc83a55d5bce7222d0de26c227ff93d1c14b667c"
ORDER_HASH = "3a9502c9cd99d1b662d9b54ccb64e5039f2ea53066dce3f40b81fc2f0e86f5ab"


def read(data: bytes, signature: Signature, *, trusted: str = KEY.public_key) -> AdapterManifest:
    return read_manifest(data, signature, trusted=trusted)


def signed_text(value: object, domain: str = ADAPTER_DOMAIN) -> tuple[bytes, Signature]:
    """Sign any JSON, as an operator with a broken program would."""
    data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return data, KEY.sign(domain, hashlib.sha256(data).hexdigest())


def test_the_names_are_those_of_the_formats_they_come_from() -> None:
    assert names.WEIGHTS == adapters.WEIGHTS
    assert names.PEFT_CONFIG == adapters.PEFT_CONFIG
    assert names.RUN_MANIFEST == adapters.MANIFEST
    assert (names.RELEASE, names.REPORT) == (gate.RELEASE, gate.REPORT_COPY)
    assert names.REPORT_SIGNATURE == reports.SIGNATURE
    assert all(is_file_name(name) for name in (*names.NEEDED, *names.OPTIONAL))


def test_the_digest_is_the_hash_of_the_text_that_is_signed() -> None:
    data = MANIFEST.to_bytes()
    by_hand = json.dumps(MANIFEST.to_dict(), sort_keys=True, separators=(",", ":")).encode()
    assert data == by_hand
    assert MANIFEST.digest == hashlib.sha256(by_hand).hexdigest()
    assert read(data, sign_manifest(MANIFEST, KEY)) == MANIFEST
    assert (MANIFEST.size, MANIFEST.verdict) == (5400, "consistent")


def test_the_form_of_schema_1_stays() -> None:
    """Devices keep manifests: this digest may never change."""
    assert MANIFEST.digest == DIGEST
    assert ORDER.hash == ORDER_HASH


@given(st.integers(0, 8 * len(MANIFEST.to_bytes()) - 1))
def test_no_bit_of_a_manifest_can_change(bit: int) -> None:
    data = bytearray(MANIFEST.to_bytes())
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AdapterUntrusted, match="does not hold"):
        read(bytes(data), sign_manifest(MANIFEST, KEY))


def test_another_key_purpose_or_document_signs_nothing() -> None:
    data, good = MANIFEST.to_bytes(), sign_manifest(MANIFEST, KEY)
    for signature in (
        sign_manifest(MANIFEST, OTHER),
        replace(sign_manifest(MANIFEST, OTHER), public_key=KEY.public_key),
        KEY.sign("fedslm-audit-report-v1", MANIFEST.digest),
        replace(KEY.sign("fedslm-audit-report-v1", MANIFEST.digest), domain=ADAPTER_DOMAIN),
        KEY.sign(ORDER_DOMAIN, MANIFEST.digest),
        sign_manifest(replace(MANIFEST, sequence=4), KEY),
        replace(good, signature="00" * 64),
        replace(good, public_key=""),
    ):
        with pytest.raises(AdapterUntrusted):
            read(data, signature)
    with pytest.raises(AdapterUntrusted, match="not of the trusted key"):
        read(data, good, trusted=OTHER.public_key)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.sampled_from(sorted(MANIFEST.to_dict())),
)
def test_a_signed_text_with_any_value_anywhere_is_a_manifest_or_refused(
    value: Any, key: str
) -> None:
    for document in (value, {**MANIFEST.to_dict(), key: value}):
        try:
            found = read(*signed_text(document))
        except AdapterCorrupt:
            continue
        assert found.to_dict() == document


def changed(**change: Any) -> dict[str, Any]:
    return {**MANIFEST.to_dict(), **change}


FILE = MANIFEST.to_dict()["files"][0]
WRONG: dict[str, dict[str, Any]] = {
    "a schema to come": changed(schema=2),
    "true for a schema": changed(schema=True),
    "a key more": changed(more=1),
    "a number in words": changed(sequence="3"),
    "number 0": changed(sequence=0),
    "a boolean": changed(sequence=True),
    "a fraction": changed(order=0.5),
    "a name with a slash": changed(name="a/b"),
    "a short digest": changed(base_digest="ba"),
    "capitals": changed(base_digest="BA" * 32),
    "local time": changed(created="2026-01-31T12:00:00+01:00"),
    "no files": changed(files=[]),
    "files by name": changed(files={}),
    "many files": changed(files=[FILE] * 1000),
    "a file twice": changed(files=[*MANIFEST.to_dict()["files"], FILE]),
    "an epsilon alone": changed(privacy={**MANIFEST.to_dict()["privacy"], "delta": None}),
    "a negative epsilon": changed(privacy={**MANIFEST.to_dict()["privacy"], "epsilon": -1}),
    "NaN": changed(privacy={**MANIFEST.to_dict()["privacy"], "epsilon": float("nan")}),
    "a verdict to come": changed(audit={**MANIFEST.to_dict()["audit"], "verdict": "good"}),
    "a violation in use": changed(audit={**MANIFEST.to_dict()["audit"], "verdict": "violation"}),
    "a yes": changed(withheld=1),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_signed_and_wrong_is_refused(name: str) -> None:
    with pytest.raises(AdapterCorrupt, match="no manifest of schema 1"):
        read(*signed_text(WRONG[name]))


PATHS = [
    "../evil", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "a\x00b", "a\n", "ä.json",
    "manifest.json", "signature.json", "order.json", "a" * 200, "a.", "C:x", "~root", "-rf",
    "a..b", "a.b.c.d.e", " a", "a ", "aux:stream", "a%2fb",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_file_name_leads_out_of_the_folder(path: str) -> None:
    assert not is_file_name(path)
    files = sorted([*MANIFEST.to_dict()["files"], {**FILE, "name": path}], key=lambda f: f["name"])
    with pytest.raises(AdapterCorrupt):
        read(*signed_text(changed(files=files)))


@given(st.text(max_size=30))
def test_a_plain_name_is_one_component_on_every_system(name: str) -> None:
    if is_file_name(name):
        assert not set(name) & set('/\\:*?"<>|\x00 \n')
        assert name.strip(".") == name
        assert name.isascii()


def test_names_that_differ_in_case_alone_are_one_file_somewhere() -> None:
    files = (*MANIFEST.files, FileEntry(name="Adapter_config.json", size=1, sha256="00" * 32))
    with pytest.raises(InvalidValue, match="unique names"):
        replace(MANIFEST, files=tuple(sorted(files, key=lambda f: f.name)))


def test_a_text_that_is_not_canonical_is_refused_though_it_is_signed() -> None:
    data = json.dumps(MANIFEST.to_dict(), indent=1).encode()
    signature = KEY.sign(ADAPTER_DOMAIN, hashlib.sha256(data).hexdigest())
    with pytest.raises(AdapterCorrupt, match="canonical"):
        read(data, signature)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"[" * 5000, b"{}"])
def test_what_is_no_document_is_refused_though_it_is_signed(data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    with pytest.raises(AdapterCorrupt):
        read(data, KEY.sign(ADAPTER_DOMAIN, digest))
    with pytest.raises(AdapterCorrupt):
        read_order(data, KEY.sign(ORDER_DOMAIN, digest), trusted=KEY.public_key)


def test_a_document_that_is_too_long_is_not_looked_at() -> None:
    data = b" " * (LARGEST_DOCUMENT + 1)
    with pytest.raises(AdapterCorrupt, match="bytes"):
        read(data, KEY.sign(ADAPTER_DOMAIN, hashlib.sha256(data).hexdigest()))


def test_a_file_is_found_by_name() -> None:
    assert MANIFEST.file("adapter_config.json").size == 400
    with pytest.raises(AdapterCorrupt, match="has no file"):
        MANIFEST.file("other.json")


def test_an_order_reads_back_and_every_bit_counts() -> None:
    data, signature = ORDER.to_bytes(), sign_order(ORDER, KEY)
    assert read_order(data, signature, trusted=KEY.public_key) == ORDER
    for at in range(len(data)):
        changed_data = bytearray(data)
        changed_data[at] ^= 1 << at % 8
        with pytest.raises(AdapterUntrusted):
            read_order(bytes(changed_data), signature, trusted=KEY.public_key)
    with pytest.raises(AdapterUntrusted):
        read_order(data, KEY.sign(ADAPTER_DOMAIN, ORDER.hash), trusted=KEY.public_key)


ORDERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "number 0": lambda d: {**d, "number": 0},
    "another kind": lambda d: {**d, "kind": "forget"},
    "no order before": lambda d: {**d, "previous": None},
    "a first that follows": lambda d: {**d, "number": 1},
    "nothing replaced": lambda d: {**d, "replaces": None},
    "a key less": lambda d: {key: d[key] for key in d if key != "created"},
    "a schema to come": lambda d: {**d, "schema": 2},
    "a digest that is a list": lambda d: {**d, "digest": []},
}


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_that_is_signed_and_wrong_is_refused(name: str) -> None:
    data, signature = signed_text(ORDERS[name](ORDER.to_dict()), ORDER_DOMAIN)
    with pytest.raises(AdapterCorrupt, match="no order of schema 1"):
        read_order(data, signature, trusted=KEY.public_key)


def test_no_message_repeats_what_was_found() -> None:
    for name in WRONG:
        with pytest.raises(FedSLMError) as found:
            AdapterManifest.from_dict(WRONG[name])
        assert "a/b" not in str(found.value)
