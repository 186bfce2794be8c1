"""One finished run for the tests that only look at it."""

from __future__ import annotations

import pytest

from simulations.simulate import Result
from tests.integration.scenario import run_small


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_small(tmp_path_factory.mktemp("finished") / "run")
