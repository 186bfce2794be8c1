"""Each check of ``fedslm doctor`` on a healthy and on an ailing machine."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from client.machine import available_memory
from simulations import doctor, doctor_machine
from simulations.cli import run
from simulations.doctor_machine import Check

CORE = Requirement("numpy>=2.0")
OPTIONAL = Requirement("torch>=2.9 ; extra == 'client'")
TUNED = Requirement("matplotlib>=3.10 ; extra == 'sim'")


def test_names_are_distinct_and_the_result_is_json(tmp_path: Path) -> None:
    checks = doctor.run_checks(tmp_path)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    shown = json.loads(json.dumps(doctor.to_dict(checks)))
    assert list(shown["checks"]) == names
    assert set(shown["checks"]["python"]) == {"status", "found", "expected", "hint"}
    assert list(tmp_path.iterdir()) == []


def test_this_installation_can_run(tmp_path: Path) -> None:
    if not list(importlib.metadata.Distribution.discover(name="fedslm")):
        pytest.skip("fedslm is only on the path; `make test` installs it")
    failed = [check for check in doctor.run_checks(tmp_path) if check.status == "failed"]
    assert failed == []


def test_whatever_is_not_ok_says_what_to_do(tmp_path: Path) -> None:
    for check in doctor.run_checks(tmp_path):
        assert check.found
        assert check.expected
        assert (check.hint == "") == (check.status == "ok") or check.name == "memory"


def test_only_failures_count() -> None:
    fine, doubtful = Check("a", "ok", "", ""), Check("b", "warning", "", "")
    broken = Check("c", "failed", "", "")
    assert doctor.exit_code([fine, doubtful]) == 0
    assert doctor.exit_code([fine, broken, doubtful]) == 1
    assert doctor.to_dict([fine])["status"] == "ok"
    assert doctor.to_dict([fine, doubtful])["status"] == "warning"
    assert doctor.to_dict([doubtful, broken])["status"] == "failed"


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10, 14), "failed"), ((3, 11, 0), "ok"), ((3, 13, 1), "ok")]
)
def test_python(version: tuple[int, ...], status: str) -> None:
    assert doctor.check_python(version).status == status


@pytest.mark.parametrize(
    ("installed", "status", "word"),
    [
        ({"numpy": "2.4.6"}, "ok", "1 packages"),
        ({"numpy": "1.26.4"}, "failed", "numpy 1.26.4, expected >=2.0"),
        ({}, "failed", "numpy is not installed"),
    ],
)
def test_requirements(installed: dict[str, str], status: str, word: str) -> None:
    check = doctor.check_requirements([CORE, OPTIONAL], installed)
    assert check.status == status
    assert word in check.found


def test_an_installation_without_metadata_is_none() -> None:
    assert doctor.check_requirements([], {"numpy": "2.4.6"}).status == "failed"


def test_extras() -> None:
    complete = {"torch": "2.13.0+cpu", "matplotlib": "3.11.2"}
    assert doctor.check_extras([CORE, OPTIONAL, TUNED], complete).status == "ok"
    lacking = doctor.check_extras([CORE, OPTIONAL, TUNED], {"torch": "2.13.0"})
    assert lacking.status == "warning"
    assert "sim: lacks matplotlib" in lacking.found
    assert "client: complete" in lacking.found
    assert lacking.hint == "pip install 'fedslm[sim]'"


def test_what_an_extra_of_another_distribution_brings_is_looked_for() -> None:
    if not list(importlib.metadata.Distribution.discover(name="fedslm")):
        pytest.skip("fedslm is only on the path; `make test` installs it")
    ray = [r for r in doctor._requirements() if r.name == "ray"]
    assert [str(r.marker) for r in ray] == ['extra == "ray"']
    lacking = doctor.check_extras(ray, {"flwr": "1.41.0"})
    assert "ray: lacks ray" in lacking.found
    assert lacking.status == "ok"  # only the engine "flower" needs it


def test_pins() -> None:
    assert doctor.check_pins({"numpy": "2.4.6"}, {"numpy": "2.4.6"}).status == "ok"
    other = doctor.check_pins({"numpy": "2.4.6"}, {"numpy": "2.5.0"})
    assert other.status == "warning"
    assert "numpy 2.5.0 (tested: 2.4.6)" in other.found
    assert doctor.check_pins({}, {}).status == "ok"


def test_a_second_owner_of_a_name_fails() -> None:
    assert doctor.check_names({"server": ["fedslm"], "numpy": ["numpy"]}).status == "ok"
    taken = doctor.check_names({"server": ["fedslm", "flask-server"], "client": ["fedslm"]})
    assert taken.status == "failed"
    assert "server also comes from flask-server" in taken.found


def test_a_shadowed_package_fails(tmp_path: Path) -> None:
    here = {name: tmp_path / name / "__init__.py" for name in doctor.PACKAGES}
    assert doctor.check_siblings(here).status == "ok"
    elsewhere = {**here, "server": tmp_path / "old" / "server" / "__init__.py"}
    assert doctor.check_siblings(elsewhere).status == "failed"
    absent = doctor.check_siblings({**here, "client": None})
    assert absent.status == "failed"
    assert "client" in absent.found


def test_a_damaged_demo_model_fails(tmp_path: Path) -> None:
    shutil.copytree(doctor.ASSETS, tmp_path / "assets")
    assert doctor.check_demo_model(tmp_path / "assets").status == "ok"
    weights = tmp_path / "assets" / "demo" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    damaged = doctor.check_demo_model(tmp_path / "assets")
    assert damaged.status == "failed"
    assert "model.safetensors" in damaged.found
    weights.unlink()
    assert doctor.check_demo_model(tmp_path / "assets").status == "failed"
    assert doctor.check_demo_model(tmp_path).status == "failed"


def test_every_file_of_the_demo_model_has_its_digest_recorded() -> None:
    # After new weights: (cd simulations/assets && sha256sum demo/* > SHA256SUMS)
    lines = (doctor.ASSETS / doctor.CHECKSUMS).read_text(encoding="utf-8").splitlines()
    recorded = {line.split()[1] for line in lines}
    assert recorded == {f"demo/{path.name}" for path in (doctor.ASSETS / "demo").iterdir()}


def test_torch() -> None:
    assert doctor_machine.torch_build({}).status == "warning"
    with_idle_cuda = doctor_machine.torch_build({"torch": "2.13.0", "nvidia-cublas": "13"})
    import torch

    assert (with_idle_cuda.status == "warning") == (not torch.cuda.is_available())


def test_available_memory_is_the_smaller_of_machine_and_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n", encoding="ascii")
    read = available_memory
    assert read(meminfo, tmp_path) == 4_096_000_000
    (tmp_path / "memory.max").write_text("2000000000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("500000000\n", encoding="ascii")
    assert read(meminfo, tmp_path) == 1_500_000_000
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert read(meminfo, tmp_path) == 4_096_000_000
    assert read(tmp_path / "absent", tmp_path) is None


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    assert doctor_machine.write_access(tmp_path).status == "ok"
    check = doctor_machine.write_access(tmp_path / "absent")
    assert check.status == "failed"
    assert str(tmp_path) not in "".join(check)


@pytest.mark.parametrize(("flags", "word"), [("fma avx512_bf16", "yes"), ("fma avx2", "no")])
def test_processor(tmp_path: Path, flags: str, word: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags : {flags}\n", encoding="utf-8")
    assert doctor_machine.processor(cpuinfo).found == f"AVX512-BF16: {word}"
    assert doctor_machine.processor(tmp_path / "absent").status == "ok"


def test_clock() -> None:
    now = time.time()
    assert doctor_machine.clock(now - 60, now=now).status == "ok"
    late = doctor_machine.clock(now + 30 * 86_400, now=now)
    assert late.status == "warning"
    assert late.found.startswith("30 days behind")


def test_telemetry() -> None:
    assert doctor_machine.telemetry({"FLWR_TELEMETRY_ENABLED": "0"}).status == "ok"
    assert doctor_machine.telemetry({"FLWR_TELEMETRY_ENABLED": "1"}).status == "warning"
    assert doctor_machine.telemetry({}).status == "warning"


def test_install_lines_are_printed_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Square brackets are styles to what draws the table."""
    lacking = Check(
        "torch", "warning", "not installed", "installed", "pip install 'fedslm[client]'"
    )
    monkeypatch.setattr(doctor, "run_checks", lambda home=None: [lacking])
    assert run(["doctor"]) == 0
    assert "'fedslm[client]'" in "".join(capsys.readouterr().out.split())
