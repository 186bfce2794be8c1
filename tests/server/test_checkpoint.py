"""Checkpoints: whole or not there, and never of another scenario."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from server.checkpoint import NAME, Checkpoint, read_checkpoint, write_checkpoint
from shared.errors import NotResumable

CHECKPOINT = Checkpoint(
    server_round=3,
    config_digest="d",
    vector=np.arange(4, dtype=np.float32),
    average=np.arange(4, dtype=np.float64) / 3,
    averaged=2,
    optimizer={"first": np.full(4, np.pi)},
    optimizer_steps=3,
    record={"round": 3, "loss": None, "epsilon": 1.25},
)


def test_round_trip(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path, config_digest="d") is None
    write_checkpoint(tmp_path, CHECKPOINT)
    write_checkpoint(tmp_path, replace(CHECKPOINT, server_round=4))
    found = read_checkpoint(tmp_path, config_digest="d")
    assert found is not None
    assert found.server_round == 4
    assert found.record == CHECKPOINT.record
    assert np.array_equal(found.vector, CHECKPOINT.vector)
    assert np.array_equal(found.average, CHECKPOINT.average)
    assert np.array_equal(found.optimizer["first"], CHECKPOINT.optimizer["first"])


def test_another_scenario_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CHECKPOINT)
    with pytest.raises(NotResumable, match="another scenario"):
        read_checkpoint(tmp_path, config_digest="e")


@pytest.mark.parametrize("keep", [0, 5, 60, 200])
def test_a_damaged_file_is_refused(tmp_path: Path, keep: int) -> None:
    write_checkpoint(tmp_path, CHECKPOINT)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(NotResumable, match="cannot be read"):
        read_checkpoint(tmp_path, config_digest="d")


@pytest.mark.parametrize("clip", [None, 0.1, 1 / 3])
def test_the_clip_comes_back_to_the_last_bit(tmp_path: Path, clip: float | None) -> None:
    write_checkpoint(tmp_path, replace(CHECKPOINT, clip=clip))
    found = read_checkpoint(tmp_path, config_digest="d")
    assert found is not None
    assert found.clip == clip


def test_a_checkpoint_without_a_clip_is_as_it_was(tmp_path: Path) -> None:
    """The header of a file from before the clip existed, and today's without one, are equal."""
    write_checkpoint(tmp_path, CHECKPOINT)
    with safe_open(tmp_path / NAME, framework="np") as stream:
        header = json.loads(stream.metadata()["fedslm"])
    assert set(header) == {
        "format",
        "server_round",
        "config_digest",
        "averaged",
        "optimizer_steps",
        "record",
    }
    assert header["format"] == 1


def test_a_clip_that_is_no_number_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, replace(CHECKPOINT, clip=1.25))
    path = tmp_path / NAME
    damaged = path.read_bytes().replace(b'clip\\": 1.25', b'clip\\": "ab"'[:12])
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(NotResumable, match="cannot be read"):
        read_checkpoint(tmp_path, config_digest="d")
