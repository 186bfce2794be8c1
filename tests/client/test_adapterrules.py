"""What a device takes and remembers: demands of its owner, and no way back but a signed one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.adapterrules import (
    MOST_REFUSALS,
    AdapterPolicy,
    Memory,
    Refusal,
    needs_order,
)
from shared.documents import SCHEMA
from shared.errors import AdapterUntrusted, InvalidValue
from shared.manifest import AdapterManifest, Audited
from shared.orders import Order
from tests.shared.test_manifest import MANIFEST


def version(sequence: int, *, order: int = 0) -> AdapterManifest:
    return replace(MANIFEST, sequence=sequence, order=order)


def order_for(manifest: AdapterManifest, number: int, kind: str = "promote") -> Order:
    return Order(
        number=number,
        kind=kind,
        digest=manifest.digest,
        sequence=manifest.sequence,
        replaces=None if number == 1 else "0a" * 32,
        previous=None if number == 1 else "0b" * 32,
        created="2026-02-01T00:00:00Z",
    )


def takes(memory: Memory, manifest: AdapterManifest, order: Order | None = None) -> bool:
    try:
        memory.check(manifest, order, again=False)
    except AdapterUntrusted:
        return False
    return True


ONE, TWO, THREE = (version(n) for n in (1, 2, 3))


def test_the_owner_decides_about_base_verdict_auditor_and_size() -> None:
    policy = AdapterPolicy()
    policy.check(MANIFEST, base_digest=MANIFEST.base_digest)
    policy.check(MANIFEST, base_digest=None)
    audit = MANIFEST.audit
    assert audit is not None
    refused: list[tuple[AdapterPolicy, AdapterManifest, str]] = [
        (policy, replace(MANIFEST, base_digest="bb" * 32), "base="),
        (policy, replace(MANIFEST, audit=None), "no audit"),
        (policy, replace(MANIFEST, withheld=True), "withholds"),
        (
            AdapterPolicy(verdicts=frozenset({"consistent"})),
            replace(MANIFEST, audit=replace(audit, verdict="inconclusive")),
            "audit verdict=inconclusive",
        ),
        (AdapterPolicy(audit_key="00" * 32), MANIFEST, "trusted for audits"),
        (AdapterPolicy(max_bytes=5399), MANIFEST, "5400 bytes"),
    ]
    for demanding, manifest, reason in refused:
        with pytest.raises(AdapterUntrusted, match=reason):
            demanding.check(manifest, base_digest=MANIFEST.base_digest)
    AdapterPolicy(unaudited=True).check(replace(MANIFEST, audit=None), base_digest=None)
    AdapterPolicy(audit_key=audit.signed_by).check(MANIFEST, base_digest=None)


def test_a_violation_is_never_good_enough() -> None:
    bad = replace(MANIFEST, audit=Audited(sha256="ad" * 32, verdict="violation"), withheld=True)
    policy = AdapterPolicy(verdicts=frozenset({"violation"}), unaudited=True)
    with pytest.raises(AdapterUntrusted):
        policy.check(bad, base_digest=None)


def test_without_orders_only_a_larger_number_is_taken() -> None:
    memory = Memory().taking(TWO, None)
    assert takes(memory, TWO)
    assert takes(memory, THREE)
    assert not takes(memory, ONE)
    assert not takes(memory, replace(TWO, name="another"))


def test_an_older_version_needs_a_rollback_that_the_server_signed() -> None:
    memory = Memory().taking(ONE, order_for(ONE, 1)).taking(TWO, order_for(TWO, 2))
    assert not takes(memory, ONE)
    assert not takes(memory, ONE, order_for(ONE, 1))
    assert not takes(memory, ONE, order_for(ONE, 2, "rollback"))
    assert takes(memory, ONE, order_for(ONE, 3, "rollback"))
    back = memory.taking(ONE, order_for(ONE, 3, "rollback"))
    # The promotion that the rollback undid cannot be played back.
    assert not takes(back, TWO, order_for(TWO, 2))
    assert not takes(back, TWO)
    assert takes(back, TWO, order_for(TWO, 4))


def test_once_an_order_was_seen_a_version_without_one_is_refused() -> None:
    memory = Memory().taking(ONE, order_for(ONE, 1))
    assert needs_order(memory)
    assert not takes(memory, TWO)
    assert takes(memory, ONE, order_for(ONE, 1))
    assert takes(memory, ONE)


def test_an_order_from_before_a_version_was_made_is_an_old_one() -> None:
    memory = Memory().taking(version(5, order=7), None)
    assert not takes(memory, TWO, order_for(TWO, 7, "rollback"))
    assert takes(memory, TWO, order_for(TWO, 8, "rollback"))


def test_an_order_about_another_version_counts_for_nothing() -> None:
    assert not takes(Memory(), TWO, order_for(ONE, 1))
    assert not takes(Memory(), TWO, replace(order_for(TWO, 1), sequence=9))


def test_two_orders_of_one_number_are_not_both_taken() -> None:
    memory = Memory().taking(TWO, order_for(TWO, 2))
    forked = replace(order_for(TWO, 2), created="2026-03-01T00:00:00Z")
    assert not takes(memory, TWO, forked)


def test_what_the_owner_rolled_back_from_is_not_taken_again_by_itself() -> None:
    memory = Memory().taking(ONE, None).taking(TWO, None).back()
    assert (memory.current, memory.previous) == (ONE.digest, None)
    assert not takes(memory, TWO)
    assert not takes(memory, TWO, order_for(TWO, 9))
    memory.check(TWO, order_for(TWO, 9), again=True)
    assert takes(memory, THREE)
    assert takes(memory.taking(TWO, order_for(TWO, 9)), TWO, order_for(TWO, 9))
    with pytest.raises(AdapterUntrusted, match="no adapter to go back to"):
        memory.back()


def test_taking_the_same_version_again_keeps_the_one_before() -> None:
    memory = Memory().taking(ONE, None).taking(TWO, None).taking(TWO, None)
    assert (memory.current, memory.previous) == (TWO.digest, ONE.digest)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12)), max_size=12))
def test_no_sequence_of_offers_goes_back_without_a_newer_order(
    offers: list[tuple[int, int]],
) -> None:
    memory, newest = Memory(), 0
    for sequence, number in offers:
        manifest = version(sequence)
        order = order_for(manifest, number)
        if takes(memory, manifest, order):
            assert number >= newest
            memory, newest = memory.taking(manifest, order), number
        assert memory.order == newest


def test_only_the_last_refusals_are_kept() -> None:
    memory = Memory()
    for n in range(MOST_REFUSALS + 3):
        memory = memory.refusing(f"{n:064x}", AdapterUntrusted(f"reason {n}."))
    assert memory.refusals[0].reason == "reason 3."
    assert memory.refusals[-1].code == "adapter-untrusted"


def test_what_is_remembered_reads_back() -> None:
    memory = Memory().taking(ONE, None).taking(TWO, order_for(TWO, 2)).back()
    memory = memory.refusing("0c" * 32, AdapterUntrusted("why."))
    text = json.dumps({"schema": SCHEMA, **asdict(memory)})
    assert Memory.from_dict(json.loads(text)) == memory


GOOD: dict[str, Any] = {"schema": SCHEMA, **asdict(Memory()), "declined": [], "refusals": []}


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"sequence": -1},
        {"sequence": True},
        {"current": "../x"},
        {"current": 7},
        {"order_hash": ""},
        {"declined": "x"},
        {"declined": [7]},
        {"refusals": [{}]},
        {"refusals": [{**asdict(Refusal(digest="x", code="c", reason="r", at="now"))}]},
        {"more": 1},
    ],
)
def test_a_damaged_memory_is_refused(change: dict[str, Any]) -> None:
    assert Memory.from_dict(GOOD) == Memory()
    with pytest.raises(InvalidValue):
        Memory.from_dict({**GOOD, **change})
