"""A real PostgreSQL server for tests: its own data, a Unix socket, no TCP."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

MISSING = "needs PostgreSQL's server programs (Debian: apt-get install postgresql)"


def binaries() -> Path | None:
    """Return the folder of initdb and pg_ctl: on the path, or where Debian keeps it."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return known[-1].parent if known else None


class PostgresServer:
    """A server that is started in a new folder; it refuses to run as root, so it does not."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="fedslm-pg-", dir="/tmp"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            name = next(n for n in ("postgres", "nobody") if _exists(n))
            self._as = {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}
            shutil.chown(self.folder, name)
        # Sorts text as people do, unless a column says otherwise; PostgreSQL 15 or later.
        sorting = ("--locale=C", "--locale-provider=icu", "--icu-locale=en-US")
        self._run("initdb", "--no-sync", "-A", "trust", "-U", "ledger", "-E", "UTF8", *sorting)
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), "-D", str(self.folder / "data"), *arguments]
        subprocess.run(
            command,
            check=True,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._as,
        )

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c jit=off"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-w", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def remove(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def url(self, schema: str | None = None, *, user: str = "ledger", password: str = "") -> str:
        """Return a URL of the database, or of one schema of it."""
        login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        options = "" if schema is None else f"&options=-csearch_path%3D{schema}"
        return f"postgresql://{login}@/postgres?host={quote(str(self.folder), safe='')}{options}"

    def connect(self, schema: str | None = None) -> Any:
        """Return a connection of psycopg, on which every statement is a transaction."""
        import psycopg

        return psycopg.connect(self.url(schema), autocommit=True)

    def new_schema(self) -> str:
        """Create an empty schema; return its name."""
        name = f"s{secrets.token_hex(6)}"
        with self.connect() as db:
            db.execute(f"CREATE SCHEMA {name}")
        return name


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
