from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidValue, SecureAggregationError
from shared.privacy.secagg import shamir

SMALL = 7


def scripted(values: Sequence[int]) -> Callable[[int], int]:
    stream = iter(values)
    return lambda _: next(stream)


@given(st.data())
def test_any_threshold_of_shares_gives_the_secret(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    threshold = data.draw(st.integers(2, count))
    secret = data.draw(st.integers(0, shamir.PRIME - 1))
    shares = dict(enumerate(shamir.split(secret, threshold=threshold, count=count), start=1))
    points = data.draw(st.permutations(range(1, count + 1)))
    taken = points[: data.draw(st.integers(threshold, count))]
    some = {x: shares[x] for x in taken}
    assert shamir.combine(some, threshold=threshold, count=count) == secret


@pytest.mark.parametrize(("threshold", "count"), [(2, 2), (2, 4), (3, 3), (3, 5), (4, 5)])
def test_fewer_shares_than_the_threshold_are_exactly_uniform(threshold: int, count: int) -> None:
    """Every polynomial over GF(7): for each secret, each tuple of shares comes equally often."""
    for points in itertools.combinations(range(count), threshold - 1):
        for secret in range(SMALL):
            seen: Counter[tuple[int, ...]] = Counter()
            for rest in itertools.product(range(SMALL), repeat=threshold - 1):
                shares = shamir.split(
                    secret, threshold=threshold, count=count, prime=SMALL, draw=scripted(rest)
                )
                seen[tuple(shares[x] for x in points)] += 1
            assert set(seen.values()) == {1}
            assert len(seen) == SMALL ** (threshold - 1)


def test_threshold_shares_over_a_small_field_agree_with_a_plain_interpolation() -> None:
    """Oracle: Lagrange's formula in rationals, for an integer polynomial far below the prime."""
    polynomial = [5, 3, 2]
    shares = {x: sum(a * x**i for i, a in enumerate(polynomial)) for x in range(1, 8)}
    for points in itertools.combinations(shares, 3):
        exact = Fraction(0)
        for j in points:
            term = Fraction(shares[j])
            for m in points:
                if m != j:
                    term *= Fraction(m, m - j)
            exact += term
        assert exact == polynomial[0]
        some = {x: shares[x] for x in points}
        assert shamir.combine(some, threshold=3, count=7) == polynomial[0]


def test_the_prime_is_the_first_above_two_to_the_256() -> None:
    """Miller and Rabin with 40 bases (false accept below 4**-40); none between passes Fermat."""
    p = shamir.PRIME
    odd, twos = p - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        powers = [pow(base, odd << i, p) for i in range(twos)]
        assert powers[0] == 1 or p - 1 in powers
    assert all(pow(3, n - 1, n) != 1 for n in range(2**256 + 1, p, 2))


def test_one_wrong_share_changes_the_secret() -> None:
    shares = dict(enumerate(shamir.split(11, threshold=3, count=5), start=1))
    shares[2] = (shares[2] + 1) % shamir.PRIME
    assert shamir.combine(shares, threshold=3, count=5) != 11


@pytest.mark.parametrize(
    ("secret", "threshold", "count"),
    [(0, 1, 3), (0, 4, 3), (-1, 2, 3), (shamir.PRIME, 2, 3)],
)
def test_splitting_refuses_what_is_no_sharing(secret: int, threshold: int, count: int) -> None:
    with pytest.raises(InvalidValue, match="threshold"):
        shamir.split(secret, threshold=threshold, count=count)


@pytest.mark.parametrize("shares", [{1: 1}, {1: 1, 4: 1}, {0: 1, 2: 1}])
def test_combining_refuses_too_few_shares_and_strange_points(shares: dict[int, int]) -> None:
    with pytest.raises(SecureAggregationError, match="expected at least 2 with points 1 to 3"):
        shamir.combine(shares, threshold=2, count=3)


def test_shares_and_secrets_have_one_form() -> None:
    top = shamir.PRIME - 1
    assert shamir.share_from_bytes(shamir.share_to_bytes(top)) == top
    for bad in (shamir.share_to_bytes(top)[:-1], shamir.PRIME.to_bytes(33, "big"), b""):
        with pytest.raises(SecureAggregationError, match="not an element"):
            shamir.share_from_bytes(bad)
    assert shamir.secret_to_bytes(2**256 - 1) == b"\xff" * 32
    with pytest.raises(SecureAggregationError, match="no 32-byte secret"):
        shamir.secret_to_bytes(2**256)
