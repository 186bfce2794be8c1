"""The native client measures the step itself: its gradient is ExecuTorch's in Python."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from client.edge.etengine import ExecutorchStep
from client.examples import Example
from simulations.benchmarks import edge_native
from simulations.benchmarks.edge_case import Case
from tests.client.native.build import binary, exported, run

pytestmark = pytest.mark.slow


class SplitMix:
    """Vigna's splitmix64."""

    def __init__(self, state: int) -> None:
        self._state = state

    def next(self) -> int:
        mask = (1 << 64) - 1
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)


def test_what_it_times_is_the_step() -> None:
    folder, manifest = exported()
    code, told, _ = run("bench", str(folder), "2")
    assert code == 0, told
    found = json.loads(told)
    drawn = SplitMix(7)
    factors = {}
    for factor in manifest.adapter.factors:
        units = [(drawn.next() >> 11) / 2.0**53 for _ in range(math.prod(factor.shape))]
        values = 0.02 * math.sqrt(12.0) * (np.asarray(units) - 0.5)
        factors[factor.name] = values.astype(np.float32).reshape(factor.shape)
    ids = np.array([drawn.next() % manifest.vocabulary for _ in range(manifest.length)])
    truth = ExecutorchStep(folder, manifest).gradient(Example(ids=ids, labels=ids), factors)
    assert found["norm"] == pytest.approx(float(np.linalg.norm(truth)), rel=1e-4)
    assert len(found["seconds"]) == 2
    assert all(seconds > 0 for seconds in found["seconds"])
    assert found["process_bytes"] >= found["resident_bytes"] + found["load_peak_bytes"] > 0


def test_a_point_of_the_benchmark_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = exported()
    monkeypatch.setattr(edge_native, "build", lambda _: binary())
    case = Case(
        runtime="native",
        quantization="fp32",
        what="train",
        base="",
        folder=str(folder),
        vocabulary=9,
        repetitions=1,
    )
    found = edge_native.measured(case)
    assert (found["status"], found["energy"], found["joules"]) == ("measured", "none", None)
    assert found["files_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    libraries = edge_native.libraries(binary())
    assert any(name.startswith("libexecutorch") for name in libraries)
    assert any(name.startswith("libcrypto") for name in libraries)


@pytest.mark.parametrize("rows", ["0", "-1", "many"])
def test_rows_that_are_none_are_refused(rows: str) -> None:
    folder, _ = exported()
    code, told, _ = run("bench", str(folder), rows)
    assert (code, told.split(":")[0]) == (12, "invalid-value")
