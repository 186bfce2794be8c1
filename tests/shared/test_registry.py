"""Closed tables of names."""

from __future__ import annotations

import pytest

from shared.errors import InvalidValue
from shared.registry import Registry, suggestion


def make() -> Registry[int]:
    registry: Registry[int] = Registry("policy")
    registry.add("ffa", 1)
    registry.add("fedavg", 2)
    return registry


def test_names_are_kept_in_order() -> None:
    registry = make()
    assert list(registry) == ["ffa", "fedavg"]
    assert "ffa" in registry
    assert "flora" not in registry
    assert registry.get("fedavg") == 2


def test_an_unknown_name_says_what_there_is_and_what_may_be_meant() -> None:
    with pytest.raises(InvalidValue) as caught:
        make().get("fedavgg")
    assert caught.value.message == "policy='fedavgg', expected one of: fedavg, ffa."
    assert caught.value.hint == "Did you mean 'fedavg'?"


def test_a_name_is_registered_once() -> None:
    registry = make()
    with pytest.raises(InvalidValue, match="registered twice"):
        registry.add("ffa", 3)
    assert registry.get("ffa") == 1


def test_nothing_is_suggested_for_something_else() -> None:
    assert suggestion("zebra", ["ffa", "fedavg"]) == ""
    assert suggestion("roundz", ["rounds", "name"]) == "Did you mean 'rounds'?"
