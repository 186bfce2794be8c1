"""What a round costs a device, in closed form: memory, seconds, bytes and energy.

Everything is computed from public things: the scenario, the shape of the base and the device's
profile. No text, no count of a client's records and no measurement on them is read, so that a
setting that was chosen by these numbers tells nothing about anybody's data.

Work is counted in multiply-adds. A step goes forwards through the frozen base and backwards by its
input alone, each of them one product a weight and token; the adapter adds thin products. Beside
them, three costs were measured on the embedded demo model (``fedslm plan --measure``, one core)
and are stated in multiply-adds, so that they scale with the device: what a pass over a block costs
however short it is, and what a weight costs that is dequantised for one product.

The tests hold the estimate of a real step's memory and the ratio of its times at two lengths and
two batches within a factor of 2 of what is measured. Products in bfloat16 are counted as products:
how much faster they are is the processor's, and some have no instructions for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from shared.baseshape import FLOAT, BaseShape, stored_bytes
from shared.computedtype import default_compute_dtype
from shared.configlink import LinkSection
from shared.devices import DeviceProfile, speed_of
from shared.link import uplink
from shared.lora import AdapterSpec

Clipper = Literal["fused", "microbatch", "opacus"]

RUNTIME_BYTES = 467 << 20
"""Python with torch, transformers, PEFT and Flower, measured on x86 before any model is loaded."""

_WORKSPACE = 1 << 19
_DOUBLE = 8
_HALF = 2
_PASS = 8_000_000  # multiply-adds' worth of calls, a block and pass
_DEQUANTIZE = MappingProxyType({"none": 0, "int8": 16, "torchao-int8": 16, "int4": 36, "nf4": 48})
_HEADER_UP = 252  # names and scalars of shared.wire's update, beside its stage's name
_HEADER_DOWN = 334  # of its instruction, beside the run's id
_RUN_ID = 32
_CODED = 5  # the key of the code's name
_SECURE_PHASES = 4096  # keys, shares and signatures of a secure aggregation


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a device trains.

    Attributes:
        max_length: tokens of an example, the most there are.
        batch_size: examples of a step; expected, where they are drawn by coins.
        physical_batch: examples that go through the model at once.
        local_steps: optimiser steps of a round.
        clipper: engine of per-example gradients, where steps are private.
        quantization: how the base is stored.
        compute_dtype: of products with it; None for what the storage has by default.
        cache: whether the dequantised base is kept beside it.
        private: whether gradients are clipped example by example.
        kinds: factors that a round trains and sends up, ``"A"``, ``"B"`` or ``"AB"``.
        kinds_down: factors that are sent down; empty for the same.
        stage: what an update is called on the wire.
        adamw: whether the optimiser keeps two moments.
        secure: whether updates are summed under secure aggregation.
        link: how updates and adapters are coded; None for four bytes a number.
    """

    max_length: int
    batch_size: int
    physical_batch: int
    local_steps: int
    clipper: Clipper = "fused"
    quantization: str = "none"
    compute_dtype: str | None = None
    cache: bool = True
    private: bool = False
    kinds: str = "B"
    kinds_down: str = ""
    stage: str = "plain"
    adamw: bool = False
    secure: bool = False
    link: LinkSection | None = None

    @property
    def half(self) -> bool:
        """Whether products with the frozen base are taken in bfloat16."""
        said = self.compute_dtype or default_compute_dtype(self.quantization)
        return self.quantization != "none" and said == "bfloat16"

    @property
    def one_by_one(self) -> bool:
        """Whether examples go through the model alone."""
        return self.private and (self.clipper == "microbatch" or self.half)

    @property
    def at_once(self) -> int:
        """Examples whose activations are held at once, at most.

        A Poisson sample may be larger than expected, so that only the physical batch bounds it.
        """
        if self.private:
            return 1 if self.one_by_one else self.physical_batch
        return min(self.physical_batch, self.batch_size)

    @property
    def passes(self) -> int:
        """How often a step goes through the model."""
        if self.one_by_one:
            return self.batch_size
        return math.ceil(self.batch_size / self.physical_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that a device needs.

    Attributes:
        runtime: of the process before a model is loaded.
        base: of the frozen base as it is stored.
        cache: of its dequantised copy.
        activations: kept for the way back, logits included.
        adapter: factors, gradients, gradients of each example, moments.
        workspace: what a product needs for its own time.
    """

    runtime: int
    base: int
    cache: int
    activations: int
    adapter: int
    workspace: int

    @property
    def step(self) -> int:
        """What a step takes above the loaded base and its adapter."""
        return self.activations + self.adapter + self.workspace

    @property
    def total(self) -> int:
        """All of it."""
        return self.runtime + self.base + self.cache + self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCost:
    """What one round costs one device that takes part in it.

    Attributes:
        memory: the most that is needed at once.
        step_macs: multiply-adds of a step.
        step_seconds: of a step.
        transfer_seconds: of both messages.
        bytes_up: payload of the update.
        bytes_down: payload of the instruction.
        joules: above what the device draws anyway.
    """

    memory: Memory
    step_macs: int
    step_seconds: float
    compute_seconds: float
    transfer_seconds: float
    bytes_up: int
    bytes_down: int
    joules: float

    @property
    def seconds(self) -> float:
        """Of the whole round, loading the base left out: a node keeps it warm."""
        return self.compute_seconds + self.transfer_seconds


def round_cost(
    shape: BaseShape, spec: AdapterSpec, setup: Setup, profile: DeviceProfile
) -> RoundCost:
    """Estimate what a round costs a device.

    Args:
        shape: of the base.
        spec: of the adapter.
        setup: how the device trains.
        profile: of the device.
    """
    macs = step_macs(shape, spec, setup)
    seconds = macs / speed_of(profile)
    up, down = bytes_up(spec, setup), bytes_down(spec, setup)
    compute = setup.local_steps * seconds
    return RoundCost(
        memory=memory_of(shape, spec, setup),
        step_macs=macs,
        step_seconds=seconds,
        compute_seconds=compute,
        transfer_seconds=up / profile.up_bytes_per_second + down / profile.down_bytes_per_second,
        bytes_up=up,
        bytes_down=down,
        joules=compute * profile.watts + (up + down) * profile.joules_per_byte,
    )


def memory_of(shape: BaseShape, spec: AdapterSpec, setup: Setup) -> Memory:
    """Estimate the bytes that training needs at its peak."""
    quantized = setup.quantization != "none"
    held = _HALF if setup.half else FLOAT
    cache = held * shape.linear_weights if quantized and setup.cache else 0
    # W + s B A lives for one product, and so does a weight that is dequantised for it.
    copies = 1 if not quantized or setup.cache else 2
    places = setup.max_length + spec.prepended
    return Memory(
        runtime=RUNTIME_BYTES,
        base=stored_bytes(shape, setup.quantization),
        cache=cache,
        activations=setup.at_once * places * _token_bytes(shape, spec, setup.kinds),
        adapter=_adapter_bytes(spec, setup),
        workspace=_WORKSPACE + copies * FLOAT * shape.largest_linear,
    )


def step_macs(shape: BaseShape, spec: AdapterSpec, setup: Setup) -> int:
    """Count the multiply-adds of an optimiser step, empty samples left out.

    Returns:
        Two passes through every linear layer, the output embedding and the attention; the thin
        products of the adapter; calls; and what dequantising the base for each pass is worth.
    """
    places = setup.max_length + spec.prepended
    tokens = setup.batch_size * places
    # Scores and their use, of which a causal model needs half.
    attention = shape.layers * places * shape.attention
    once = shape.linear_weights + shape.hidden * shape.vocabulary + attention
    # A prompt is no product; rescaling costs one for each of IA3's numbers.
    thin = 0 if spec.prepended else spec.size("AB")
    of_factors = 0 if spec.prepended else thin + spec.size(setup.kinds)
    per_token = 2 * once + thin + of_factors
    dequantized = 0 if setup.cache else _DEQUANTIZE[setup.quantization]
    per_pass = 2 * dequantized * shape.linear_weights + _PASS * shape.layers
    return tokens * per_token + setup.passes * per_pass


def bytes_up(spec: AdapterSpec, setup: Setup) -> int:
    """Return the payload of an update as :func:`shared.wire.payload_bytes` counts it.

    Exact for an update in the clear that is not packed, and the most that a packed one takes; under
    secure aggregation the sums of the phases are rounded up to what a cohort of some tens needs.
    """
    phases = _SECURE_PHASES if setup.secure else 0
    numbers = _coded_bytes(spec.size(setup.kinds), setup.link)
    return numbers + _HEADER_UP + len(setup.stage) + phases


def bytes_down(spec: AdapterSpec, setup: Setup) -> int:
    """Return the payload of an instruction, without a moving clip or a signed ledger head."""
    phases = _SECURE_PHASES if setup.secure else 0
    link = setup.link
    if link is not None:
        # The change since the start is coded as an update in int8 is.
        same = "int8" if link.down == "delta" else link.down
        link = LinkSection(up=same, block=link.block, entropy=link.entropy)
    name = len("delta") - len("int8") if setup.link and setup.link.down == "delta" else 0
    numbers = _coded_bytes(spec.size(setup.kinds_down or setup.kinds), link)
    return numbers + name + _HEADER_DOWN + _RUN_ID + phases


def _coded_bytes(size: int, link: LinkSection | None) -> int:
    """Return the bytes of a vector on the way, with the name of its code."""
    code = None if link is None else uplink(link)
    if code is None:
        return FLOAT * size
    packed = 1 if code.entropy else 0
    return code.code.length(size) + packed + len(code.name) + _CODED


def _token_bytes(shape: BaseShape, spec: AdapterSpec, kinds: str) -> int:
    """Return the bytes that a token leaves behind for the way back.

    A block keeps the inputs of its two norms, queries, keys, values and what attention made of
    them, and three tensors of its feed-forward network; a B that trains asks for its layer's
    ``A x``; an A that trains for its layer's input, of which two more are as wide as the model and
    one as the inside. Logits are kept once, and their gradient is written over them.
    """
    block = 2 * shape.hidden + 2 * (shape.attention + shape.key_value) + 3 * shape.inner
    if "A" in kinds:
        block += 2 * shape.hidden + shape.inner
    thin = len(spec.of_kind("B")) * spec.r if "B" in kinds else 0
    if spec.method is not None:
        # IA3 keeps what it rescales; a prompt keeps nothing.
        thin = 0 if spec.prepended else spec.size("B")
    ends = 3 * shape.hidden + shape.vocabulary
    return FLOAT * (shape.layers * block + thin + ends)


def _adapter_bytes(spec: AdapterSpec, setup: Setup) -> int:
    """Return the bytes of factors, summed gradients, moments and gradients by example."""
    trained = spec.size(setup.kinds)
    held = FLOAT * spec.size("AB") + FLOAT * trained * (2 if setup.adamw else 0)
    sums = 2 * _DOUBLE * trained
    return held + sums + (setup.at_once * FLOAT * trained if setup.private else 0)
