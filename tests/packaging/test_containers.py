"""The container files: a small reader of their language, and what each of them must keep to.

No engine is needed; who has one builds them.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.control.settings import enrol_address
from server.settings import ServerConfig

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
FILES = sorted(PACKAGING.glob("Containerfile.*"))
KNOWN = set(
    "ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK RUN STOPSIGNAL USER VOLUME WORKDIR".split()
)
SECRET = re.compile(r"(?i)(password|passwd|secret|token|credential|api_?key)[A-Z_]*\s*=\s*\S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One instruction."""

    word: str
    rest: str


def steps(path: Path) -> list[Step]:
    """Return the instructions of a container file, continued lines joined, comments left out."""
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [Step(word=word, rest=rest) for word, rest in found]


def stages(path: Path) -> list[list[Step]]:
    """Return the instructions of each stage; what comes before the first is left out."""
    found: list[list[Step]] = []
    for step in steps(path):
        if step.word == "FROM":
            found.append([])
        if found:
            found[-1].append(step)
    return found


def last(path: Path, word: str) -> list[str]:
    """Return what follows a word in the last stage, which is what is shipped."""
    return [step.rest for step in stages(path)[-1] if step.word == word]


def environment(path: Path) -> dict[str, str]:
    pairs = [pair for rest in last(path, "ENV") for pair in rest.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def test_there_are_two() -> None:
    assert [path.suffix for path in FILES] == [".client", ".server"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_every_instruction_is_one(path: Path) -> None:
    assert {step.word for step in steps(path)} <= KNOWN
    assert len(stages(path)) == 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_nobody_is_root_in_the_end(path: Path) -> None:
    users = last(path, "USER")
    assert users == ["10001:10001"]
    order = [step.word for step in stages(path)[-1]]
    # Nothing is made after the user changed, so nothing of the program can be written by it.
    assert not {"RUN", "COPY"} & set(order[order.index("USER") :])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_both_stages_have_the_same_base_of_python_3_11(path: Path) -> None:
    [argument] = [s.rest for s in steps(path)[:1] if s.word == "ARG"]
    assert argument == "PYTHON_IMAGE=python:3.11-slim-bookworm"
    bases = [stage[0].rest.split()[0] for stage in stages(path)]
    assert bases == ["${PYTHON_IMAGE}", "${PYTHON_IMAGE}"]
    pins = (ROOT / "constraints" / "common.txt").read_text(encoding="utf-8")
    assert "Made with Python 3.11" in pins


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_what_is_copied_exists_and_holds_all_packages(path: Path) -> None:
    copied = [s.rest.split()[:-1] for s in stages(path)[0] if s.word == "COPY"]
    names = {name for line in copied for name in line}
    assert all((ROOT / name).exists() for name in names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) | {"constraints", "pyproject.toml", "README.md", "LICENSE"} == names
    # The shipped stage takes the environment alone: neither sources nor caches nor pip.conf.
    assert last(path, "COPY") == ["--from=build /opt/fedslm /opt/fedslm"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_versions_are_the_pinned_ones(path: Path) -> None:
    arguments = dict(
        s.rest.split("=", 1) for s in stages(path)[0] if s.word == "ARG" and "=" in s.rest
    )
    assert (ROOT / arguments["CONSTRAINTS"]).is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(arguments["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
    installs = [s.rest for s in stages(path)[0] if s.word == "RUN" and "pip install" in s.rest]
    for command in installs:
        assert command.count("pip install") == command.count('-c "${CONSTRAINTS}"')
        assert "--no-build-isolation" in command
    assert installs


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_no_secret_gets_into_a_layer(path: Path) -> None:
    for step in steps(path):
        if step.word in {"ARG", "ENV"}:
            assert SECRET.search(step.rest) is None, step
        assert "://" not in step.rest
        assert step.word != "ADD"
    mounts = [s.rest for s in stages(path)[0] if "--mount=type=secret" in s.rest]
    assert len(mounts) == 1
    assert "PIP_INDEX_URL" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_the_root_may_be_read_only(path: Path) -> None:
    assert last(path, "VOLUME") == ["/data"]
    variables = environment(path)
    assert variables["HOME"] == "/data"
    assert variables["PYTHONDONTWRITEBYTECODE"] == "1"
    assert variables["FLWR_TELEMETRY_ENABLED"] == "0"
    assert variables["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert last(path, "STOPSIGNAL") == ["SIGTERM"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_health_is_looked_at(path: Path) -> None:
    [health] = last(path, "HEALTHCHECK")
    assert "--start-period=" in health
    assert "CMD [" in health


def test_the_ports_are_those_of_the_settings() -> None:
    [ports] = last(PACKAGING / "Containerfile.server", "EXPOSE")
    config = ServerConfig(name="x")
    enrol = int(enrol_address(config).rpartition(":")[2])
    outer = {config.fleet_port, config.control_port, config.dashboard_port, enrol}
    assert set(map(int, ports.split())) == outer
    assert config.superlink_port not in outer
    [health] = last(PACKAGING / "Containerfile.server", "HEALTHCHECK")
    assert f"127.0.0.1:{config.fleet_port}" in health
    assert last(PACKAGING / "Containerfile.client", "EXPOSE") == []


def test_the_server_comes_without_torch() -> None:
    text = (PACKAGING / "Containerfile.server").read_text(encoding="utf-8")
    assert "ARG EXTRAS=server,postgres\n" in text


def test_a_node_without_torch_is_a_build_argument() -> None:
    path = PACKAGING / "Containerfile.client"
    assert "ARG EXTRAS=client\n" in path.read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    edge = " ".join(project["optional-dependencies"]["edge"])
    assert not re.search(r"torch|transformers|peft|opacus|bitsandbytes|fedslm\[", edge)
    # Nothing but installing depends on which of the two it is.
    assert [s.word for s in steps(path) if "EXTRAS" in s.rest] == ["ARG", "RUN"]


def test_a_node_without_torch_is_trimmed_and_the_other_is_not() -> None:
    """``fedslm client trim`` refuses an environment that holds torch."""
    [how] = [s.rest for s in steps(PACKAGING / "Containerfile.client") if "EXTRAS}" in s.rest]
    first, _, second = how.partition('[ "${EXTRAS}" = edge ]; then ')[2].partition("; else ")
    assert first == "/opt/fedslm/bin/fedslm client trim"
    assert "trim" not in second
    assert how.index("pip uninstall") < how.index("client trim")


def test_both_check_the_architecture() -> None:
    for path in FILES:
        assert any("amd64|arm64" in s.rest for s in stages(path)[0] if s.word == "RUN")
