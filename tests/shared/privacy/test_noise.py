from __future__ import annotations

import copy
import math
import multiprocessing
import time
from multiprocessing.connection import Connection

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from shared.errors import InvalidValue, PrivacyError
from shared.privacy.noise import NoiseSource
from shared.privacy.poisson import poisson


def test_words_are_the_chacha20_key_stream() -> None:
    key = bytes(range(32))
    source = NoiseSource(key, kind="seeded-simulation")
    for call in range(3):
        nonce = bytes(8) + call.to_bytes(8, "little")
        stream = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor().update(bytes(80))
        assert source.words(10).tobytes() == stream


def test_the_kind_says_where_the_key_came_from() -> None:
    assert NoiseSource.from_os().kind == "os-entropy"
    assert NoiseSource.seeded(1).kind == "seeded-simulation"
    assert NoiseSource.from_os().spawn("x").kind == "os-entropy"
    assert NoiseSource.seeded(1).spawn("x").kind == "seeded-simulation"


def test_seeded_streams_repeat_and_named_streams_differ() -> None:
    first = NoiseSource.seeded(1, "round", 3).normal(16)
    assert np.array_equal(first, NoiseSource.seeded(1, "round", 3).normal(16))
    for other in (NoiseSource.seeded(1, "round", 4), NoiseSource.seeded(2, "round", 3)):
        assert not np.any(first == other.normal(16))


def test_peers_bug_masks_from_a_32_bit_numpy_seed() -> None:
    for shift in (2**32, 7 * 2**40, 2**64, 2**200):
        assert not np.any(
            NoiseSource.seeded(5).normal(64) == NoiseSource.seeded(5 + shift).normal(64)
        )


def test_os_sources_never_repeat() -> None:
    parent = NoiseSource.from_os()
    draws = [s.words(2).tobytes() for s in (parent, parent.spawn("a"), parent.spawn("a"))]
    draws.append(NoiseSource.from_os().words(2).tobytes())
    assert len(set(draws)) == 4


def test_calls_on_one_source_never_repeat() -> None:
    source = NoiseSource.seeded(0)
    assert len({source.words(1).tobytes() for _ in range(1000)}) == 1000


def test_a_seeded_child_does_not_depend_on_what_was_drawn() -> None:
    source = NoiseSource.seeded(9)
    before = source.spawn("noise", 1).normal(8)
    source.normal(1000)
    assert np.array_equal(before, source.spawn("noise", 1).normal(8))
    assert not np.any(before == source.spawn("noise", 2).normal(8))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 131071, 131072, 131073])
def test_shapes_and_types(n: int) -> None:
    source = NoiseSource.seeded(3)
    assert source.words(n).shape == source.uniform(n).shape == source.normal(n).shape == (n,)
    assert source.normal(n).dtype == source.uniform(n).dtype == np.float64
    assert source.bernoulli(0.5, n).dtype == np.bool_
    assert source.integers(-3, 4, n).dtype == np.int64
    assert np.isfinite(source.normal(n)).all()


def test_normals_are_the_box_muller_map_of_the_uniforms() -> None:
    u = NoiseSource.seeded(4).uniform(6)
    expected = [
        math.sqrt(-2.0 * math.log1p(-u[i])) * trig(2.0 * math.pi * u[i + 3])
        for trig in (math.cos, math.sin)
        for i in range(3)
    ]
    assert NoiseSource.seeded(4).normal(6) == pytest.approx(expected, abs=1e-12)


def test_uniforms_stay_below_one() -> None:
    top = np.array([2**64 - 1], dtype=np.uint64)
    largest = float((top >> np.uint64(11)).astype(np.float64)[0] * 2.0**-53)
    assert largest < 1.0
    assert math.isfinite(math.sqrt(-2.0 * math.log1p(-largest)))


def test_certain_coins() -> None:
    source = NoiseSource.seeded(1)
    assert source.bernoulli(1.0, 1000).all()
    assert not source.bernoulli(0.0, 1000).any()
    assert source.poisson_subsample(5, 1).tolist() == [0, 1, 2, 3, 4]
    assert source.poisson_subsample(5, 0).tolist() == []
    assert source.poisson_subsample(0, 0.5).tolist() == []


def test_a_sample_is_ascending_unique_and_within_the_population() -> None:
    taken = NoiseSource.seeded(2).poisson_subsample(200_001, 0.3)
    assert taken.dtype == np.int64
    assert (np.diff(taken) > 0).all()
    assert taken[0] >= 0
    assert taken[-1] <= 200_000


def test_sampling_a_million_units_is_quick() -> None:
    source = NoiseSource.from_os()
    start = time.process_time()
    source.poisson_subsample(1_000_000, 0.01)
    assert time.process_time() - start < 0.5


def test_integers_cover_the_range_and_nothing_else() -> None:
    source = NoiseSource.seeded(6)
    assert set(source.integers(-2, 3, 1000).tolist()) == {-2, -1, 0, 1, 2}
    low, high = -(2**63), 2**63 - 1
    wide = source.integers(low, high, 1000)
    assert wide.min() < -(2**62)
    assert wide.max() > 2**62


def test_integers_are_drawn_by_rejection_and_not_by_remainder() -> None:
    # With a span of 3 * 2**62 a plain remainder would give the lowest third twice the weight.
    drawn = NoiseSource.seeded(7).integers(-(2**62) * 2, 2**62, 30_000)
    share = float(np.mean(drawn < -(2**62)))
    assert abs(share - 1 / 3) < 0.02


@pytest.mark.parametrize("n", [-1, 1.0, True, None, "3"])
def test_a_size_is_an_integer(n: object) -> None:
    source = NoiseSource.seeded(1)
    for draw in (source.words, source.uniform, source.normal):
        with pytest.raises(InvalidValue, match="n="):
            draw(n)  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, math.inf, True, "0.5", None])
def test_a_coin_has_a_probability(p: object) -> None:
    source = NoiseSource.seeded(1)
    with pytest.raises(InvalidValue, match="probability="):
        source.bernoulli(p, 3)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="probability="):
        source.poisson_subsample(3, p)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bounds", [(3, 3), (4, 3), (0, 2**63), (-(2**63) - 1, 0), (0.0, 2), (False, 2)]
)
def test_integers_refuse_an_empty_or_wide_range(bounds: tuple[int, int]) -> None:
    with pytest.raises(InvalidValue, match="low="):
        NoiseSource.seeded(1).integers(*bounds, 1)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(InvalidValue, match="16 bytes"):
        NoiseSource(bytes(16), kind="os-entropy")


def test_a_source_cannot_be_copied_and_does_not_show_its_key() -> None:
    source = NoiseSource(b"k" * 32, kind="os-entropy")
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(PrivacyError, match="copied"):
            duplicate(source)
    assert repr(source) == "NoiseSource(kind='os-entropy')"


def test_another_process_id_means_another_key() -> None:
    os_key, seeded = NoiseSource(b"k" * 32, kind="os-entropy"), NoiseSource.seeded(1)
    first, known = (
        NoiseSource(b"k" * 32, kind="os-entropy").words(4),
        NoiseSource.seeded(1).words(4),
    )
    for source in (os_key, seeded):
        source._pid = -1
    assert not np.any(os_key.words(4) == first)
    assert np.array_equal(seeded.words(4), known)


def _draw_in_child(source: NoiseSource, end: Connection) -> None:
    end.send(source.words(4).tolist())
    end.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_does_not_repeat_its_parents_noise() -> None:
    fork = multiprocessing.get_context("fork")
    source = NoiseSource.from_os()
    draws = []
    for _ in range(2):
        ours, theirs = fork.Pipe()
        child = fork.Process(target=_draw_in_child, args=(source, theirs))
        child.start()
        draws.append(ours.recv())
        child.join()
    draws.append(source.words(4).tolist())
    assert draws[0] != draws[1] != draws[2] != draws[0]


def test_skellam_numbers_are_differences_of_poisson_numbers() -> None:
    source = NoiseSource.seeded(8)
    expected = poisson(source.words, 50.0, 9) - poisson(source.words, 50.0, 9)
    drawn = NoiseSource.seeded(8).skellam(100, 9)
    assert drawn.tolist() == expected.tolist()
    assert drawn.dtype == np.int64
    assert NoiseSource.seeded(8).skellam(0.5, 0).shape == (0,)


@pytest.mark.parametrize("variance", [0, -1.0, math.nan, math.inf, 2.0**53 * 1.01, True, "1"])
def test_a_skellam_variance_is_in_range(variance: object) -> None:
    with pytest.raises(InvalidValue, match="variance="):
        NoiseSource.seeded(1).skellam(variance, 3)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="n="):
        NoiseSource.seeded(1).skellam(1.0, -1)
