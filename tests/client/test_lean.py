"""Starting a worker with torch: what it loads, and that the libraries say nothing of no use."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.server.fleetkit import ROOT

# One process, because each costs seconds: a float32 base, then what was left out before.
STARTED = textwrap.dedent(
    """
    import logging, sys
    import client.app, client.runtime
    from client.adapter import adapt
    from client.model import load_base

    def adapted(quantization):
        base = load_base("simulations/assets/demo", quantization=quantization)
        return adapt(base, r=2, alpha=4.0, target_modules=["q_proj"])

    adapted("none")
    unwanted = {"bitsandbytes", "torchao", "opacus", "onnx", "onnxruntime", "executorch", "ray"}
    unwanted |= {"lm_eval", "datasets", "pandas", "matplotlib", "torch._inductor.compile_fx"}
    assert not unwanted & {name for name, module in sys.modules.items() if module is not None}
    assert not unwanted & set(sys.modules)

    layers = {type(layer).__module__ for layer in adapted("nf4").peft_model.modules()}
    assert "peft.tuners.lora.bnb" in layers, layers
    import torchao
    """
)


@pytest.mark.slow
def test_a_worker_loads_no_quantiser_that_its_base_does_not_need_and_starts_in_silence() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STARTED],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
    )
    assert ended.returncode == 0, ended.stderr
    said = [line for line in ended.stderr.splitlines() if "torchao" in line or "_pytree" in line]
    assert said == []
