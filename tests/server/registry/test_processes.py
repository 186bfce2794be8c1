"""Several processes in one registry, and processes that are killed at any point."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from server.registry import verify_registry
from tests.adapterkit import files_of, open_registry, write_folder
from tests.server.registry.worker import add_and_promote

SPAWN = multiprocessing.get_context("spawn")
KILLS = 25


def folders(tmp_path: Path, count: int) -> list[Path]:
    found = [tmp_path / f"adapter-{n}" for n in range(count)]
    for seed, folder in enumerate(found):
        write_folder(folder, seed)
    return found


def run(processes: list[SpawnProcess], seconds: float) -> None:
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(seconds)
            assert process.exitcode == 0
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


@pytest.mark.slow
def test_processes_that_promote_at_once_leave_one_chain(tmp_path: Path) -> None:
    adapters = folders(tmp_path, 4)
    root = tmp_path / "registry"
    processes = [
        SPAWN.Process(
            target=add_and_promote, args=(root, adapters[n : n + 2], 5, tmp_path / f"ready-{n}")
        )
        for n in (0, 1, 2)
    ]
    run(processes, 120)
    registry = open_registry(root)
    report = verify_registry(registry)
    assert report.problems == ()
    assert report.leftovers == 0
    assert report.versions == 4
    numbers = [signed.order.number for signed in registry.orders()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 4


@pytest.mark.slow
def test_a_process_that_is_killed_anywhere_leaves_whole_versions(tmp_path: Path) -> None:
    """Killed at random points; after each, everything that is visible is whole."""
    adapters = folders(tmp_path, 6)
    root = tmp_path / "registry"
    rng = random.Random(5)
    seen: set[str] = set()
    orders = 0
    for kill in range(KILLS):
        ready = tmp_path / f"ready-{kill}"
        process = SPAWN.Process(target=add_and_promote, args=(root, adapters, 10_000, ready))
        process.start()
        try:
            deadline = time.monotonic() + 60
            while not ready.exists():
                assert process.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.15))
        finally:
            process.kill()
            process.join()
        registry = open_registry(root)
        report = verify_registry(registry)
        assert report.problems == ()
        for version in registry.versions():
            assert sum(map(len, files_of(registry, version).values())) == version.facts.size
        # What was visible once stays; the history never gets shorter.
        now = {version.digest for version in registry.versions()}
        assert seen <= now
        assert len(registry.orders()) >= orders
        seen, orders = now, len(registry.orders())
    assert orders > 0
    registry.collect()
    assert verify_registry(registry).leftovers == 0
