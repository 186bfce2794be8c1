"""Starting Ray: a node that does not come up gets a second try, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="engine flower needs the extra fedslm[ray]")

from ray._private.node import Node  # noqa: E402

from simulations import flower_engine  # noqa: E402


class HalfStarted(Node):  # type: ignore[misc, unused-ignore]
    """A node of one process, as a start leaves it that timed out."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def start(self) -> None:
        msg = "The current node timed out during startup."
        raise Exception(msg)  # noqa: TRY002 - Ray's own class

    def kill_all_processes(
        self, check_alive: bool = True, allow_graceful: bool = False, wait: bool = False
    ) -> None:
        assert not check_alive
        assert not allow_graceful
        self.process.kill()
        if wait:
            self.process.wait()


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[HalfStarted]]:
    """Let the first so many starts of Ray fail."""

    def fail(times: int) -> list[HalfStarted]:
        nodes: list[HalfStarted] = []

        def init(**options: Any) -> None:
            assert options["include_dashboard"] is False
            assert options["runtime_env"]["env_vars"]["PYTHONPATH"]
            if len(nodes) < times:
                sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
                nodes.append(HalfStarted(subprocess.Popen(sleeper)))
                nodes[-1].start()

        monkeypatch.setattr(ray, "init", init)
        return nodes

    return fail


def test_a_node_that_did_not_come_up_is_ended_and_started_again(
    starts: Callable[[int], list[HalfStarted]],
) -> None:
    nodes = starts(1)
    flower_engine._start_ray()
    assert [node.process.poll() for node in nodes] == [-9]


def test_a_second_failure_is_raised_and_leaves_no_process(
    starts: Callable[[int], list[HalfStarted]],
) -> None:
    nodes = starts(3)
    with pytest.raises(Exception, match="timed out during startup"):
        flower_engine._start_ray()
    assert [node.process.poll() for node in nodes] == [-9, -9]
