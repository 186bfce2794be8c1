"""docs/threat-model.md names files and tests that exist, and every hostile test is named in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
FILE = re.compile(r"`((?:server|client|shared|simulations|tests)/[\w./-]+\.(?:py|proto))`")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@pytest.mark.parametrize("name", sorted(set(FILE.findall(PAGE))))
def test_every_file_that_is_named_exists(name: str) -> None:
    assert (ROOT / name).is_file()


@pytest.mark.parametrize(("file", "name"), sorted(set(TEST.findall(PAGE))))
def test_every_test_that_is_named_exists(file: str, name: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE)


def test_enough_is_named() -> None:
    assert len(set(TEST.findall(PAGE))) > 60


def test_every_file_of_hostile_tests_is_named() -> None:
    files = {f"tests/hostile/{p.name}" for p in (ROOT / "tests" / "hostile").glob("test_*.py")}
    assert files <= {file for file, _ in TEST.findall(PAGE)}


def test_every_attack_has_a_defence_and_a_test() -> None:
    """Rows of the tables under "Attacks on ..." have four cells, the last of which names a test."""
    rows = 0
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE):
        if not section.startswith("Attacks"):
            continue
        for line in re.findall(r"^\| .*\|$", section, re.MULTILINE):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if cells[0] == "attack":
                continue
            rows += 1
            assert len(cells) == 4, line
            assert FILE.search(cells[2]) or "docs/" in cells[2] or "adr/" in cells[2], line
            assert TEST.search(cells[3]), line
    assert rows > 40
