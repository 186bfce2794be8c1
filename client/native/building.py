"""Compiles the native client from the sources of the installed package."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from shared.errors import MissingDependency, UsageError

SOURCE: Final = Path(__file__).parent
PROGRAM: Final = "fedslm-native"
_HEADER: Final = "#include <openssl/ssl.h>\n#if OPENSSL_VERSION_MAJOR < 3\n#error\n#endif\n"
_MOST_LINES: Final = 12


def build_client(out: Path) -> Path:
    """Compile the client.

    Args:
        out: folder of the program and of what is compiled on the way; made if it does not exist.
            A second build compiles what has changed.

    Returns:
        The program.

    Raises:
        MissingDependency: naming everything that is not there: a compiler, make, the headers of
            OpenSSL 3, the package executorch.
        UsageError: if the sources do not compile.
    """
    compiler = os.environ.get("CXX", "g++")
    missing = missing_tools(compiler)
    if missing:
        msg = f"The native client cannot be built: {', '.join(missing)} missing."
        hint = "Debian: apt-get install g++ make libssl-dev; pip install 'fedslm[export]'."
        raise MissingDependency(msg, hint=hint)
    # What another compiler warns of must not keep an owner from a program that works.
    settings = [f"PYTHON={sys.executable}", f"OUT={out.absolute()}", f"CXX={compiler}", "WERROR="]
    done = subprocess.run(  # noqa: S603 - the package's own Makefile, no shell
        ["make", "-s", *settings],  # noqa: S607 - the machine's make, wherever it is
        cwd=SOURCE,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stderr.splitlines()[-_MOST_LINES:])
        msg = f"The native client does not compile with {compiler}:\n{tail}"
        raise UsageError(msg, hint="Name another C++17 compiler with CXX=...")
    return out / PROGRAM


def missing_tools(compiler: str) -> tuple[str, ...]:
    """Return what a build would need and does not find, in words."""
    found = {
        f"the compiler {compiler}": shutil.which(compiler) is not None,
        "make": shutil.which("make") is not None,
        "the package executorch": importlib.util.find_spec("executorch") is not None,
    }
    missing = [name for name, there in found.items() if not there]
    if f"the compiler {compiler}" not in missing and not _has_headers(compiler):
        missing.append("the headers of OpenSSL 3")
    return tuple(missing)


def _has_headers(compiler: str) -> bool:
    """Ask the compiler whether it finds OpenSSL 3."""
    done = subprocess.run(  # noqa: S603 - the compiler that the owner named, no shell
        [compiler, "-E", "-x", "c++", "-"],
        input=_HEADER,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0
