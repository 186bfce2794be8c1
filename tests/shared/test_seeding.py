from __future__ import annotations

import hashlib

import numpy as np
import pytest

from shared.canonical import canonical_json, sha256_hex
from shared.errors import InvalidValue
from shared.seeding import data_rng, derive_seed


def test_the_seed_is_the_first_half_of_sha256_over_a_json_list() -> None:
    expected = hashlib.sha256(b'["fedslm-seed-v1",7,"init",3]').hexdigest()[:32]
    assert derive_seed(7, "init", 3) == int(expected, 16)


def test_seeds_use_more_than_64_bits() -> None:
    assert max(derive_seed(0, i).bit_length() for i in range(64)) > 120


@pytest.mark.parametrize("shift", [2**31, 2**32, 2**64, 2**128])
def test_no_bit_of_the_run_seed_is_dropped(shift: int) -> None:
    assert derive_seed(5, "x") != derive_seed(5 + shift, "x")
    assert not np.array_equal(data_rng(5, "x").random(4), data_rng(5 + shift, "x").random(4))


def test_labels_do_not_collide() -> None:
    labels: list[tuple[str | int, ...]] = [(), ("a",), ("a", "b"), ("ab",), ("a,b",), ('a","b',)]
    labels += [(1,), ("1",), (1, 1), (11,)]
    assert len({derive_seed(0, *label) for label in labels}) == len(labels)


def test_streams_repeat_and_differ_by_name() -> None:
    assert np.array_equal(data_rng(1, "order", 2).random(8), data_rng(1, "order", 2).random(8))
    assert not np.array_equal(data_rng(1, "order").random(8), data_rng(1, "init").random(8))


@pytest.mark.parametrize("seed", [True, 1.0, "1", None])
def test_a_seed_is_an_integer(seed: object) -> None:
    with pytest.raises(InvalidValue, match="seed="):
        derive_seed(seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("label", [True, 1.0, None, b"x"])
def test_a_label_is_a_string_or_an_integer(label: object) -> None:
    with pytest.raises(InvalidValue, match="label="):
        data_rng(1, label)  # type: ignore[arg-type]


def test_canonical_json_does_not_depend_on_order_or_container() -> None:
    assert canonical_json({"b": (1, None), "a": {"é": 0.1}}) == canonical_json(
        {"a": {"é": 0.1}, "b": [1, None]}
    )
    assert canonical_json({"é": 1}).isascii()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, [{"a": {2: 1}}], {1, 2}])
def test_canonical_json_refuses_what_has_no_single_text(value: object) -> None:
    with pytest.raises(InvalidValue, match="canonical JSON"):
        canonical_json(value)


def test_sha256_of_text_is_that_of_its_utf8() -> None:
    assert sha256_hex("é") == sha256_hex("é".encode()) == hashlib.sha256("é".encode()).hexdigest()
