"""What ``fedslm doctor`` looks at: the installation, the machine, and what they mean for a run.

Each check is a small function that returns a :class:`Check`; none changes anything but one
temporary file, and none leaves this machine, but that the check of a device's folder asks its own
server. A check whose subject is broken says so and does not stop the others.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from simulations.doctor_home import check_home
from simulations.doctor_machine import (
    Check,
    Status,
    clock,
    cores,
    disk,
    memory,
    memory_group,
    processor,
    quantization,
    randomness,
    telemetry,
    torch_build,
    write_access,
)

DISTRIBUTION = "fedslm"
PACKAGES = ("server", "client", "shared", "simulations")
ASSETS = Path(__file__).parent / "assets"
CHECKSUMS = "SHA256SUMS"
_ROOT = Path(__file__).parents[1]


def run_checks(folder: Path | None = None, *, home: Path | None = None) -> list[Check]:
    """Look at this installation and this machine.

    Args:
        folder: where runs will be written; ``home``, or the working directory, when None.
        home: the folder of a server or of a device, to look at too.

    Returns:
        One result per check, in a fixed order.
    """
    where = folder or (home if home is not None and home.is_dir() else Path.cwd())
    return [
        check_python(sys.version_info[:3]),
        check_requirements(_requirements(), _installed()),
        check_extras(_requirements(), _installed()),
        check_pins(_pins(_ROOT / "constraints" / "common.txt"), _installed()),
        check_names(importlib.metadata.packages_distributions()),
        check_siblings({name: _origin(name) for name in PACKAGES}),
        torch_build(_installed()),
        quantization(),
        check_demo_model(ASSETS),
        *_machine(where),
        *(() if home is None else check_home(home)),
    ]


def exit_code(checks: Iterable[Check]) -> int:
    """Return 1 if any check failed, else 0; warnings do not count."""
    return int(any(check.status == "failed" for check in checks))


def to_dict(checks: Sequence[Check]) -> dict[str, object]:
    """Return the JSON form: the worst status and every check by name."""
    order: tuple[Status, ...] = ("failed", "warning", "ok")
    worst = next((s for s in order if any(c.status == s for c in checks)), "ok")
    rows = {c.name: {k: v for k, v in c._asdict().items() if k != "name"} for c in checks}
    return {"status": worst, "checks": rows}


def check_python(version: tuple[int, ...]) -> Check:
    """Check the interpreter's version."""
    ok = version >= (3, 11)
    return Check(
        name="python",
        status="ok" if ok else "failed",
        found=".".join(str(part) for part in version),
        expected="at least 3.11",
        hint="" if ok else "Make a virtual environment with a newer Python.",
    )


def check_requirements(requirements: Sequence[Requirement], installed: Mapping[str, str]) -> Check:
    """Check that every core dependency is there in a version that fedslm accepts."""
    core = [r for r in requirements if _wanted(r, extra="")]
    wrong = [problem for r in core if (problem := _mismatch(r, installed))]
    if not requirements:
        wrong = [f"{DISTRIBUTION} itself is not installed"]
    return Check(
        name="requirements",
        status="failed" if wrong else "ok",
        found="; ".join(wrong) or f"{len(core)} packages, all accepted",
        expected="every core dependency in an accepted version",
        hint=f"pip install --upgrade {DISTRIBUTION}" if wrong else "",
    )


def check_extras(requirements: Sequence[Requirement], installed: Mapping[str, str]) -> Check:
    """Tell which optional parts are complete."""
    lines, missing_sim = [], False
    for extra in ("client", "sim", "ray", "dev"):
        wanted = [r for r in requirements if _wanted(r, extra=extra) and r.name != DISTRIBUTION]
        lacking = [r.name for r in wanted if _mismatch(r, installed)]
        lines.append(f"{extra}: " + (f"lacks {', '.join(lacking)}" if lacking else "complete"))
        missing_sim |= extra in {"client", "sim"} and bool(lacking)
    return Check(
        name="extras",
        status="warning" if missing_sim else "ok",
        found="; ".join(lines),
        expected="client and sim for `fedslm simulate`; ray for its engine flower; dev for tests",
        hint=f"pip install '{DISTRIBUTION}[sim]'" if missing_sim else "",
    )


def check_pins(pins: Mapping[str, str], installed: Mapping[str, str]) -> Check:
    """Compare with the versions that the tests ran with, where the source tree is at hand."""
    other = [
        f"{name} {installed[name]} (tested: {pin})"
        for name, pin in pins.items()
        if name in installed and installed[name] != pin
    ]
    found = "; ".join(other) or f"{len(pins)} pins, none differs"
    return Check(
        name="pins",
        status="warning" if other else "ok",
        found=found if pins else "no source tree beside the packages; nothing to compare",
        expected="the versions of constraints/common.txt",
        hint="Results may differ slightly; `make demo` installs the pins." if other else "",
    )


def check_names(owners: Mapping[str, Sequence[str]]) -> Check:
    """Check that no other distribution ships a package of one of our four names.

    pip installs such a clash without a word and deletes our files on uninstalling the other. An
    editable installation has no entry of its own in ``owners``.
    """
    others = {
        name: sorted(set(owners.get(name, ())) - {DISTRIBUTION})
        for name in PACKAGES
        if set(owners.get(name, ())) - {DISTRIBUTION}
    }
    taken = "; ".join(f"{name} also comes from {', '.join(who)}" for name, who in others.items())
    return Check(
        name="package-names",
        status="failed" if others else "ok",
        found=taken or "no other owner",
        expected=f"{', '.join(PACKAGES)} belong to {DISTRIBUTION} alone",
        hint="Use a virtual environment of its own." if others else "",
    )


def check_siblings(origins: Mapping[str, Path | None]) -> Check:
    """Check that the four packages come from one place, so that none is shadowed."""
    absent = [name for name, origin in origins.items() if origin is None]
    parents = {origin.parents[1] for origin in origins.values() if origin is not None}
    ok = not absent and len(parents) == 1
    found = f"not found: {', '.join(absent)}" if absent else f"{len(parents)} folders"
    return Check(
        name="package-places",
        status="ok" if ok else "failed",
        found="one folder" if ok else found,
        expected="all four packages in one folder",
        hint="" if ok else "A file or folder of that name shadows ours; start elsewhere.",
    )


def check_demo_model(assets: Path) -> Check:
    """Compare the embedded demo model with its recorded digests."""
    try:
        lines = (assets / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        wrong = [name for digest, name in map(str.split, lines) if _sha256(assets / name) != digest]
    except OSError as error:
        lines, wrong = [], [Path(str(error.filename)).name]
    return Check(
        name="demo-model",
        status="ok" if lines and not wrong else "failed",
        found=f"damaged or absent: {', '.join(wrong)}" if wrong else f"{len(lines)} files intact",
        expected="every file as it was published",
        hint=f"pip install --force-reinstall --no-deps {DISTRIBUTION}" if wrong else "",
    )


def _machine(where: Path) -> tuple[Check, ...]:
    """Return the checks of the machine."""
    newest = max(path.stat().st_mtime for path in (_ROOT / "shared").glob("*.py"))
    return (
        disk(where),
        write_access(where),
        memory(),
        memory_group(),
        cores(),
        processor(),
        randomness(),
        clock(newest),
        telemetry(),
    )


def _requirements() -> list[Requirement]:
    """Return what the installed distribution declares; nothing when it is not installed.

    What an extra of another distribution brings (Ray, through Flower's) is added as if it were
    declared here, since the name alone would not show that it is missing.
    """
    declared = _declared(DISTRIBUTION)
    brought = [
        Requirement(f"{inner.name}{inner.specifier} ; {outer.marker}")
        for outer in declared
        if outer.marker is not None and outer.name != DISTRIBUTION
        for extra in outer.extras
        for inner in _declared(outer.name)
        if _wanted(inner, extra=extra)
    ]
    return declared + brought


def _declared(distribution: str) -> list[Requirement]:
    """Return the requirements in a distribution's metadata; nothing without metadata."""
    try:
        return [Requirement(line) for line in importlib.metadata.requires(distribution) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def _installed() -> dict[str, str]:
    """Return the version of every installed distribution by canonical name."""
    return {
        canonicalize_name(found.name): found.version
        for found in importlib.metadata.distributions()
        if found.name
    }


def _pins(path: Path) -> dict[str, str]:
    """Return the exact versions of a constraints file; nothing when there is none."""
    if not path.is_file():
        return {}
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, _, version in pairs}


def _wanted(requirement: Requirement, *, extra: str) -> bool:
    """Tell whether a requirement belongs to an extra ("" is the core) on this machine."""
    marker = requirement.marker
    if extra == "":
        return marker is None or marker.evaluate({"extra": ""})
    return (
        marker is not None
        and marker.evaluate({"extra": extra})
        and not marker.evaluate({"extra": ""})
    )


def _mismatch(requirement: Requirement, installed: Mapping[str, str]) -> str:
    """Return what is wrong with a requirement, or the empty string."""
    version = installed.get(canonicalize_name(requirement.name))
    if version is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version}, expected {requirement.specifier}"
    return ""


def _origin(name: str) -> Path | None:
    """Return the file of a package's ``__init__``, or None."""
    spec = find_spec(name)
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
