"""The examples in docstrings of the public interface, run as they stand."""

from __future__ import annotations

import doctest

import pytest

from client import inference


@pytest.mark.slow
def test_the_examples_of_the_interface_run() -> None:
    found = doctest.testmod(inference)
    assert found.attempted >= 6
    assert found.failed == 0
