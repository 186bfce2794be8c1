"""Controls made in another process: the same ones, waited for only where they are needed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import pytest

from server.audit.protocol import Control
from simulations.auditing.controls import ControlsElsewhere
from simulations.forks import can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux alone")

MADE = {
    "exposure": Control(source="leak", detected=True, value=1 / 3, interval=(0.1, 2 / 3)),
    "membership": Control(source="leak", detected=None, comparable=False),
}


def test_they_are_those_that_are_made_here() -> None:
    found = ControlsElsewhere(tuple(MADE), lambda: MADE)
    assert dict(found) == MADE
    assert len(found) == 2
    found.close()


def test_an_audit_that_needs_none_does_not_wait() -> None:
    def slow() -> Mapping[str, Control]:
        time.sleep(60)
        return MADE

    began = time.monotonic()
    found = ControlsElsewhere(tuple(MADE), slow)
    assert found.get("ledger") is None
    assert "mechanism" not in found
    found.close()
    assert time.monotonic() - began < 20


def test_they_are_made_here_if_the_other_process_fails() -> None:
    here = os.getpid()

    def only_here() -> Mapping[str, Control]:
        if os.getpid() != here:
            msg = "not here"
            raise RuntimeError(msg)
        return MADE

    found = ControlsElsewhere(tuple(MADE), only_here)
    assert found["exposure"] == MADE["exposure"]
    found.close()
