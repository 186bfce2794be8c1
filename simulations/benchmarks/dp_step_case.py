"""One point of the grid of ``dp-step`` in a process of its own: a case in, what was found out.

``python -m simulations.benchmarks.dp_step_case memory|time JSON`` prints JSON. One thread. For
*memory* every engine takes one step in a fork of the process that has the model ready, so that all
start from the same memory: the fork says what the step took and how far its result is from the
truth. For *time*, in another process, engines take turns, forwards and backwards through their
list, on the processor's clock. An engine is attached to the model and warmed up on one example
outside every measurement.

The two are apart because of the allocator. Memory is measured with every larger block in pages of
its own from the start of the process, or the peak would depend on the holes that loading the model
left (a quantised base leaves many); time is measured with the allocator as everybody has it.

The truth is PEFT's own forward in float64 on the stored weights, one example at a time; where a
llama computes in float32 whatever it is stored in (its norms and its loss), so does the truth.

Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from shared.errors import FedSLMError, MissingDependency
from simulations.benchmarks.dp_step_peers import NON_PRIVATE, STEPS, plain_losses

if TYPE_CHECKING:
    import torch

    from client.adapter import AdaptedModel
    from client.losses import Batch
    from client.model import BaseModel

Found = dict[str, dict[str, Any]]

RANK = 8
ALPHA = 16.0
_SEED = 7
# B starts at zero, where A would get no gradient.
_SIZE_OF_B = 0.02
_QUANTIZATIONS = {"fp32": "none", "bf16": "none", "int8": "int8", "nf4": "nf4"}
# Of <malloc.h>. A fixed threshold gives every larger block pages of its own, which go when it is
# freed, and of which no hole is left that a later block might or might not fit into.
_M_MMAP_THRESHOLD = -3
_MAPPED_BYTES = 1 << 16
# What an engine may fail with on a model that it does not support.
_FAILURES = (
    ArithmeticError,
    AttributeError,
    FedSLMError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One point of the grid.

    Attributes:
        folder: of the base model.
        base: how its weights are held: ``"fp32"``, ``"bf16"``, ``"int8"`` or ``"nf4"``.
        sequence: tokens of each example; none is padded.
        batch: number of examples.
        engines: names in :data:`simulations.benchmarks.dp_step_peers.STEPS`.
        repetitions: timed steps of each engine.
    """

    folder: str
    base: str
    sequence: int
    batch: int
    engines: tuple[str, ...]
    repetitions: int

    def to_json(self) -> str:
        """Return the form that :meth:`from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "engines": tuple(fields["engines"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What every engine computes.

    Attributes:
        model: with its adapter.
        batch: the examples.
        bound: the clip, the median norm of the true gradients: some are clipped and some are not.
        truth: the true clipped sum, flat, float64.
        half: whether products run in bfloat16.
    """

    model: AdaptedModel
    batch: Batch
    bound: float
    truth: torch.Tensor
    half: bool

    @contextmanager
    def attached(self, engine: str) -> Iterator[Callable[[Batch], list[torch.Tensor]]]:
        """Attach an engine inside the ``with`` block; call what is yielded to take a step."""
        import torch

        half = torch.autocast("cpu", dtype=torch.bfloat16) if self.half else nullcontext()
        with self.model.training(), half, STEPS[engine](self.model) as step:
            gc.collect()
            yield lambda batch: step.clipped_sum(batch, self.bound)


def measure_memory(case: Case) -> Found:
    """Measure what each engine's step takes, and how exact it is.

    Returns:
        For each engine ``status`` (``"measured"``, ``"not installed"``, or the name of the error
        that it ended with), and where it was measured ``peak_bytes`` above the memory before the
        step, and ``error`` (the distance from the truth over its length; None for the non-private
        step, which computes something else).
    """
    _give_blocks_pages_of_their_own()
    return _with_task(case, lambda task: _probes(task, case.engines))


def measure_time(case: Case) -> Found:
    """Measure how long each engine's step takes.

    Returns:
        For each engine ``status`` as :func:`measure_memory` has it, and where it was measured
        ``seconds``, one for each repetition.
    """
    return _with_task(case, lambda task: _times(task, case.engines, case.repetitions))


def _with_task(case: Case, work: Callable[[_Task], Found]) -> Found:
    """Load the model and work with it, or say of every engine why that cannot be."""
    import torch

    torch.set_num_threads(1)
    if case.base == "bf16" and not has_bfloat16():
        return {engine: {"status": "no bf16 here"} for engine in case.engines}
    try:
        task = _task(case)
    except MissingDependency:
        return {engine: {"status": "not installed"} for engine in case.engines}
    # What was loaded stays; later collections need not look at it.
    gc.collect()
    gc.freeze()
    return work(task)


def has_bfloat16() -> bool:
    """Tell whether this processor multiplies in bfloat16, as torch sees it."""
    import torch

    # Torch 2.9 and 2.10 do not say.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _task(case: Case) -> _Task:
    """Load the model, draw the examples and compute the truth."""
    import numpy as np
    import torch

    from client.adapter import adapt
    from client.losses import Batch
    from client.model import load_base
    from shared.lora import initial_factors

    base = load_base(case.folder, quantization=_QUANTIZATIONS[case.base])
    if case.base == "bf16":
        for parameter in base.model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    twin = _twin(case.folder, base)
    rng = np.random.default_rng(_SEED)
    ids = torch.from_numpy(
        rng.integers(0, base.model.config.vocab_size, (case.batch, case.sequence))
    )
    batch = Batch(ids=ids, labels=ids, attention_mask=torch.ones_like(ids))
    model = adapt(base, r=RANK, alpha=ALPHA, target_modules="all-linear")
    model.load(initial_factors(model.spec, _SEED))
    drawn = rng.standard_normal(model.spec.size("B"), dtype=np.float32)
    model.load_vector(_SIZE_OF_B * drawn, "B")
    gradients = _gradients(twin, model, batch)
    norms = gradients.norm(dim=1)
    bound = float(norms.median())
    return _Task(
        model=model,
        batch=batch,
        bound=bound,
        truth=(bound / norms).clamp(max=1.0) @ gradients,
        half=case.base == "bf16",
    )


def _twin(folder: str, base: BaseModel) -> BaseModel:
    """Return the same base with the weights that it stands for written out in float64."""
    from client.model import load_base
    from client.quantization import linear_modules, stored_weight

    plain = load_base(folder)
    own: Any
    if base.quantization == "none":
        for name, own in plain.model.named_parameters():
            own.data.copy_(base.model.get_parameter(name))
    else:
        stored = dict(linear_modules(base.model))
        for name, own in linear_modules(plain.model):
            own.weight.data.copy_(stored_weight(stored[name])[0])
    plain.model.double()
    return plain


def _gradients(base: BaseModel, like: AdaptedModel, batch: Batch) -> torch.Tensor:
    """Return each example's gradient, float64, ``(B, values)``, in canonical order.

    Args:
        base: in float64, without an adapter.
        like: says which adapter.
        batch: the examples, which are taken one at a time.
    """
    import torch

    from client.adapter import adapt

    spec = like.spec
    model = adapt(base, r=spec.r, alpha=spec.lora_alpha, target_modules=spec.target_modules)
    model.load(like.factors())
    model.peft_model.double()
    parameters = [parameter for _, parameter in model.trainable]
    rows = []
    with model.plain_peft():
        for index in range(batch.ids.shape[0]):
            loss = plain_losses(model.peft_model, batch.row(index)).sum()
            found = torch.autograd.grad(loss, parameters)
            rows.append(torch.cat([gradient.reshape(-1) for gradient in found]))
    return torch.stack(rows)


def _probes(task: _Task, engines: Sequence[str]) -> Found:
    """Let each engine take one step in a fork of its own."""
    return {engine: _in_fork(partial(_probe, task, engine)) for engine in engines}


def _probe(task: _Task, engine: str) -> dict[str, Any]:
    """Take one step and return what it took and how far it is from the truth."""
    import torch

    with task.attached(engine) as step:
        step(task.batch.row(0))
        before = _forget_peak()
        found = step(task.batch)
        peak = _status("VmHWM") - before
        flat = torch.cat([tensor.reshape(-1).double() for tensor in found])
    error = float((flat - task.truth).norm() / task.truth.norm())
    return {
        "status": "measured",
        "peak_bytes": peak,
        "error": None if engine == NON_PRIVATE else error,
    }


def _times(task: _Task, engines: Sequence[str], repetitions: int) -> Found:
    """Let the engines that work take turns and return each one's seconds, one for each turn."""
    found = {engine: _outcome(partial(_warm_up, task, engine)) for engine in engines}
    working = [engine for engine, said in found.items() if said["status"] == "measured"]
    spent: dict[str, list[float]] = {engine: [] for engine in working}
    for turn in range(repetitions):
        for engine in working if turn % 2 == 0 else reversed(working):
            with task.attached(engine) as step:
                begun = time.process_time()
                taken = step(task.batch)
                spent[engine].append(time.process_time() - begun)
                del taken
    return {**found, **{engine: {**found[engine], "seconds": spent[engine]} for engine in working}}


def _warm_up(task: _Task, engine: str) -> dict[str, Any]:
    """Take a step with one example, and one with all where that may fail otherwise."""
    with task.attached(engine) as step:
        step(task.batch.row(0))
        step(task.batch)
    return {"status": "measured"}


def _in_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do work in a copy of this process and return what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            os.write(writing, json.dumps(_outcome(work)).encode())
        finally:
            # Whatever happens, there is no way back into the code that called.
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as stream:
        said = stream.read()
    os.waitpid(child, 0)
    answer: dict[str, Any] = json.loads(said) if said else {"status": "killed"}
    return answer


def _outcome(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what work says, or what it ended with."""
    try:
        return work()
    except MissingDependency:
        return {"status": "not installed"}
    except _FAILURES as error:
        return {"status": type(error).__name__}


def _forget_peak() -> int:
    """Give unused memory back, let the kernel count the peak anew, and return what is resident."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _give_blocks_pages_of_their_own() -> None:
    """Keep the allocator from using the holes that earlier work left; see the module."""
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def _status(name: str) -> int:
    """Return one size of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Measure the case that is the program's argument and print what was found."""
    measure = {"memory": measure_memory, "time": measure_time}[sys.argv[1]]
    found = measure(Case.from_json(sys.argv[2]))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
