from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.control.ledgers import charge
from tests.server.control.registries import add_adapter
from tests.server.control.service import Service, make_home, serving
from tests.server.control.test_runstates import add_run


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A control service with runs, a ledger and adapters; one for each module of tests."""
    home = make_home(tmp_path_factory.mktemp("control") / "server")
    charge(home)
    add_run(home, "clinics-1", 3)
    add_run(home, "clinics-2", 6, completed=True)
    add_adapter(home, number=1)
    add_adapter(home, number=2)
    add_adapter(home, number=3, promote=False, withheld=True)
    with serving(home) as running:
        yield running
