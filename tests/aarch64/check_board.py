"""The board's own work beside this machine's: programs, gradients, updates, noise, accounts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from client.edge.export import export_step
from client.edge.program import load_step
from simulations.assemble import load_model
from tests.aarch64.board import NATIVE, PROJECT, PYTHON, ROOT, computed, computed_here, on_board
from tests.integration.device import BASE, make_device, make_round
from tests.integration.edgestep import edge_scenario, exported

FEDSLM = "fedslm"
# Relative; of a gradient, to its norm. Sums are in another order, codes and scales are the same.
FARTHEST = 1e-5


def test_the_program_starts_and_looks_at_its_machine() -> None:
    from importlib.metadata import version

    assert version("fedslm") in on_board(FEDSLM, "--version")
    said = {
        words[0]: words[1]
        for words in map(str.split, on_board(FEDSLM, "doctor").splitlines()[1:])
        if len(words) > 1
    }
    assert {said[name] for name in ("python", "requirements", "demo-model", "randomness")} == {"ok"}


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_a_step_gives_what_it_gives_here(quantization: str, tmp_path: Path) -> None:
    config = edge_scenario("example")
    model = load_model(config, base_dir=BASE)
    model.set_trainable("AB")
    step = tmp_path / "step"
    export_step(model, step, length=32, max_grad_norm=None, quantization=quantization)
    manifest = load_step(step)
    rng = np.random.default_rng(3)
    adapter = 0.1 * rng.standard_normal(manifest.adapter.size("AB")).astype(np.float32)
    ids = rng.integers(1, manifest.vocabulary, (4, manifest.length))
    save_file({"ids": ids, "adapter": adapter}, tmp_path / "rows")
    computed("gradients", step, tmp_path / "rows", tmp_path / "there")
    computed_here("gradients", step, tmp_path / "rows", tmp_path / "here")
    there, here = given(tmp_path / "there"), given(tmp_path / "here")
    loss = np.abs(there[:, 0] / here[:, 0] - 1).max()
    norm = np.abs(there[:, 1] / here[:, 1] - 1).max()
    apart = np.linalg.norm(there[:, 2:] - here[:, 2:], axis=1)
    apart = (apart / np.linalg.norm(here[:, 2:], axis=1)).max()
    print(f"{quantization}: loss {loss:.1e}, norm {norm:.1e}, gradient {apart:.1e}")  # noqa: T201
    assert here[:, 1].min() > 0
    assert max(loss, norm, apart) < FARTHEST


def given(path: Path) -> NDArray[np.float64]:
    """Return what a computation wrote."""
    return load_file(path)["given"].astype(np.float64)


def _asked(folder: Path, **privacy: object) -> Path:
    folder.mkdir()
    config = edge_scenario("example", **privacy)
    device = make_device(folder, "example", seeded_noise=bool(privacy))
    asked = make_round(config=config)
    (device.folder / "scenario.json").write_text(asked.scenario, encoding="utf-8")
    (device.folder / "plan.json").write_text(asked.plan, encoding="utf-8")
    return device.folder


def test_its_update_is_that_of_here_for_the_same_noise(tmp_path: Path) -> None:
    folder = _asked(tmp_path / "device", noise_source="seeded-simulation")
    step, _ = exported()
    computed("answer", folder, step, tmp_path / "there")
    computed_here("answer", folder, step, tmp_path / "here")
    there, here = given(tmp_path / "there"), given(tmp_path / "here")
    apart = np.linalg.norm(there - here) / np.linalg.norm(here)
    print(f"update: {apart:.1e}")  # noqa: T201
    assert apart < 1e-5


def test_its_noise_is_the_systems(tmp_path: Path) -> None:
    """Two answers to one question differ by two draws of the noise that the plan names."""
    folder = _asked(tmp_path / "device")
    step, _ = exported()
    for name in ("one", "two"):
        computed("answer", folder, step, tmp_path / name)
    one, two = given(tmp_path / "one"), given(tmp_path / "two")
    # Two steps of rate 0.5 with noise 1 * 0.5 on a sum that is divided by 2.
    expected = 0.5 * 0.5 / 2 * np.sqrt(2)
    assert (one - two).std() / np.sqrt(2) == pytest.approx(expected, rel=0.2)


def test_it_counts_as_here() -> None:
    machine, *there = json.loads(computed("epsilon"))
    _, *here = json.loads(computed_here("epsilon"))
    assert machine == "aarch64"
    print(f"epsilon: {np.abs(np.array(there) / here - 1).max():.1e}")  # noqa: T201
    assert there == pytest.approx(here, rel=1e-9)


def test_the_native_client_holds_the_vectors(tmp_path: Path) -> None:
    vectors = tmp_path / "protocol.json"
    vectors.write_bytes((PROJECT / "client" / "native" / "protocol.json").read_bytes())
    said = on_board(NATIVE, "vectors", vectors)
    print(said)  # noqa: T201
    assert int(said.split()[0]) > 100


def test_what_is_installed_is_trimmed() -> None:
    """On a copy, so that the board stays as pip left it."""
    copy = ROOT / "opt" / "trimmed"
    on_board("sh", "-c", "rm -rf /opt/trimmed && cp -a /opt/fedslm /opt/trimmed")
    trim = ("/opt/trimmed/bin/python", "-m", "simulations.cli", "client", "trim")
    sizes = [_size(copy)]
    print(on_board(*trim, "--dry-run"))  # noqa: T201
    assert _size(copy) == sizes[0]
    print(on_board(*trim))  # noqa: T201
    sizes.append(_size(copy))
    print(f"installed {sizes[0]:.0f} MB, trimmed {sizes[1]:.0f} MB")  # noqa: T201
    assert sizes[1] < min(450.0, sizes[0])
    assert re.match(
        r"[\d.]+",
        on_board("/opt/trimmed/bin/python", "-m", "simulations.cli", "--version").split()[-1],
    )
    assert PYTHON.startswith("/opt/fedslm/")


def _size(folder: Path) -> float:
    from client.trim import disk_size

    return disk_size(folder) / 1e6
