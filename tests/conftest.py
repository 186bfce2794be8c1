"""What every test gets: no network beyond this host, no telemetry, one thread."""

from __future__ import annotations

import errno
import os
import socket
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A slow machine is no failure; in CI the same examples are drawn every time.
settings.register_profile("fedslm", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("fedslm")

# Read when the libraries are first imported, so set before any of them is.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }
)


def is_local(host: str) -> bool:
    """Tell whether an address is one of this host's: only such an address can be bound."""
    if host in {"", "localhost", socket.gethostname()}:
        return True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _refuse_foreign(address: Any) -> None:
    """Raise what a host without a network would raise."""
    if isinstance(address, tuple) and address and not is_local(str(address[0])):
        raise OSError(errno.ENETUNREACH, f"tests stay on this host; refused {address[0]}")


def _leaves_host(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("network") is not None


@pytest.fixture(scope="session", autouse=True)
def own_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the keys that commands make for a person out of that person's home."""
    before = os.environ.get("XDG_CONFIG_HOME")
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("configuration"))
    yield
    if before is None:
        del os.environ["XDG_CONFIG_HOME"]
    else:
        os.environ["XDG_CONFIG_HOME"] = before


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Refuse connections to other hosts; Ray and gRPC may use this host's addresses."""
    if _leaves_host(request):
        yield
        return
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    look_up = socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _refuse_foreign(address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_foreign(address)
        return connect_ex(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(host, str) and not is_local(host):
            raise socket.gaierror(socket.EAI_NONAME, f"tests stay on this host; refused {host}")
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield


if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Ray joins whatever cluster its folder names; tests beside each other have clusters apart.
    os.environ.setdefault("RAY_TMPDIR", f"/tmp/fedslm-ray-{os.getuid()}-{worker}")
    Path(os.environ["RAY_TMPDIR"]).mkdir(mode=0o700, exist_ok=True)


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Give each test the mask of the first: a command that narrows it does so for its process."""
    before = os.umask(0o077)
    os.umask(before)
    yield
    os.umask(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason; begin with what takes longest."""
    if os.environ.get("FEDSLM_NETWORK_TESTS") != "1":
        _skip(items, "network", "leaves this host; set FEDSLM_NETWORK_TESTS=1 to run it")
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            _skip(items, "gpu", "no CUDA device here")
    _require_fleets_to_be_found(items)
    _trace_the_quick_ones(items)
    _longest_first(items)


def _require_fleets_to_be_found(items: list[pytest.Item]) -> None:
    """Refuse a test of a fleet whose file does not name the mark by which `make check` finds it."""
    fleets = {item.path for item in items if item.get_closest_marker("fleet")}
    hidden = [path.name for path in fleets if "mark.fleet" not in path.read_text(encoding="utf-8")]
    if hidden:
        msg = f"marked as fleet without naming pytest.mark.fleet: {', '.join(sorted(hidden))}"
        raise pytest.UsageError(msg)


def _trace_the_quick_ones(items: list[pytest.Item]) -> None:
    """Leave long tests out of the measurement of coverage, which slows tight loops tenfold.

    The floor is thereby on what the quick tests reach, and the few long ones that are marked.
    """
    for item in items:
        if not item.get_closest_marker("traced") and any(
            item.get_closest_marker(name) for name in ("slow", "statistical", "timeout")
        ):
            item.add_marker(pytest.mark.no_cover)


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


def _longest_first(items: list[pytest.Item]) -> None:
    """Sort files by the time that their tests may take, so that no worker ends alone."""
    allowed: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        limit = item.get_closest_marker("timeout")
        slow = item.get_closest_marker("slow") or item.get_closest_marker("statistical")
        allowed[item.path] += float(limit.args[0]) if limit else float(slow is not None)
    items.sort(key=lambda item: -allowed[item.path])
