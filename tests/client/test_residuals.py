"""What was not sent yet: kept over restarts, repeated with a round, bounded, sent in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.residuals import Feedback, MemoryResiduals, Residuals, StoredResiduals
from client.uplink import Uplink
from shared.configfile import resolve
from shared.link import Link, uplink
from shared.lora import Vector
from shared.scenarioplan import plan_of
from shared.wire import Instruction
from tests.integration.scenario import TABLES

SIZE = 200
CLIP = 0.5


def told(server_round: int, run_id: str = "r") -> Instruction:
    return Instruction(
        run_id=run_id,
        server_round=server_round,
        config_digest="c",
        plan_digest="p",
        vector=np.zeros(SIZE, dtype=np.float32),
    )


def made(*overrides: str, residuals: Residuals | None = None) -> tuple[Uplink, Link]:
    settings = ["privacy.mode=none", "link.up=topk", "link.keep=0.1", *overrides]
    config = resolve(TABLES, settings, source="test").config
    link = uplink(config.link)
    assert link is not None
    return Uplink(config, plan_of(config, population=12), residuals), link


def update(server_round: int, size: int = SIZE) -> Vector:
    rng = np.random.default_rng(server_round)
    return rng.standard_normal(size).astype(np.float32)


def send(pair: tuple[Uplink, Link], server_round: int, vector: Vector, **said: Any) -> Vector:
    sender, link = pair
    coded = sender.code(3, told(server_round), vector, clipping_norm=said.get("clip"))
    assert coded is not None
    return link.decode(coded, vector.size)


@pytest.mark.parametrize("values", ["fp16", "int8", "int4"])
def test_what_is_sent_and_what_is_left_are_the_update(values: str) -> None:
    """Over ten rounds; float32 adds up to a part in a million."""
    residuals = MemoryResiduals()
    pair = made(f"link.values={values}", "link.block=8", residuals=residuals)
    total, arrived = np.zeros(SIZE), np.zeros(SIZE)
    for number in range(1, 11):
        total += update(number)
        arrived += send(pair, number, update(number))
    known = residuals.read(3)
    assert known is not None
    assert np.allclose(arrived + known.rounds[10], total, atol=1e-4)
    assert np.linalg.norm(known.rounds[10]) > 1.0


def test_everything_arrives_in_the_end() -> None:
    """After one update, rounds without any send the rest, the largest first."""
    pair = made("link.values=fp16")
    first = update(1)
    arrived = send(pair, 1, first).astype(np.float64)
    for number in range(2, 31):
        arrived += send(pair, number, np.zeros(SIZE, dtype=np.float32))
    assert np.abs(arrived - first).max() < 1e-3 * np.abs(first).max()


def test_what_is_left_stays_bounded() -> None:
    """By 2 / keep updates, the constant of a contraction; here by far less."""
    residuals = MemoryResiduals()
    pair = made(residuals=residuals)
    for number in range(1, 200):
        send(pair, number, update(1))
    known = residuals.read(3)
    assert known is not None
    assert np.linalg.norm(known.rounds[199]) < 2 / 0.1 * np.linalg.norm(update(1))


@pytest.mark.parametrize("length", [1e-3, CLIP, 40.0])
def test_no_memory_carries_a_round_beyond_the_clip(length: float) -> None:
    """A client whose updates always point one way, at the clip; int8 rounds a little above it."""
    residuals = MemoryResiduals()
    pair = made("link.values=fp16", residuals=residuals)
    for number in range(1, 40):
        vector = update(1) * np.float32(length / np.linalg.norm(update(1)))
        found = send(pair, number, vector, clip=CLIP)
        assert np.linalg.norm(found) <= CLIP * (1 + 1e-3)
    known = residuals.read(3)
    assert known is not None
    assert np.linalg.norm(known.rounds[39]) <= 2 * CLIP / 0.1 * (1 + 1e-6)


def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    whole, parts = [], []
    pair = made(residuals=StoredResiduals(tmp_path / "a"))
    for number in range(1, 6):
        whole.append(send(pair, number, update(number)))
        again = made(residuals=StoredResiduals(tmp_path / "b"))
        parts.append(send(again, number, update(number)))
    assert np.array_equal(whole, parts)
    assert not np.array_equal(whole[1], send(made(), 2, update(2)))
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0


def test_a_round_that_is_asked_again_is_answered_alike(tmp_path: Path) -> None:
    """A server that was killed in round 3 asks round 3 again, once or more."""
    pair = made(residuals=StoredResiduals(tmp_path))
    for number in (1, 2):
        send(pair, number, update(number))
    third = send(pair, 3, update(3))
    assert np.array_equal(send(pair, 3, update(3)), third)
    again = made(residuals=StoredResiduals(tmp_path))
    assert np.array_equal(send(again, 3, update(3)), third)
    fourth = send(pair, 4, update(4))
    straight = made()
    for number in (1, 2, 3):
        send(straight, number, update(number))
    assert np.array_equal(send(straight, 4, update(4)), fourth)


def test_two_rounds_are_kept_and_other_runs_forgotten() -> None:
    residuals = MemoryResiduals()
    feedback = Feedback(residuals)
    ones = np.ones(4, dtype=np.float32)
    for number in (1, 4, 9):
        feedback.keep(0, "r", number, ones * number)
    known = residuals.read(0)
    assert known is not None
    assert sorted(known.rounds) == [4, 9]
    assert feedback.left_before(0, "r", 10, 4)[0] == 9
    assert feedback.left_before(0, "r", 9, 4)[0] == 4
    assert not feedback.left_before(0, "other", 10, 4).any()
    assert not feedback.left_before(1, "r", 10, 4).any()
    assert feedback.left_before(0, "r", 10, 5).shape == (5,)
    feedback.keep(0, "other", 1, ones)
    known = residuals.read(0)
    assert known is not None
    assert sorted(known.rounds) == [1]


def test_a_damaged_file_is_no_residual(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "residuals"
    pair = made(residuals=StoredResiduals(folder))
    first = send(pair, 1, update(1))
    [file] = folder.iterdir()
    data = file.read_bytes()
    nan = np.array([np.nan], dtype=np.float32).tobytes()
    for damaged in (b"", data[:-3], data[:-4] + nan, b"\xff" * len(data)):
        file.write_bytes(damaged)
        assert np.array_equal(send(made(), 2, update(2)), send(pair, 2, update(2)))
        assert "cannot be read" in caplog.text
        caplog.clear()
        send(pair, 2, update(2))
    assert first.size == SIZE


def test_an_update_that_overflows_with_what_was_left_is_sent_alone() -> None:
    residuals = MemoryResiduals()
    Feedback(residuals).keep(3, "r", 1, np.full(SIZE, 3e38, dtype=np.float32))
    pair = made(residuals=residuals)
    with np.errstate(over="ignore"):
        found = send(pair, 2, np.full(SIZE, 3e38, dtype=np.float32))
    assert np.isfinite(found).all()


def test_rounding_draws_from_its_own_stream_and_from_the_system_where_noise_does() -> None:
    pair = made("link.up=int4")
    one = send(pair, 1, update(1))
    assert np.array_equal(one, send(pair, 1, update(1)))
    assert not np.array_equal(one, send(pair, 2, update(1)))
    real = made("privacy.mode=client-central", "link.up=int4", "privacy.noise_source=os-entropy")
    assert not np.array_equal(send(real, 1, update(1)), send(real, 1, update(1)))
