"""Flower's engine (Ray) against the one in this process: the same numbers, whatever is combined.

A run on Ray costs ten seconds before its first round, so each of these has many features at once.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from client.ownfactors import FOLDER
from simulations.compress.protocol import Settings
from simulations.compress.running import Order, compress
from simulations.compress.text import generated_text
from simulations.pretrain import DEMO_FOLDER
from simulations.progress import PlainProgress
from simulations.simulate import Result, simulate
from tests.encoders import save_corpus, save_encoder
from tests.integration.test_combinations import adapter, lines, scenario

ray = pytest.importorskip("ray", reason="engine flower needs the extra fedslm[ray]")

# Ray's own: it opens /dev/null for each process of a cluster, and leaves closing it to chance.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(420),
    pytest.mark.filterwarnings(
        "ignore:unclosed file <_io:ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
    ),
]

ALONE = "performance.cohort_batch=1"
TOPK = ("link.up=topk", "link.keep=0.1", "link.down=delta", "link.entropy=true")
KRUM = ("aggregation.robust=multi-krum", "aggregation.attackers=1", "clients.cohort=6.0")
FITTED = ("model.base=gptq", "model.quantization=int4")
HOLDERS = ("link.down=delta", "aggregation.columns=holders")
LEAVING = ("clock.available_share=0.7", "clock.period_seconds=600.0", "clock.dropout=0.1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, labelled texts, and the demo model fitted to 4 bits."""
    root = tmp_path_factory.mktemp("home")
    save_encoder(root / "encoder")
    save_corpus(root / "intents.csv")
    settings = Settings(rows=8, length=64)
    text = generated_text(3)
    compress(Order(base=str(DEMO_FOLDER), methods=["gptq"], text=text, settings=settings, out=root))
    return root


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray node with one core, which therefore has one actor."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False}
    running: Any = Cluster(initialize_head=True, head_node_args=node)
    yield running.address
    running.shutdown()
    del running
    gc.collect()


def both(home: Path, folder: Path, mode: str, features: str, *more: str) -> tuple[Result, Result]:
    """Run a scenario here and on Ray."""
    found = []
    for engine in ("inprocess", "flower"):
        resolved = scenario(mode, features.split(), ALONE, *more, f"run.engine={engine}")
        progress = PlainProgress(resolved.config.run.rounds, Console(quiet=True))
        out = folder / engine
        found.append(simulate(resolved, folder=out, resume=False, progress=progress, base_dir=home))
    return found[0], found[1]


def assert_alike(here: Result, there: Result, apart: float = 1e-4) -> None:
    """Require one adapter, up to rounding, and the same account of every round."""
    a, b = adapter(here), adapter(there)
    assert set(a) == set(b)
    length = np.sqrt(sum(float(np.square(v).sum()) for v in a.values()))
    assert np.sqrt(sum(float(np.square(a[n] - b[n]).sum()) for n in a)) <= apart * length
    assert here.summary["loss_after"] != here.summary["loss_before"]
    assert len(lines(here)) == here.summary["rounds"]
    for one, other in zip(lines(here), lines(there), strict=True):
        assert_near(one, other)
    for key in ("privacy", "base_digest", "status", "released_r", "attack", "defence", "personal"):
        assert_near(here.summary.get(key), there.summary.get(key))
    assert here.summary["loss_after"] == pytest.approx(there.summary["loss_after"], abs=1e-3)


def assert_near(one: Any, other: Any, where: str = "") -> None:
    """Require equality, but for the rounding of numbers and what entropy codes make of it."""
    if isinstance(one, dict):
        assert set(one) == set(other), where
        for key, value in one.items():
            assert_near(value, other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, value in enumerate(one):
            assert_near(value, other[index], f"{where}[{index}]")
    elif isinstance(one, float) or "bytes" in where:
        assert one == pytest.approx(other, rel=1e-3, abs=16 if "bytes" in where else 1e-4), where
    else:
        assert one == other, where


def test_on_a_ray_of_its_own_a_robust_mean_of_coded_parts_is_the_same(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What clients keep (their B, what they did not send) goes with them from round to round."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    here, there = both(home, tmp_path, "none", "share schedule", *TOPK, *KRUM)
    assert_alike(here, there)
    kept = sorted(path.name for path in (here.folder / FOLDER).iterdir())
    assert kept == sorted(path.name for path in (there.folder / FOLDER).iterdir())
    for name in kept:
        one, other = (load_file(r.folder / FOLDER / name) for r in (here, there))
        assert set(one) == set(other)
        assert all(np.allclose(one[r], other[r], atol=1e-5) for r in one)
        assert any(value.any() for value in one.values())


@pytest.mark.parametrize(
    ("mode", "features", "more"),
    [
        (
            "client-central",
            "attack link over schedule noise vote personal rolora ranks",
            (*HOLDERS, *FITTED),
        ),
        ("example", "mixture buffer attack link schedule noise public personal devices", LEAVING),
        ("example", "prompt half", FITTED),
        ("none", "fedex attack over personal devices", ("attack.scale=20.0",)),
        ("client-distributed", "classes", ("clients.population=8", "clients.cohort=7.0")),
    ],
    ids=["rolora-ranks-int4", "mixture-buffer", "prompt-int4-half", "fedex", "classes-distributed"],
)
def test_on_a_cluster_all_of_it_is_the_same(
    home: Path,
    tmp_path: Path,
    cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    features: str,
    more: tuple[str, ...],
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    here, there = both(home, tmp_path, mode, features, *more)
    assert_alike(here, there, 1e-3 if "fedex" in features else 1e-4)
    if "prompt" in features:  # in bfloat16, where no client is computed beside another
        assert all(np.array_equal(adapter(there)[n], value) for n, value in adapter(here).items())
    if "mixture" in features:
        said = json.loads((there.folder / "adapter" / "fedslm.json").read_text())
        assert said["mixture"]["adapters"] == 2
        times = [record["simulated_seconds"] for record in lines(there)]
        assert 0 < times[0] <= times[-1]
    if "vote" in features:
        assert lines(there)[1]["vote"] is not None
        assert set(lines(there)[0]["bytes_by_rank"]) == {"1", "2"}
    if mode == "client-distributed":
        assert all(record["aborted"] is None for record in lines(there))
