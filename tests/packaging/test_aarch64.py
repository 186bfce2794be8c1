"""What ARM boards install: no package of CUDA's can come, and what would is found out."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints"
SCRIPT = runpy.run_path(str(ROOT / "packaging" / "aarch64.py"))
BOARD: dict[str, str] = {
    **{key: str(value) for key, value in default_environment().items()},
    "platform_machine": "aarch64",
    "platform_system": "Linux",
    "sys_platform": "linux",
}
TORCH_FOR_CUDA = """
    cuda-toolkit cuda-bindings nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13
    nvidia-nvshmem-cu13 triton
""".split()
"""What torch 2.13.0's default build for aarch64 requires beside what its CPU build does."""


def pins(name: str) -> dict[str, str]:
    lines = (CONSTRAINTS / name).read_text(encoding="utf-8").splitlines()
    said = [Requirement(line) for line in lines if line and not line.startswith(("#", "-c"))]
    return {one.name.lower(): str(one.specifier) for one in said}


def test_torch_is_the_same_build_as_on_other_machines() -> None:
    text = (CONSTRAINTS / "aarch64.txt").read_text(encoding="utf-8")
    assert "\n-c common.txt\n" in text
    [other] = re.findall(r"^torch(==\S+) ; sys_platform == \"linux\"$", cpu_text(), re.MULTILINE)
    assert pins("aarch64.txt")["torch"] == other
    assert other.endswith("+cpu")


def cpu_text() -> str:
    return (CONSTRAINTS / "cpu.txt").read_text(encoding="utf-8")


def test_no_version_of_a_cuda_package_fits() -> None:
    bolted = {name for name, versions in pins("aarch64.txt").items() if versions == "<0"}
    assert bolted == set(pins("aarch64.txt")) - {"torch"}
    assert bolted >= set(TORCH_FOR_CUDA)
    assert all(SCRIPT["CUDA"].search(name) for name in bolted)
    assert not [name for name in pins("common.txt") if SCRIPT["CUDA"].search(name)]


def closure(extra: str) -> set[str]:
    """Return what an extra brings on a board, by the metadata of what is installed here."""
    found: set[tuple[str, str]] = set()
    todo = [Requirement(line) for line in SCRIPT["requirements"]([extra])]
    while todo:
        one = todo.pop()
        for part in ("", *one.extras):
            key = (one.name.lower().replace("_", "-"), part)
            if (one.marker and not one.marker.evaluate(BOARD)) or key in found:
                continue
            found.add(key)
            for line in importlib.metadata.requires(one.name) or []:
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({**BOARD, "extra": part}):
                    inner.marker = None
                    todo.append(inner)
    return {name for name, _ in found}


@pytest.mark.parametrize(("extra", "torch"), [("edge", False), ("client", True)])
def test_what_an_extra_requires_on_a_board(extra: str, torch: bool) -> None:
    names = closure(extra)
    assert ("torch" in names) is torch
    assert {"flwr", "grpcio", "numpy"} <= names
    assert [name for name in names if SCRIPT["CUDA"].search(name)] == []
    heavy = {"transformers", "peft", "opacus", "bitsandbytes", "torchao", "ray"}
    assert (names & heavy == set()) is not torch


def item(file: str, name: str = "numpy", version: str = "2.0") -> dict[str, Any]:
    return {"metadata": {"name": name, "version": version}, "download_info": {"url": f"x/{file}"}}


@pytest.mark.parametrize(
    ("one", "found"),
    [
        (item("numpy-2.0-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl"), ""),
        (item("rich-1-py3-none-any.whl", "rich"), ""),
        (item("torch-2%2Bcpu-cp311-cp311-manylinux_2_28_aarch64.whl", "torch", "2+cpu"), ""),
        (item("torch-2-cp311-cp311-manylinux_2_28_aarch64.whl", "torch", "2"), "no CPU build"),
        (item("numpy-2.0-cp311-cp311-manylinux_2_27_x86_64.whl"), "another machine"),
        (item("numpy-2.0.tar.gz"), "have to be built"),
        (item("triton-3-cp311-cp311-manylinux_2_27_aarch64.whl", "triton"), "of CUDA"),
        (item("nvidia_nccl_cu13-2-py3-none-any.whl", "nvidia-nccl-cu13"), "of CUDA"),
    ],
)
def test_a_report_is_judged(one: dict[str, Any], found: str) -> None:
    problems = SCRIPT["problems"]({"install": [item("rich-1-py3-none-any.whl", "rich"), one]})
    assert len(problems) == bool(found)
    assert all(found in line for line in problems)


def test_pip_is_told_what_the_board_is(tmp_path: Path) -> None:
    call = SCRIPT["command"](tmp_path, ["numpy"], links=False)
    assert "--dry-run" in call
    assert "--only-binary=:all:" in call
    assert call[call.index("-c", 3) + 1] == str(CONSTRAINTS / "aarch64.txt")
    assert [part for part in call if "--platform" in part and "_aarch64" not in part] == []
    assert 'platform.machine = lambda: "aarch64"' in call[2]


def test_the_stand_in_requires_what_the_cpu_build_does(tmp_path: Path) -> None:
    if not importlib.metadata.version("torch").endswith("+cpu"):
        with pytest.raises(SystemExit):
            SCRIPT["stand_in"](tmp_path)
        return
    SCRIPT["stand_in"](tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name.endswith("_aarch64.whl")
    with zipfile.ZipFile(wheel) as file:
        [name] = [name for name in file.namelist() if name.endswith("METADATA")]
        text = file.read(name).decode()
    needs = re.findall(r"^Requires-Dist: (.+)$", text, re.MULTILINE)
    assert needs == importlib.metadata.requires("torch")
