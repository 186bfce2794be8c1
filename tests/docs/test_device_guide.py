"""The owner's guide and the page on sizing: what they name exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from client.conditions import BUSY_SHARE, CALM_SECONDS
from client.nodelog import LARGEST
from client.policyfile import ConditionsSection, read_policy_file
from simulations.benchmarks.footprint import IDLE_MB, NODE_MB, TRAINING_MB
from simulations.benchmarks.footprintmodel import M135
from tests.client.device import policy_tables, toml

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "deploy" / "device.md").read_text(encoding="utf-8")
SIZING = (ROOT / "docs" / "deploy" / "sizing.md").read_text(encoding="utf-8")
PACKAGING = (ROOT / "packaging" / "README.md").read_text(encoding="utf-8")


def test_the_conditions_are_a_policy_and_each_is_explained(tmp_path: Path) -> None:
    [block] = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    path = tmp_path / "policy.toml"
    path.write_text(toml(policy_tables()) + block, encoding="utf-8")
    asked = read_policy_file(path).conditions
    assert asked is not None
    assert asked.model_fields_set == set(ConditionsSection.model_fields)
    explained = re.findall(r"^\| `(\w+)` \| ", GUIDE, re.MULTILINE)
    assert (
        explained
        == list(ConditionsSection.model_fields)[: len(explained)]
        == list(ConditionsSection.model_fields)
    )


def test_the_numbers_of_the_guide_are_those_of_the_code() -> None:
    assert (BUSY_SHARE, CALM_SECONDS) == (0.5, 60.0)
    assert "more than half of the" in GUIDE
    assert "for a minute no look found" in GUIDE
    assert 2 * LARGEST < 8.5e6
    unit = (ROOT / "packaging" / "systemd" / "fedslm-client.service").read_text(encoding="utf-8")
    assert "WatchdogSec=900\n" in unit
    assert "hung for 15 minutes" in GUIDE


def test_the_limits_of_the_sizing_page_are_those_of_the_benchmark() -> None:
    for limit in (IDLE_MB, NODE_MB, TRAINING_MB):
        assert f"| {limit:.0f} MB |" in SIZING
    assert f"{M135.parameters:,}" in SIZING


BOARDS = {
    name: (ROOT / "docs" / "deploy" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("raspberry-pi", "jetson", "container")
}


@pytest.mark.parametrize("page", BOARDS.values(), ids=BOARDS)
def test_what_was_not_tried_is_said_and_no_torch_comes_by_itself(page: str) -> None:
    assert re.search(r"\*\*(No (Raspberry Pi|Jetson) was|Not done\*\*)", page)
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert "pip install torch" not in "".join(blocks)
    assert "constraints/aarch64.txt" in page


def test_the_limits_of_the_boards_are_those_of_script_and_unit() -> None:
    script = (ROOT / "packaging" / "install-node.sh").read_text(encoding="utf-8")
    unit = (ROOT / "packaging" / "systemd" / "fedslm-client.service").read_text(encoding="utf-8")
    assert "min_memory_mib=450" in script
    assert "min_disk_mib=1024" in script
    assert "MemoryMax=800M" in script
    assert "CPUQuota=300%\n" in unit
    page = BOARDS["raspberry-pi"]
    for said in ("450 MiB of memory, 1 GiB of disk", "`CPUQuota=300%`", "with `--edge` 800 MB"):
        assert said in page
    options = set(re.findall(r"--[a-z-]+", " ".join(re.findall(r"install-node\.sh (.*)", page))))
    assert [option for option in options if f"      {option})" not in script] == []


@pytest.mark.parametrize(
    "page", [GUIDE, PACKAGING, *BOARDS.values()], ids=["guide", "packaging", *BOARDS]
)
def test_every_file_of_the_repository_that_is_named_exists(page: str) -> None:
    named = re.findall(r"(?<![\w/.])((?:packaging|constraints|client|simulations)/[\w./-]+)", page)
    assert named
    assert [name for name in named if not (ROOT / name.rstrip(".")).exists()] == []


def test_the_files_of_packaging_are_all_described() -> None:
    files = {
        path.relative_to(ROOT / "packaging").as_posix()
        for path in (ROOT / "packaging").rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    described = set(re.findall(r"^\| `([\w./-]+)` \| ", PACKAGING, re.MULTILINE))
    assert files <= described


def test_the_commands_of_the_guide_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from simulations.cli import run

    lines = re.findall(r"^fedslm (client (?:policy )?\w+)", GUIDE, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        assert run([*shlex.split(line), "--help"]) == 0, line
    capsys.readouterr()
