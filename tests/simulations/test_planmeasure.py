"""The cost model beside real steps of the demo model: within a factor of 2."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from time import process_time

import pytest

from client.adapter import AdaptedModel, adapt
from client.model import load_base
from shared.devicecost import Setup, memory_of, step_macs
from shared.lora import initial_factors
from simulations.basepath import ASSETS
from simulations.planmeasure import made_up, step_of
from tests.shared.deviceshapes import DEMO, spec_of

ROOT = Path(__file__).parents[2]
FACTOR = 2.0
SPEC = spec_of(DEMO.linears, 4)
STEP = Setup(
    max_length=64,
    batch_size=8,
    physical_batch=8,
    local_steps=1,
    clipper="fused",
    private=True,
    kinds="B",
)
PROBE = """
import json, sys
from simulations.benchmarks.dp_step_case import (
    _forget_peak, _give_blocks_pages_of_their_own, _status)
_give_blocks_pages_of_their_own()
from shared.devicecost import Setup
from tests.simulations.test_planmeasure import DEMO, adapted, made_up, step_of
setups = [Setup(**one) for one in json.loads(sys.argv[1])]
model, found = adapted(), []
for setup in setups:
    model.set_trainable(setup.kinds)
    take = step_of(model, setup, made_up(DEMO, setup))
    take()
    before = _forget_peak()
    take()
    found.append(_status("VmHWM") - before)
print(json.dumps(found))
"""


def adapted() -> AdaptedModel:
    model = adapt(load_base(str(ASSETS / "demo")), r=4, alpha=8.0, target_modules="all-linear")
    model.load(initial_factors(model.spec, 7))
    return model


def _peaks(setups: list[Setup]) -> list[int]:
    """Return the bytes that steps take above what was resident, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([asdict(one) for one in setups])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[int] = json.loads(done.stdout)
    return found


def _seconds(model: AdaptedModel, setups: list[Setup]) -> list[float]:
    """Return the least processor seconds of each of some steps, taken by turns."""
    model.set_trainable("B")
    takes = [step_of(model, one, made_up(DEMO, one)) for one in setups]
    for take in takes:
        take()
    gc.collect()
    spent: list[list[float]] = [[] for _ in takes]
    for _ in range(7):
        for mine, take in zip(spent, takes, strict=True):
            began = process_time()
            take()
            mine.append(process_time() - began)
    return [min(mine) for mine in spent]


@pytest.mark.slow
def test_the_memory_of_a_step_is_within_a_factor_of_two() -> None:
    setups = [
        STEP,
        replace(STEP, max_length=192),
        replace(STEP, batch_size=24, physical_batch=24),
        replace(STEP, kinds="AB"),
        replace(STEP, clipper="microbatch"),
        replace(STEP, clipper="microbatch", max_length=192),
        replace(STEP, private=False),
    ]
    for setup, peak in zip(setups, _peaks(setups), strict=True):
        expected = memory_of(DEMO, SPEC, setup).step
        assert peak / FACTOR < expected < peak * FACTOR, setup


@pytest.mark.slow
def test_ratios_of_time_are_within_a_factor_of_two() -> None:
    setups = [
        STEP,
        replace(STEP, max_length=192),
        replace(STEP, batch_size=24, physical_batch=24),
    ]
    taken = _seconds(adapted(), setups)
    counted = [step_macs(DEMO, SPEC, setup) for setup in setups]
    for seconds, macs in zip(taken[1:], counted[1:], strict=True):
        measured, expected = seconds / taken[0], macs / counted[0]
        assert measured / FACTOR < expected < measured * FACTOR
