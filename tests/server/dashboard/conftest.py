"""One full server folder, made once and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from server.dashboard.board import Board
from server.home import ServerHome
from tests.server.dashboard.homes import Recorder, board_of, full_home


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_home(tmp_path_factory.mktemp("dashboard") / "home").path


@pytest.fixture
def both(full: Path, tmp_path: Path) -> tuple[Board, Recorder]:
    shutil.copytree(full, tmp_path / "home")
    return board_of(ServerHome.open(tmp_path / "home"))


@pytest.fixture
def board(both: tuple[Board, Recorder]) -> Board:
    return both[0]
