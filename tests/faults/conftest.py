"""One fleet for all faults that leave it whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from shared.errors import UsageError
from tests.faults.fleet import LIGHT, REAL, Fleet, fleet_of


@pytest.fixture(scope="session")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("fleet"), real=REAL, light=LIGHT) as fleet:
        yield fleet


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Iterator[Fleet]:
    """The shared fleet; afterwards nobody holds anything and nothing runs."""
    shared_fleet.orders.release()
    yield shared_fleet
    shared_fleet.orders.release()
    for view in shared_fleet.runs.all():
        # A run may end just now.
        with suppress(UsageError):
            shared_fleet.runs.want(view.name, "stopped")
