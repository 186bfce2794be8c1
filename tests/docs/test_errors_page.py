"""Every error code has its page, with its exit code, an action and an example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.errors import FedSLMError, all_errors

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
HEADING = re.compile(r"^## (\S+) \(exit (\d+)\)$", re.MULTILINE)


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def section(code: str) -> str:
    _, _, rest = page().partition(f"\n## {code} (exit ")
    return rest.partition("\n## ")[0]


def test_the_headings_are_the_codes() -> None:
    assert len(re.findall(r"^## ", page(), re.MULTILINE)) == len(HEADING.findall(page()))
    found = [(code, int(number)) for code, number in HEADING.findall(page())]
    expected = sorted(((cls.code, cls.exit_code) for cls in all_errors()), key=lambda pair: pair[1])
    assert found == expected


@pytest.mark.parametrize("cls", list(all_errors()))
def test_each_says_what_to_do_and_shows_a_message(cls: type[FedSLMError]) -> None:
    text = section(cls.code)
    assert re.search(r"^Do: \S", text, re.MULTILINE)
    assert re.search(r"^    \S", text, re.MULTILINE)
    assert len(text.splitlines()[2]) > 20  # the meaning comes first
