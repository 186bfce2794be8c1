"""Every test that docs/privacy.md relies on exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLAIM = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_test_that_is_named_exists() -> None:
    text = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    claims = CLAIM.findall(text)
    assert len(claims) > 20
    missing = [
        f"{file}::{name}"
        for file, name in claims
        if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert not missing


def test_every_module_that_is_named_exists() -> None:
    text = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    modules = re.findall(r"`((?:client|server|shared|simulations)/[\w/]+\.py)`", text)
    assert modules
    assert all((ROOT / module).is_file() for module in modules)
