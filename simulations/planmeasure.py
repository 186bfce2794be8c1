"""Speed and memory of this machine, from a few real steps on made-up tokens."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shared.baseshape import BaseShape
from shared.config import RunConfig
from shared.devicecost import RUNTIME_BYTES, Setup, step_macs
from shared.devices import DeviceProfile
from shared.devicesettings import setup_of
from shared.seeding import data_rng
from simulations.planreport import read_base

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.examples import Example

_STEPS = 3
_MOST_EXAMPLES = 8
_LONGEST = 128
_MIB = 1 << 20


def measured_profile(config: RunConfig, profile: DeviceProfile, *, base_dir: Path) -> DeviceProfile:
    """Return a profile with this machine's speed and free memory in place of its own.

    A few steps are taken on random token numbers from a public seed: no data is read, so the
    result may be published. The base is loaded as the scenario says.

    Args:
        config: the scenario.
        profile: of this machine.
        base_dir: what relative paths of the scenario are relative to.
    """
    from client.machine import Machine
    from simulations.assemble import load_model

    shape, spec = read_base(config, base_dir=base_dir)
    small = calibration_setup(config)
    model = load_model(config, base_dir=base_dir)
    model.set_trainable(small.kinds)
    seconds = step_seconds(model, shape, small)
    rate = step_macs(shape, spec, small) / seconds
    free = Machine().free_memory()
    memory = profile.memory_mib if free is None else (free + RUNTIME_BYTES) / _MIB
    told = {
        "macs_per_second": f"measured here: the quickest of {_STEPS} steps of "
        f"{small.batch_size} examples of {small.max_length} tokens",
        "memory_mib": "measured here: what is free, and what this process holds",
    }
    sources = {k: v for k, v in profile.sources.items() if k != "reference_seconds"} | told
    changes = {
        "macs_per_second": rate,
        "reference_seconds": None,
        "memory_mib": memory,
        "sources": sources,
    }
    return profile.model_copy(update=changes)


def calibration_setup(config: RunConfig) -> Setup:
    """Return a step of a scenario that is short enough to take a few times."""
    setup = setup_of(config)
    batch = min(setup.batch_size, setup.physical_batch, _MOST_EXAMPLES)
    return replace(
        setup, batch_size=batch, physical_batch=batch, max_length=min(setup.max_length, _LONGEST)
    )


def step_seconds(model: AdaptedModel, shape: BaseShape, setup: Setup) -> float:
    """Time the quickest of a few gradients after a first one that is not counted."""
    take = step_of(model, setup, made_up(shape, setup))
    take()
    gc.collect()
    spent = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        take()
        spent.append(time.perf_counter() - began)
    return min(spent)


def made_up(shape: BaseShape, setup: Setup) -> list[Example]:
    """Return examples of random tokens from a public seed."""
    from client.examples import Example

    rng = data_rng(0, "plan", "tokens")
    drawn = rng.integers(shape.vocabulary, size=(setup.batch_size, setup.max_length))
    return [Example(ids=row, labels=row) for row in drawn.astype(np.int64)]


def step_of(model: AdaptedModel, setup: Setup, examples: list[Example]) -> Callable[[], object]:
    """Return a function that computes one step's gradient as training would."""
    from client.clipping import gradients_of, make_clipper
    from client.losses import collate, per_sequence_losses

    batch = collate(examples, 0)

    def plain() -> object:
        with model.training():
            return gradients_of(model, per_sequence_losses(model.peft_model, batch).sum())

    def private() -> object:
        with model.training(), make_clipper(setup.clipper, model) as engine:
            return engine.clipped_sum(batch, 1.0)

    return private if setup.private else plain
