"""Openings of canary commitments: coins in hex, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.audit.commitment import (
    coins_hex,
    commitment_of,
    opening_of,
    read_coins,
    tally,
    verify_commitment,
)
from shared.errors import AuditError

HEX = "ab" * 32


def opening(coins: list[bool]) -> dict[str, Any]:
    count = len(coins)
    return opening_of(
        salt=HEX, repeats=4, coins=coins, kinds=["secret"] * count, digests=[HEX] * count
    )


@given(st.lists(st.booleans(), max_size=70))
def test_coins_are_packed_bits(coins: list[bool]) -> None:
    packed = np.packbits(np.array(coins, dtype=bool)).tobytes()
    assert coins_hex(coins) == packed.hex()
    assert read_coins(opening(coins)) == coins


def test_another_commitment_does_not_belong() -> None:
    one, other = opening([True] * 9), opening([True] * 8 + [False])
    assert verify_commitment(one, commitment_of(one))
    assert not verify_commitment(other, commitment_of(one))
    assert not verify_commitment(one, "")
    assert not verify_commitment(one, "é")


BREAK: list[Callable[[dict[str, Any]], object]] = [
    lambda o: o.pop("salt"),
    lambda o: o.update(extra=1),
    lambda o: o.update(schema=2),
    lambda o: o.update(schema=True),
    lambda o: o.update(repeats=0),
    lambda o: o.update(repeats=True),
    lambda o: o.update(repeats="4"),
    lambda o: o.update(kinds=["secret"]),
    lambda o: o.update(kinds="secret"),
    lambda o: o.update(digests=[1, 2, 3]),
    lambda o: o["digests"].append(HEX),
    lambda o: o["digests"].__setitem__(0, HEX[:-1]),
    lambda o: o["digests"].__setitem__(0, HEX.upper()),
    lambda o: o.update(salt=""),
    lambda o: o.update(coins="e0e0"),
    lambda o: o.update(coins="zz"),
    lambda o: o.update(coins="f0"),
    lambda o: o.update(coins=224),
]


@pytest.mark.parametrize("damage", BREAK)
def test_a_damaged_opening_is_refused(damage: Callable[[dict[str, Any]], object]) -> None:
    damaged = opening([True] * 3)
    assert damaged["coins"] == "e0"
    damage(damaged)
    for use in (commitment_of, read_coins):
        with pytest.raises(AuditError, match="malformed"):
            use(damaged)


def test_the_tally_counts_both_sides_of_each_kind() -> None:
    kinds = ["secret", "rare-token", "secret", "secret"]
    coins = [True, False, False, True]
    found = opening_of(salt=HEX, repeats=1, coins=coins, kinds=kinds, digests=[HEX] * 4)
    assert tally(found) == {"secret": (2, 1), "rare-token": (0, 1)}


def test_as_many_coins_as_digests() -> None:
    with pytest.raises(AuditError, match="coins=2, digests=1"):
        opening_of(salt=HEX, repeats=1, coins=[True, False], kinds=["secret"], digests=[HEX])
