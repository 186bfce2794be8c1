"""Latency, memory and energy of answers, measured in a process of their own.

``python -m simulations.evaluating.speed ORDER`` reads a JSON file and prints one JSON object. All
that loading imports is imported before memory is looked at, so that the figures are the model's
and not the libraries'.
"""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import ModelError

if TYPE_CHECKING:
    from simulations.evaluating.subject import Named

PROMPT = "The turtle is an animal that lives in warm seas and ponds. It carries a hard shell and"
TOKENS = 32
ANSWERS = 5
_TIMEOUT = 3600


def measure_speed(
    named: Named, *, with_adapter: bool, watts: float | None, seconds: float = 2.0
) -> dict[str, Any]:
    """Return latency, memory and energy of a model that answers one fixed public prompt.

    Args:
        named: which model.
        with_adapter: with its adapter, or the base alone.
        watts: power of a busy core, for an estimate of energy where nothing measures it.
        seconds: how long it answers at least while energy is measured.

    Returns:
        ``first_token_seconds`` and ``tokens_per_second``, the best of some answers, with the
        prompt's and the answers' numbers of tokens; ``load_peak_bytes`` and ``peak_bytes``, how far
        memory rises over what the libraries take until the model is loaded and until it has
        answered, None where the system does not tell; ``energy`` with its method, and
        ``joules_per_token``.

    Raises:
        ModelError: if it cannot be done in a process of its own.
    """
    with tempfile.TemporaryDirectory(prefix="fedslm-eval-") as room:
        order: dict[str, Any] = {
            "base": named.base,
            "quantization": named.quantization,
            "compute_dtype": named.compute_dtype,
            "watts": watts,
            "seconds": seconds,
            "adapter": None,
        }
        if with_adapter and named.source is not None:
            from safetensors.numpy import save_file

            save_file(dict(named.source.factors), Path(room) / "factors.safetensors")
            terms = named.source.terms
            order["adapter"] = {
                "r": terms.r,
                "alpha": terms.lora_alpha,
                "target_modules": list(terms.target_modules),
                "rslora": terms.rslora,
                "method": terms.method,
                "prompt_tokens": terms.prompt_tokens or 1,
            }
        path = Path(room) / "order.json"
        path.write_text(json.dumps(order), encoding="utf-8")
        return _in_a_process(path)


def _in_a_process(order: Path) -> dict[str, Any]:
    """Run this module on an order."""
    command = [sys.executable, "-m", "simulations.evaluating.speed", str(order)]
    done = subprocess.run(  # noqa: S603  (our own module, with paths that we made)
        command, capture_output=True, text=True, check=False, timeout=_TIMEOUT
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].split(":")[0]
        msg = f"Measuring speed failed ({last})."
        raise ModelError(msg, hint="Leave speed out of --tasks.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    import torch

    from client.answering.withtorch import TorchEngine
    from client.generation import Generator
    from client.latency import peak_rss_bytes
    from client.model import load_base
    from simulations.compress.probe import forget_peak, status, touch, warm_up

    path = Path(arguments[0])
    order = json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    # What carries an adapter is a library too, and is in memory before anything is measured.
    importlib.import_module("client.adapter")
    importlib.import_module("peft.tuners.lora")
    warm_up(order["base"])
    gc.collect()
    counted = forget_peak()
    before = status("VmRSS")
    base = load_base(
        order["base"], quantization=order["quantization"], compute_dtype=order["compute_dtype"]
    )
    model: Any = base.model
    if order["adapter"] is not None:
        model = _adapted(base, order["adapter"], path.with_name("factors.safetensors"))
    touch(model)
    loaded = status("VmHWM")
    found = _answers(Generator(engine=TorchEngine(model, base.tokenizer)), order)
    peaks = {
        "load_peak_bytes": max(0, loaded - before) if counted else None,
        "peak_bytes": max(0, status("VmHWM") - before) if counted else None,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    sys.stdout.write(json.dumps({**found, **peaks}) + "\n")


def _adapted(base: Any, terms: dict[str, Any], factors: Path) -> Any:  # noqa: ANN401
    """Return the base with its adapter."""
    from safetensors.numpy import load_file

    from client.adapter import adapt

    model = adapt(base, **terms)
    model.load(load_file(factors))
    return model.peft_model


def _answers(generator: Any, order: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Answer some times for the best latency, then for a while for the energy."""
    import time

    from shared.energy import EnergyMeter

    def ask() -> Any:  # noqa: ANN401
        return generator.answer(PROMPT, max_tokens=TOKENS, temperature=0.0, top_k=1, seed=0)

    ask()
    answers = [ask() for _ in range(ANSWERS)]
    latencies = [one.latency for one in answers]
    firsts = [one.first_token_seconds for one in latencies if one.first_token_seconds is not None]
    rates = [one.tokens_per_second for one in latencies if one.tokens_per_second is not None]
    meter, tokens = EnergyMeter(watts=order["watts"]), 0
    if meter.start() != "none":
        end = time.monotonic() + order["seconds"]
        while time.monotonic() < end or tokens == 0:
            tokens += max(1, ask().tokens)
            meter.sample()
    energy = meter.stop()
    return {
        "first_token_seconds": min(firsts, default=None),
        "tokens_per_second": max(rates, default=None),
        "prompt_tokens": answers[0].prompt_tokens,
        "tokens": answers[0].tokens,
        "answers": ANSWERS,
        "energy": asdict(energy),
        "joules_per_token": None if energy.joules is None else energy.joules / tokens,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
