"""What ``fedslm doctor`` finds out about the machine: room, cores, processor, kernels, clock.

The thresholds are those of the built-in quickstart, which is held to 3 GB of memory.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from client.machine import available_memory, memory_limit, own_group

_GIB = 1024**3
_DAY_SECONDS = 86_400


Status = Literal["ok", "warning", "failed"]


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: stable identifier, a key of the JSON form.
        status: ``failed`` means that some command of fedslm cannot work.
        found: what is there.
        expected: what should be there.
        hint: what to do about it; empty when there is nothing to do.
    """

    name: str
    status: Status
    found: str
    expected: str
    hint: str = ""


def disk(folder: Path) -> Check:
    """Look at the free space where runs are written."""
    free = shutil.disk_usage(folder).free
    expected = "at least 1 GiB free where runs are written"
    if free >= _GIB:
        return Check("disk", "ok", _gib(free), expected)
    status: Status = "warning" if free >= _GIB // 10 else "failed"
    return Check("disk", status, _gib(free), expected, "Free some space or use --out elsewhere.")


def write_access(folder: Path) -> Check:
    """Write and remove one temporary file."""
    expected = "the folder for runs can be written"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"fedslm")
    except OSError as error:
        found = f"writing fails ({error.strerror})"
        return Check("write-access", "failed", found, expected, "Use --out elsewhere.")
    return Check("write-access", "ok", "writable", expected)


def memory() -> Check:
    """Look at the memory that a new process can have."""
    expected = "at least 3 GiB, the bound of the quickstart"
    available = available_memory(group=own_group())
    if available is None:
        return Check("memory", "warning", "not known on this system", expected)
    if available >= 3 * _GIB:
        return Check("memory", "ok", _gib(available), expected)
    hint = "Close other programs, or lower performance.physical_batch and performance.workers."
    status: Status = "warning" if available >= _GIB else "failed"
    return Check("memory", status, _gib(available), expected, hint)


def memory_group(
    cgroup: Path = Path("/sys/fs/cgroup"), table: Path = Path("/proc/self/cgroup")
) -> Check:
    """Tell the limit that a service or a container is held to, and whether the kernel has one.

    Args:
        cgroup: root of the control groups.
        table: the control groups of this process.
    """
    expected = "no limit, or at least 1 GiB to train in"
    try:
        controllers = (cgroup / "cgroup.controllers").read_text(encoding="ascii").split()
    except OSError:
        return Check("memory-limit", "ok", "control groups of version 2 are not mounted", expected)
    if "memory" not in controllers:
        hint = "Boot with cgroup_enable=memory where MemoryMax of a service shall count."
        return Check("memory-limit", "warning", "the kernel does not limit memory", expected, hint)
    limit = memory_limit(cgroup, own_group(table))
    if limit is None:
        return Check("memory-limit", "ok", "none", expected)
    if limit >= _GIB:
        return Check("memory-limit", "ok", _gib(limit), expected)
    hint = "Raise MemoryMax of the service, or the limit of the container."
    return Check("memory-limit", "warning", _gib(limit), expected, hint)


def randomness(device: Path = Path("/dev/urandom")) -> Check:
    """Tell whether the system's generator of randomness, from which all noise comes, is ready."""
    expected = "the system's generator is ready"
    try:
        with device.open("rb", buffering=0) as stream:
            whole = len(stream.read(32)) == 32
        if hasattr(os, "getrandom"):
            os.getrandom(1, os.GRND_NONBLOCK)
    except BlockingIOError:
        hint = "Wait: it is ready some seconds after booting; a virtual machine needs virtio-rng."
        return Check("randomness", "failed", "not seeded yet", expected, hint)
    except OSError as error:
        hint = "A container must have /dev/urandom."
        found = f"cannot be read ({error.strerror})"
        return Check("randomness", "failed", found, expected, hint)
    if not whole:
        hint = "Something else lies in the place of /dev/urandom."
        return Check("randomness", "failed", "ends after a few bytes", expected, hint)
    return Check("randomness", "ok", "ready", expected)


def cores() -> Check:
    """Count the cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    enough = (count or 1) >= 2
    return Check(
        "cores",
        "ok" if enough else "warning",
        f"{count}",
        "at least 2, on which the times in the README were measured",
        "" if enough else "Everything works, but slower.",
    )


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    """Tell whether bitsandbytes would take its AVX512-BF16 path.

    On such processors its NF4 layers repack their weights in the first evaluation and from then on
    give no gradients; fedslm switches that path off (docs/sharp-edges.md).
    """
    expected = "any; with AVX512-BF16 fedslm switches off a path that loses gradients"
    try:
        flags = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Check("processor", "ok", "flags not known on this system", expected)
    has = "avx512_bf16" in flags.split()
    return Check("processor", "ok", f"AVX512-BF16: {'yes' if has else 'no'}", expected)


def torch_build(installed: Mapping[str, str]) -> Check:
    """Tell torch's build, and CUDA libraries that lie about without use."""
    if "torch" not in installed:
        hint = "pip install 'fedslm[client]'"
        return Check(
            name="torch", status="warning", found="not installed", expected="torch", hint=hint
        )
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check(
            name="torch",
            status="failed",
            found=f"{installed['torch']} cannot be loaded ({type(error).__name__})",
            expected="torch that loads",
            hint="Reinstall it in a fresh virtual environment.",
        )
    cuda_packages = [n for n in installed if n.startswith(("nvidia-", "cuda-"))]
    usable = torch.cuda.is_available()
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    idle = bool(cuda_packages or torch.version.cuda) and not usable
    return Check(
        name="torch",
        status="warning" if idle else "ok",
        found=f"{installed['torch']}, {build}, "
        + (f"{torch.cuda.device_count()} CUDA devices" if usable else "no CUDA device"),
        expected="the CPU build, or a CUDA build with a device",
        hint="Gigabytes of CUDA are installed and cannot be used; `make demo` takes the CPU build."
        if idle
        else "",
    )


def quantization() -> Check:
    """Quantise a 64 x 64 matrix with bitsandbytes, to int8 and to NF4, and look at the error."""
    expected = "bitsandbytes quantises a small matrix on this processor"
    try:
        import torch

        # It advises on optional kernels at every import.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        from bitsandbytes import functional

        matrix = torch.linspace(-1.0, 1.0, 4096).reshape(64, 64).T.contiguous()
        packed, state = functional.quantize_4bit(matrix, quant_type="nf4")
        rows, scales, _ = functional.int8_vectorwise_quant(matrix.half())
        copies = {
            "NF4": functional.dequantize_4bit(packed, state),
            "int8": functional.int8_vectorwise_dequant(rows, scales),
        }
        errors = {name: float((copy - matrix).abs().max()) for name, copy in copies.items()}
    except ImportError as error:
        hint = "pip install 'fedslm[client]', or use model.quantization = \"none\"."
        found = f"{error.name or 'bitsandbytes'} is not installed"
        return Check("quantization", "warning", found, expected, hint)
    except (RuntimeError, OSError, AttributeError, NotImplementedError, ValueError) as error:
        hint = 'Reinstall bitsandbytes, or use model.quantization = "none".'
        return Check("quantization", "failed", type(error).__name__, expected, hint)
    found = ", ".join(f"{name}: largest error {value:.3f}" for name, value in errors.items())
    # Half the widest gap between two NF4 levels is 0.152; int8's is 1/254.
    if errors["NF4"] <= 0.16 and errors["int8"] <= 0.01:
        return Check("quantization", "ok", found, expected)
    hint = 'Use model.quantization = "none"; the kernels of bitsandbytes are wrong here.'
    return Check("quantization", "failed", found, expected, hint)


def clock(newest_file: float, *, now: float | None = None) -> Check:
    """Compare the clock with the files of the installation.

    Args:
        newest_file: latest modification time of our files, seconds since 1970.
        now: the present, for tests.
    """
    present = time.time() if now is None else now
    expected = "not earlier than the installed files"
    behind = newest_file - present
    if behind <= _DAY_SECONDS:
        return Check(
            "clock", "ok", time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(present)), expected
        )
    found = f"{behind / _DAY_SECONDS:.0f} days behind the installed files"
    return Check("clock", "warning", found, expected, "Set the clock; the ledger records times.")


def telemetry(environment: Mapping[str, str] | None = None) -> Check:
    """Tell whether Flower's own commands would report their use to its makers.

    fedslm's commands switch it off in their own process; ``flwr`` started by hand reads this.
    """
    variables = os.environ if environment is None else environment
    off = variables.get("FLWR_TELEMETRY_ENABLED") == "0"
    return Check(
        "telemetry",
        "ok" if off else "warning",
        "off" if off else "on for Flower's own commands (off inside fedslm)",
        "FLWR_TELEMETRY_ENABLED=0",
        "" if off else "export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1",
    )


def _gib(size: int) -> str:
    """Write a size in GiB."""
    return f"{size / _GIB:.1f} GiB"
