"""Which benchmarks there are, what they are called, and that no page names another one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import InvalidValue
from simulations.benchmarks.catalog import (
    benchmark,
    benchmarks,
    called,
    keeping,
    plotting,
    summaries,
)

ROOT = Path(__file__).parents[3]
PROMISED = {"accountant", "dp-step", "engine", "server", "bytes", "quality"}


def test_all_that_were_promised_are_listed_with_one_line_each() -> None:
    found = summaries()
    assert set(found) >= PROMISED
    assert list(found) == sorted(found)
    for name, line in found.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
        assert len(line) < 100
        assert "\n" not in line


def test_the_list_is_what_the_modules_say() -> None:
    modules = benchmarks()
    assert {name: module.SUMMARY for name, module in modules.items()} == summaries()
    assert {name: called(module) for name, module in modules.items()} == {n: n for n in modules}


def test_listing_imports_no_benchmark() -> None:
    code = (
        "import sys; from simulations.benchmarks.catalog import summaries; summaries();"
        "print([name for name in sys.modules if name in ('torch', 'flwr', 'matplotlib')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["dp-step", "dp_step"])
def test_either_spelling_is_understood(name: str) -> None:
    assert called(benchmark(name)) == "dp-step"


@pytest.mark.parametrize(
    ("wrong", "near"), [("dp-stp", "dp-step"), ("dp_stpe", "dp-step"), ("qualty", "quality")]
)
def test_a_near_miss_gets_the_nearest_name(wrong: str, near: str) -> None:
    with pytest.raises(InvalidValue, match="expected one of: accountant, bytes, ") as caught:
        benchmark(wrong)
    assert caught.value.hint == f"Did you mean '{near}'?"


def test_parts_of_benchmarks_are_none() -> None:
    for name in ("dp-step-case", "quality-runs", "engine-plot", "catalog"):
        with pytest.raises(InvalidValue):
            benchmark(name)


def test_what_a_benchmark_can_do_is_known() -> None:
    assert keeping(benchmark("quality")) is not None
    assert keeping(benchmark("bytes")) is None
    assert {name for name in ("quality", "bytes", "engine") if plotting(benchmark(name))} == {
        "quality",
        "bytes",
        "engine",
    }
    assert plotting(benchmark("accountant")) is None


def test_every_benchmark_that_a_page_names_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        name
        for page in pages
        for name in re.findall(r"fedslm bench run ([a-z][a-z_-]*)", page.read_text("utf-8"))
    }
    assert named >= PROMISED - {"accountant"}
    for name in named:
        benchmark(name)
