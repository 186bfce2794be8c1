"""The cost model: monotone, exact where it can be, and near what a real step takes."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.adaptermethod import PROMPT_TENSOR, Method
from shared.baseshape import GEMMA_270M, QUANTIZATIONS, stored_bytes, with_rank
from shared.configlink import LinkSection
from shared.devicecost import (
    Clipper,
    Setup,
    bytes_down,
    bytes_up,
    memory_of,
    round_cost,
    step_macs,
)
from shared.devices import PROFILES
from shared.link import Downlink, uplink
from shared.lora import AdapterSpec, Factor
from shared.wire import ClientUpdate, Instruction, encode_instruction, encode_update, payload_bytes
from tests.shared.deviceshapes import DEMO, spec_of

SETUPS = st.builds(
    Setup,
    max_length=st.integers(1, 2048),
    batch_size=st.integers(1, 64),
    physical_batch=st.integers(1, 64),
    local_steps=st.integers(1, 20),
    clipper=st.sampled_from(get_args(Clipper)),
    quantization=st.sampled_from(QUANTIZATIONS),
    cache=st.booleans(),
    private=st.booleans(),
    kinds=st.sampled_from(["A", "B", "AB"]),
    adamw=st.booleans(),
    secure=st.booleans(),
)
PI = PROFILES["pi5"]


@given(setup=SETUPS, r=st.integers(1, 64), more=st.integers(1, 64))
def test_more_of_anything_never_costs_less(setup: Setup, r: int, more: int) -> None:
    spec = spec_of(DEMO.linears, r)
    small = round_cost(DEMO, spec, setup, PI)
    thick = round_cost(DEMO, with_rank(spec, r + more), setup, PI)
    assert thick.memory.total > small.memory.total
    assert thick.seconds > small.seconds
    assert thick.bytes_up - small.bytes_up == 4 * (
        with_rank(spec, r + more).size(setup.kinds) - spec.size(setup.kinds)
    )
    for key in ("max_length", "batch_size", "local_steps"):
        larger = replace(setup, **{key: getattr(setup, key) + more})
        cost = round_cost(DEMO, spec, larger, PI)
        assert cost.memory.total >= small.memory.total
        assert cost.seconds > small.seconds
        assert cost.joules > small.joules
    wide = replace(setup, physical_batch=setup.physical_batch + more)
    cost = round_cost(DEMO, spec, wide, PI)
    assert cost.memory.total >= small.memory.total
    assert cost.seconds <= small.seconds


@given(setup=SETUPS)
def test_a_cache_costs_memory_and_saves_time(setup: Setup) -> None:
    spec = spec_of(DEMO.linears, 4)
    kept = round_cost(DEMO, spec, replace(setup, cache=True), PI)
    again = round_cost(DEMO, spec, replace(setup, cache=False), PI)
    assert kept.seconds <= again.seconds
    if setup.quantization != "none":
        width = 2 if setup.half else 4
        assert kept.memory.cache == width * DEMO.linear_weights > again.memory.cache == 0


@given(
    r=st.integers(1, 16),
    kinds=st.sampled_from(["B", "AB"]),
    stage=st.sampled_from(["plain", "clipped", "noised"]),
)
def test_bytes_are_those_of_the_encoded_messages(r: int, kinds: str, stage: str) -> None:
    spec = spec_of(DEMO.linears[:7], r)
    vector = np.zeros(spec.size(kinds), dtype=np.float32)
    setup = Setup(
        max_length=8, batch_size=1, physical_batch=1, local_steps=1, kinds=kinds, stage=stage
    )
    update = ClientUpdate(
        server_round=3,
        config_digest="a" * 64,
        stage=stage,  # type: ignore[arg-type]
        vector=vector,
    )
    order = Instruction(
        run_id="r" * 32, server_round=3, config_digest="a" * 64, plan_digest="b" * 64, vector=vector
    )
    assert bytes_up(spec, setup) == payload_bytes(encode_update(update))
    assert bytes_down(spec, setup) == payload_bytes(encode_instruction(order))


def test_secure_aggregation_costs_bytes() -> None:
    spec = spec_of(DEMO.linears, 4)
    clear = Setup(max_length=8, batch_size=1, physical_batch=1, local_steps=1)
    assert bytes_up(spec, replace(clear, secure=True)) > bytes_up(spec, clear)


def test_storage_per_weight_is_what_the_formats_take() -> None:
    weights = GEMMA_270M.linear_weights
    rest = 4 * GEMMA_270M.other_parameters
    per = {q: (stored_bytes(GEMMA_270M, q) - rest) / weights for q in QUANTIZATIONS}
    assert per["none"] == 4.0
    assert per["int8"] == pytest.approx(1.0, abs=0.01)
    assert per["int4"] == 18 / 32
    # Half a byte, a byte for 64 weights, and a float for 256 of those.
    assert per["nf4"] == pytest.approx(0.5 + 1 / 64 + 4 / (64 * 256), abs=1e-4)


def test_one_example_at_a_time_takes_the_memory_of_one() -> None:
    spec = spec_of(DEMO.linears, 4)
    setup = Setup(
        max_length=64,
        batch_size=16,
        physical_batch=16,
        local_steps=1,
        private=True,
        clipper="fused",
    )
    one = memory_of(DEMO, spec, replace(setup, clipper="microbatch"))
    all_of_them = memory_of(DEMO, spec, setup)
    assert all_of_them.activations == 16 * one.activations
    assert step_macs(DEMO, spec, replace(setup, clipper="microbatch")) > step_macs(
        DEMO, spec, setup
    )


@pytest.mark.parametrize("up", ["fp16", "int8", "int4", "topk"])
def test_coded_updates_take_the_bytes_of_the_encoded_messages(up: str) -> None:
    spec = spec_of(DEMO.linears[:7], 3)
    vector = np.linspace(-1, 1, spec.size("B"), dtype=np.float32)
    section = LinkSection.model_validate({"up": up, "block": 32})
    setup = Setup(max_length=8, batch_size=1, physical_batch=1, local_steps=1, link=section)
    link = uplink(section)
    assert link is not None
    coded = link.encode(vector, None if up == "fp16" else lambda n: np.full(n, 0.5))
    update = ClientUpdate(
        server_round=3, config_digest="a" * 64, stage="plain", vector=vector, coded=coded
    )
    assert bytes_up(spec, setup) == payload_bytes(encode_update(update))
    assert bytes_up(spec, setup) < bytes_up(spec, replace(setup, link=LinkSection()))


@pytest.mark.parametrize("down", ["fp16", "delta"])
def test_coded_adapters_take_the_bytes_of_the_encoded_messages(down: str) -> None:
    spec = spec_of(DEMO.linears[:7], 3)
    vector = np.linspace(-1, 1, spec.size("B"), dtype=np.float32)
    section = LinkSection.model_validate({"down": down})
    setup = Setup(max_length=8, batch_size=1, physical_batch=1, local_steps=1, link=section)
    order = Instruction(
        run_id="r" * 32,
        server_round=3,
        config_digest="a" * 64,
        plan_digest="b" * 64,
        vector=vector,
        coded=Downlink(section, np.zeros_like(vector)).encode(vector),
    )
    assert bytes_down(spec, setup) == payload_bytes(encode_instruction(order))


def test_a_prompts_vectors_are_places_of_every_text_and_all_that_is_sent() -> None:
    def prompt(tokens: int) -> AdapterSpec:
        factor = Factor(name=PROMPT_TENSOR, kind="B", shape=(tokens, DEMO.hidden))
        return AdapterSpec(
            factors=(factor,), r=1, lora_alpha=1.0, target_modules=(), method=Method(name="prompt")
        )

    short = Setup(max_length=56, batch_size=4, physical_batch=4, local_steps=1)
    longer = replace(short, max_length=60)
    assert step_macs(DEMO, prompt(8), short) == step_macs(DEMO, prompt(4), longer)
    apart = [memory_of(DEMO, prompt(8), short), memory_of(DEMO, prompt(4), longer)]
    assert apart[0].activations == apart[1].activations
    sent = [bytes_up(prompt(tokens), short) for tokens in (4, 8)]
    assert sent[1] - sent[0] == 4 * 4 * DEMO.hidden
