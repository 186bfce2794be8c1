"""An ARM board without an ARM board: Debian 12 for arm64 in a folder, with fedslm, run by QEMU.

    python packaging/arm64.py make ROOT               system, wheels, environment, native client
    python packaging/arm64.py run ROOT COMMAND ...    a command of the board, here

Needs apt, on x86-64, with Debian's qemu-user-static and g++-aarch64-linux-gnu, and Linux 6.7: since
then a user namespace has formats of its own for other machines' programs. So nobody need be root,
and nothing outside of the namespace changes.

What comes is what a board would get: Debian's packages for arm64, whose signatures apt checks; the
wheels that pip picks for aarch64 under constraints/aarch64.txt, installed by the board's own pip;
and client/native compiled against ExecuTorch's wheel for aarch64. The processor is QEMU's: times
and memory say nothing about a board.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
QEMU = "/usr/bin/qemu-aarch64-static"
ENVIRONMENT = "/opt/fedslm"
NATIVE = "/opt/native"
PACKAGES = """
    base-files bash coreutils debianutils dash findutils sed tzdata
    libssl-dev libstdc++6 python3.11-venv
""".split()
# An ELF file of 64 bits, little endian, for aarch64. The interpreter is opened once (F), outside of
# the folder, so the folder need not hold it.
_ELF = (
    r":fedslm-arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:"
    + QEMU
    + ":F"
)
# What the board says of its processor, a Raspberry Pi 5's: QEMU does not imitate this file, and
# ONNX Runtime crashes where it reads of an x86.
_FEATURES = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop"
    " asimddp"
)
_PROCESSOR = f"""\
processor\t: {{number}}
BogoMIPS\t: 108.00
Features\t: {_FEATURES}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
_INSIDE = r"""
set -eu
root=$1; formats=$2; where=$3; shift 3
mount -t binfmt_misc fedslm "$root/run/formats"
[ -e "$root/run/formats/fedslm-arm64" ] || printf %s "$formats" >"$root/run/formats/register"
for name in proc dev sys tmp; do mount --rbind "/$name" "$root/$name"; done
mount --bind "$root/etc/cpuinfo" "$root/proc/cpuinfo"
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec chroot "$root" /bin/sh -c 'cd "$0" 2>/dev/null || cd /; exec "$@"' "$where" "$@"
"""


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run(*words: str | Path, given: bytes | None = None, taken: bool = False) -> bytes:
    """Run a program here, which must succeed; return what it printed if that is taken."""
    call = [str(word) for word in words]
    out = subprocess.PIPE if taken else None
    return subprocess.run(call, check=True, input=given, stdout=out).stdout or b""  # noqa: S603  (our own arguments)


def inside(root: Path, *words: str | Path, **variables: str) -> list[str]:
    """Return the command line that runs a command of the board; its ``/tmp`` is the one of here.

    Of the environment of here nothing is taken.
    """
    said = {
        "PATH": f"{ENVIRONMENT}/bin:/usr/bin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "QEMU_CPU": "cortex-a76",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        **variables,
    }
    start = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _INSIDE, "arm64")
    clean = ("env", "-i", *(f"{key}={value}" for key, value in said.items()))
    return [*start, str(root.resolve()), _ELF, str(Path.cwd()), *clean, *map(str, words)]


def own_mirror(apt: Path = Path("/etc/apt")) -> str:
    """Return where this machine has Debian's own packages from."""
    found = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    texts = [path.read_text(encoding="utf-8") for path in found if path.is_file()]
    for text in texts:
        for line in text.splitlines():
            # One-line form "deb [options] URI suite ...", or "URIs: URI" of deb822.
            match = re.match(
                r"(?:deb\s+(?:\[[^\]]*\]\s+)?|URIs:\s*)(https?://\S+/debian)/?(?:\s|$)", line
            )
            if match:
                return match.group(1)
    msg = "No mirror of Debian's packages in /etc/apt/sources.list. Name one: --mirror URL"
    raise SystemExit(msg)


def make_system(root: Path, mirror: str) -> None:
    """Fetch Debian's packages with apt, and unpack them; nobody's scripts are run."""
    work = root.parent / f"{root.name}-apt"
    for name in ("state/lists/partial", "cache/archives/partial", "etc"):
        (work / name).mkdir(parents=True, exist_ok=True)
    (work / "status").touch()
    sources = work / "etc" / "sources.list"
    key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    lines = [
        f"deb {key} {mirror} bookworm main",
        f"deb {key} {mirror}-security bookworm-security main",
    ]
    sources.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Get::Assume-Yes": "true",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Binary::apt::APT::Keep-Downloaded-Packages": "true",
        "DPkg::Post-Invoke": "",
        "Dir::Cache": work / "cache",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": work / "state",
        "Dir::State::status": work / "status",
    }
    apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
    run(*apt, "update")
    run(*apt, "install", "--download-only", *PACKAGES)
    root.mkdir(parents=True)
    for name in ("bin", "lib", "sbin"):  # as Debian 12 merges them
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for archive in sorted((work / "cache" / "archives").glob("*.deb")):
        tar = run("dpkg-deb", "--fsys-tarfile", archive, taken=True)
        words = ("--keep-directory-symlink", "--no-same-owner", "--directory", root)
        run("tar", "--extract", *words, given=tar)
    for name in ("proc", "dev", "sys", "tmp", "run/formats", "root"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n", encoding="utf-8")
    (root / "etc" / "group").write_text("root:x:0:\n", encoding="utf-8")
    processors = "".join(_PROCESSOR.format(number=n) for n in range(os.cpu_count() or 1))
    (root / "etc" / "cpuinfo").write_text(processors, encoding="utf-8")
    shutil.copy("/etc/hosts", root / "etc" / "hosts")


def build(root: Path) -> None:
    """Build fedslm's wheel from this tree."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", root / "wheels", PROJECT)


def fetch(root: Path) -> None:
    """Fetch the wheels of what ``[edge]`` brings, and ExecuTorch's."""
    board = runpy.run_path(str(PROJECT / "packaging" / "aarch64.py"))
    run(*board["download"](root / "wheels", board["requirements"](["edge"])))
    run(*board["download"](root / "executorch-wheel", ["executorch==1.5.*", "--no-deps"]))


def install(root: Path, *how: str) -> None:
    """Install on the board, as its owner does, from the wheels alone."""
    pip = [f"{ENVIRONMENT}/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    words = ["--no-index", "--find-links=/wheels", "-c", "/constraints/aarch64.txt", "--no-input"]
    run(*inside(root, *pip, *words, *how))


def make_environment(root: Path) -> None:
    """Make the board's environment."""
    shutil.copytree(PROJECT / "constraints", root / "constraints", dirs_exist_ok=True)
    run(*inside(root, "/usr/bin/python3.11", "-m", "venv", "--clear", ENVIRONMENT))
    install(root, "fedslm[edge]")


def make_native(root: Path) -> None:
    """Compile the native client for the board, against ExecuTorch's wheel and Debian's OpenSSL."""
    [wheel] = (root / "executorch-wheel").glob("executorch-*.whl")
    with zipfile.ZipFile(wheel) as file:
        wanted = [
            n for n in file.namelist() if n.startswith(("executorch/include/", "executorch/lib/"))
        ]
        file.extractall(root / NATIVE[1:], wanted)
    runtime = root / NATIVE[1:] / "executorch"
    openssl = f"-isystem {root}/usr/include -isystem {root}/usr/include/aarch64-linux-gnu"
    run(
        *("make", "-C", PROJECT / "client" / "native", "CXX=aarch64-linux-gnu-g++"),
        *(f"EXECUTORCH={runtime}", f"RPATH={NATIVE}/executorch/lib", f"OPENSSL_INCLUDES={openssl}"),
        *(f"OPENSSL_LIBS=-L{root}/usr/lib/aarch64-linux-gnu -lssl -lcrypto", "CXXFLAGS=-O1"),
        f"OUT={root / NATIVE[1:]}",
    )


def make(root: Path, mirror: str) -> None:
    """Make what is not there yet; fedslm and the native client are always those of this tree."""
    files = [PROJECT / "pyproject.toml", *sorted((PROJECT / "constraints").iterdir())]
    pins = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    system, environment = root / ".system", root / f".environment-{pins}"
    if not system.exists():
        say(f"{root}: Debian")
        shutil.rmtree(root, ignore_errors=True)
        make_system(root, mirror)
        system.touch()
    say(f"{root}: fedslm, and the native client")
    build(root)
    if environment.exists():
        install(root, "--no-deps", "--force-reinstall", "fedslm")
    else:
        fetch(root)
        make_environment(root)
        environment.touch()
    make_native(root)


def require_tools() -> None:
    """End where something is missing, and say what."""
    needed = ("apt-get", "dpkg-deb", "unshare", "make", "aarch64-linux-gnu-g++", QEMU)
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        what = "apt-get install qemu-user-static g++-aarch64-linux-gnu make"
        msg = f"Missing: {', '.join(missing)}. On Debian: {what}"
        raise SystemExit(msg)
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release < (6, 7):
        msg = f"Linux {os.uname().release}: formats of a user namespace's own need 6.7."
        raise SystemExit(msg)


def main() -> int:
    """Make a board, or run a command of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("root", type=Path)
    making.add_argument("--mirror", help="of Debian's packages; by default this machine's own")
    running = commands.add_parser("run")
    running.add_argument("root", type=Path)
    running.add_argument("words", nargs=argparse.REMAINDER)
    said = parser.parse_args()
    require_tools()
    if said.command == "make":
        make(said.root.resolve(), said.mirror or own_mirror())
        return 0
    words = inside(said.root, *said.words)
    os.execvp(words[0], words)  # noqa: S606  (our own arguments)


if __name__ == "__main__":
    sys.exit(main())
