"""What rounds released: kept whole, read back checked, and enough to compute the adapter again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from server import releases as module
from server import strategy
from server.audit.runrecord import Releases
from server.checkpoint import write_checkpoint
from server.release import Release, Releaser
from server.releases import (
    FOLDER,
    MOST_BYTES,
    ReleaseRecorder,
    kept_coordinates,
    read_releases,
)
from server.replay import replay
from server.strategy import FederatedRun
from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import AuditError, RunFolderError
from shared.wire import Instruction
from tests.integration.scenario import TABLES
from tests.server.test_strategy import SIZE, run, update


def answer(client: int, instruction: Instruction) -> RecordDict:
    return update(instruction, np.full(SIZE, client / 1000))


def plain(client: int, instruction: Instruction) -> RecordDict:
    return update(instruction, np.full(SIZE, client / 7), stage="plain")


def noised(client: int, instruction: Instruction) -> RecordDict:
    return update(instruction, np.full(SIZE, client / 7), stage="noised")


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Collect what rounds release, on its way to the optimizer."""
    seen: list[np.ndarray] = []
    real = Releaser.release

    def spied(self: Releaser, *arguments: Any) -> Release:
        found = real(self, *arguments)
        assert found.aggregate is not None
        seen.append(found.aggregate.vector.copy())
        return found

    monkeypatch.setattr(Releaser, "release", spied)
    return seen


def read(folder: Path) -> Releases:
    found = read_releases(folder)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("reply", "overrides"),
    [
        (answer, ()),
        (answer, ("privacy.clipping_quantile=0.5",)),
        (answer, ("privacy.mechanism=correlated", "clients.cohort=6.0")),
        (plain, ("privacy.mode=none",)),
        (noised, ("privacy.mode=example",)),
    ],
    ids=["gaussian", "quantile", "correlated", "none", "example"],
)
def test_a_run_keeps_what_each_round_released(
    reply: Callable[[int, Instruction], RecordDict],
    overrides: tuple[str, ...],
    released: list[np.ndarray],
    tmp_path: Path,
) -> None:
    federated, _, _, config = run(tmp_path, reply, *overrides)
    found = read(tmp_path)
    assert found.rounds == (1, 2, 3)
    assert found.coordinates is None
    np.testing.assert_array_equal(found.values, np.stack(released).astype(np.float32))
    again = replay(found, config, federated.initial_vector, SIZE)
    assert again is not None
    # Means of plain updates are float64 and kept as float32; noised means are float32 already.
    np.testing.assert_allclose(again, federated.released, rtol=1e-5, atol=0)


@pytest.mark.parametrize("optimizer", ["mean", "momentum", "adam"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_releases_give_the_adapter_bit_for_bit(
    optimizer: str, schedule: str, tmp_path: Path
) -> None:
    settings = (
        f"server.optimizer={optimizer}",
        f"server.schedule={schedule}",
        "server.averaging=0.7",
        "run.rounds=4",
    )
    federated, _, _, config = run(tmp_path, answer, *settings)
    again = replay(read(tmp_path), config, federated.initial_vector, SIZE)
    assert again is not None
    np.testing.assert_array_equal(again, federated.released)
    assert not np.array_equal(federated.released, federated.vector)


def test_rounds_without_a_release_leave_the_adapter_as_it_was() -> None:
    """Against the arithmetic, written out: rounds 1 and 3 of 4 released, the last two averaged."""
    config = small_config("server.averaging=0.5", "run.rounds=4", "server.optimizer=mean")
    found = Releases(rounds=(1, 3), values=np.array([[1.0, 2.0], [10.0, 20.0]]))
    zero = np.zeros(2, dtype=np.float32)
    np.testing.assert_array_equal(replay(found, config, zero, 2), [11.0, 22.0])
    np.testing.assert_array_equal(
        replay(Releases(rounds=(1,), values=found.values[:1]), config, zero, 2, finished=2),
        [1.0, 2.0],
    )
    np.testing.assert_array_equal(
        replay(Releases(rounds=(1, 4), values=found.values), config, zero, 2),
        [(1.0 + 11.0) / 2, (2.0 + 22.0) / 2],
    )
    with pytest.raises(AuditError, match="expected 1 to 2"):
        replay(found, config, zero, 2, finished=2)
    with pytest.raises(AuditError, match="expected 3"):
        replay(found, config, zero, 3)


def small_config(*overrides: str) -> RunConfig:
    return resolve(TABLES, list(overrides), source="test").config


def test_a_large_run_keeps_the_same_coordinates_of_every_round(
    released: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 3 * 4 * 30)
    federated, _, _, config = run(tmp_path, answer)
    found = read(tmp_path)
    assert found.values.shape == (3, 30)
    assert found.coordinates is not None
    assert np.unique(found.coordinates).size == 30
    full = np.stack(released).astype(np.float32)
    np.testing.assert_array_equal(found.values, full[:, found.coordinates])
    assert replay(found, config, federated.initial_vector, SIZE) is None


@given(size=st.integers(1, 10**9), rounds=st.integers(1, 10**6))
def test_releases_stay_within_their_bytes(size: int, rounds: int) -> None:
    kept = kept_coordinates(size, rounds=rounds)
    assert 1 <= kept <= size
    assert 4 * rounds * kept <= max(MOST_BYTES, 4 * rounds)
    assert kept == size or 4 * rounds * (kept + 1) > MOST_BYTES


def test_recording_can_be_switched_off(tmp_path: Path) -> None:
    run(tmp_path, answer, "audit.releases=false", "run.rounds=1")
    assert not (tmp_path / FOLDER).exists()
    assert read_releases(tmp_path) is None


class Killed(BaseException):
    """Ends the process."""


def kill_at(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, call: int) -> None:
    """Die at the nth call of a function, before it does anything."""
    real, calls = getattr(where, name), 0

    def dying(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return real(*arguments, **more)

    monkeypatch.setattr(where, name, dying)


@pytest.mark.parametrize("mechanism", ["gaussian", "correlated"])
def test_a_round_that_was_not_finished_leaves_no_release(
    mechanism: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between release and checkpoint of round 2; the repeated round has other updates."""
    options = (f"privacy.mechanism={mechanism}", "clients.cohort=6.0", "evaluation.every=3")
    with monkeypatch.context() as patch:
        kill_at(patch, strategy, "write_checkpoint", 2)
        with pytest.raises(Killed):
            run(tmp_path, answer, *options)
    assert [p.name for p in sorted((tmp_path / FOLDER).glob("pending-*"))] == [
        "pending-00002.safetensors"
    ]
    assert read(tmp_path).rounds == (1,)

    def other(client: int, instruction: Instruction) -> RecordDict:
        files = {p.name for p in (tmp_path / FOLDER).iterdir()}
        # Gone before anything of the repeated round is computed.
        assert f"pending-{instruction.server_round:05d}.safetensors" not in files
        return update(instruction, np.full(SIZE, -client / 1000))

    federated, _, _, config = run(tmp_path, other, *options)
    found = read(tmp_path)
    assert found.rounds == (1, 2, 3)
    again = replay(found, config, federated.initial_vector, SIZE)
    assert again is not None
    np.testing.assert_array_equal(again, federated.released)


def test_a_finished_round_gets_its_name_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the checkpoint of the last round and the new name of its release."""
    with monkeypatch.context() as patch:
        kill_at(patch, ReleaseRecorder, "publish", 3)
        with pytest.raises(Killed):
            run(tmp_path, answer)
    assert read(tmp_path).rounds == (1, 2)
    federated, _, _, config = run(tmp_path, answer)
    again = replay(read(tmp_path), config, federated.initial_vector, SIZE)
    assert again is not None
    np.testing.assert_array_equal(again, federated.released)


def test_going_back_to_an_older_checkpoint_forgets_later_releases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[tuple[Any, ...]] = []

    def kept(*arguments: Any) -> None:
        writes.append(arguments)
        write_checkpoint(*arguments)

    monkeypatch.setattr(strategy, "write_checkpoint", kept)
    run(tmp_path, answer, "evaluation.every=3")
    write_checkpoint(*writes[0])

    def dead(client: int, instruction: Instruction) -> RecordDict:
        del client, instruction
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path, dead, "evaluation.every=3")
    assert read(tmp_path).rounds == (1,)


def rewrite(path: Path, **changes: object) -> None:
    """Write a release again with another header."""
    tensors = load_file(path)
    header = {"format": 1, "round": 2, "size": SIZE, "config_digest": "x", **changes}
    save_file(tensors, path, metadata={"fedslm": json.dumps(header)})


def spoil_values(path: Path, values: np.ndarray) -> None:
    header = {"format": 1, "round": 2, "size": SIZE, "config_digest": "x"}
    save_file({"values": values}, path, metadata={"fedslm": json.dumps(header)})


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "another round": lambda path: rewrite(path, round=3),
    "another run": lambda path: rewrite(path),
    "another format": lambda path: rewrite(path, format=2),
    "no size": lambda path: rewrite(path, size=None),
    "too small": lambda path: rewrite(path, size=SIZE - 1),
    "not finite": lambda path: spoil_values(path, np.full(SIZE, np.nan, np.float32)),
    "integers": lambda path: spoil_values(path, np.zeros(SIZE, np.int64)),
    "a matrix": lambda path: spoil_values(path, np.zeros((2, SIZE // 2), np.float32)),
    "shorter": lambda path: spoil_values(path, np.zeros(3, np.float32)),
    "no header": lambda path: save_file({"values": np.zeros(SIZE, np.float32)}, path),
    "a swap": lambda path: path.with_name("round-00003.safetensors").replace(path),
}


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_damaged_releases_are_refused(name: str, tmp_path: Path) -> None:
    run(tmp_path, answer)
    DAMAGES[name](tmp_path / FOLDER / "round-00002.safetensors")
    with pytest.raises(AuditError) as caught:
        read_releases(tmp_path)
    assert str(tmp_path) not in str(caught.value)


def test_damaged_coordinates_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 3 * 4 * 30)
    run(tmp_path, answer)
    path = tmp_path / FOLDER / module.COORDINATES
    whole = load_file(path)["coordinates"]
    header = {"fedslm": json.dumps({"format": 1})}
    for bad in (whole[:-1], whole[::-1].copy(), whole + SIZE, whole.astype(np.float32)):
        save_file({"coordinates": bad}, path, metadata=header)
        with pytest.raises(AuditError, match="coordinates"):
            read_releases(tmp_path)
    path.unlink()
    with pytest.raises(AuditError, match="cannot be read"):
        read_releases(tmp_path)


def test_a_folder_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file", encoding="utf-8")
    with pytest.raises(RunFolderError):
        run(tmp_path, answer, "run.rounds=1")


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    note = tmp_path / FOLDER / "note.txt"
    note.write_text("kept", encoding="utf-8")
    federated, _, _, _ = run(tmp_path, answer, "run.rounds=1")
    assert isinstance(federated, FederatedRun)
    assert note.read_text(encoding="utf-8") == "kept"
    assert read(tmp_path).rounds == (1,)
