"""``fedslm client native build``: what is missing is named, and what the compiler says is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.native.building import PROGRAM, build_client, missing_tools
from shared.errors import MissingDependency, UsageError
from simulations.cli import app


def compiler(folder: Path, body: str) -> str:
    """Write a compiler that knows OpenSSL's headers, and otherwise does as it is told."""
    path = folder / "c++"
    path.write_text(f'#!/bin/sh\ncase " $* " in *" -E "*) exit 0;; esac\n{body}\n')
    path.chmod(0o700)
    return str(path)


def test_everything_that_is_missing_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="no-such-compiler, make missing") as caught:
        build_client(tmp_path / "out")
    assert "apt-get install" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_a_compiler_without_the_headers_is_told_so(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o700)
    assert missing_tools(str(bare)) == ("the headers of OpenSSL 3",)
    assert missing_tools(compiler(tmp_path, "exit 1")) == ()


def test_what_does_not_compile_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, "echo 'error: no such standard' >&2; exit 1"))
    with pytest.raises(UsageError, match="no such standard") as caught:
        build_client(tmp_path / "out")
    assert "CXX" in str(caught.value.hint)


def test_the_command_prints_where_the_program_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_it = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done'
    monkeypatch.setenv("CXX", compiler(tmp_path, make_it))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["client", "native", "build", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["program"] == str(out / PROGRAM)
    assert (out / PROGRAM).exists()
