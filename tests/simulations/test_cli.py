"""The command line: help, listings, and one clear error with its own exit code for bad input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared import errors
from simulations.basepath import ASSETS
from simulations.catalog import scenarios
from simulations.cli import run
from tests.integration.scenario import scenario_text

COMMANDS = [
    [],
    ["simulate"],
    ["config"],
    ["config", "show"],
    ["config", "check"],
    ["doctor"],
    ["compare"],
    ["budget"],
    ["budget", "plan"],
    ["budget", "status"],
    ["budget", "verify"],
]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    assert "--help" in capsys.readouterr().out


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, simulations.cli as c\n"
        "c.run(['simulate', '--help'])\n"
        "heavy = {'torch', 'transformers', 'flwr', 'matplotlib', 'dp_accounting', 'numpy'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        times.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr
    # 0.3 s on an idle machine; the bound leaves room for a busy one.
    assert min(times) < 1.5


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"fedslm \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--list"]) == 0
    text = capsys.readouterr().out
    assert run(["simulate", "--list", "--json"]) == 0
    names = {item["name"] for item in json.loads(capsys.readouterr().out)["scenarios"]}
    assert names == {scenario.name for scenario in scenarios()}
    assert {"quickstart", "shakespeare", "shakespeare-1000", "medquad"} <= names
    assert all(name in text for name in names)


def test_show_and_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "quickstart", "--set", "lora.r=3"]) == 0
    assert "r = 3  # --set" in capsys.readouterr().out
    assert run(["config", "show", "quickstart", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["origins"]["run.rounds"] == "file"
    assert run(["config", "check", "quickstart", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["valid"] is True


def test_doctor_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) in {0, 1}
    assert json.loads(capsys.readouterr().out)["checks"]
    assert run(["doctor"]) in {0, 1}


Make = Callable[[Path], list[str]]


def overridden(*values: str) -> Make:
    def make(folder: Path) -> list[str]:
        del folder
        return [part for value in values for part in ("--set", value)]

    return make


def with_file(text: str, *values: str, name: str = "data.jsonl") -> Make:
    def make(folder: Path) -> list[str]:
        path = folder / name
        path.write_text(text, encoding="utf-8")
        data = [f"data.path={path}", "data.client=who", "data.text=text"]
        data += ["audit.canaries=0", "clients.cohort=1.0"]
        return overridden(*data, *values)(folder)

    return make


def without_tokenizer(folder: Path) -> list[str]:
    shutil.copytree(ASSETS / "demo", folder / "base")
    for file in (folder / "base").glob("tokenizer*"):
        file.unlink()
    return ["--set", f"model.base={folder / 'base'}"]


SECRET = "Ada Quill was seen for influenza"
ROW = json.dumps({"who": "a", "text": SECRET})
BAD_INPUT: dict[str, tuple[Make, type[errors.FedSLMError], str]] = {
    "missing data file": (
        overridden("data.path=nowhere.jsonl", "data.client=who", "data.text=text"),
        errors.DataFileNotFound,
        "nowhere.jsonl",
    ),
    "malformed row": (
        with_file(f'{ROW}\n{{"who": "b", "text": \n', "clients.population=1"),
        errors.MalformedRow,
        "line 2",
    ),
    "missing column": (
        with_file(ROW, "data.text=txt", "clients.population=1"),
        errors.MalformedRow,
        "text",
    ),
    "unknown key": (overridden("lora.rank=4"), errors.UnknownKey, "lora.rank"),
    "unknown section": (overridden("lroa.r=4"), errors.UnknownKey, "Did you mean 'lora'?"),
    "NaN epsilon": (overridden("privacy.epsilon=nan"), errors.InvalidValue, "privacy.epsilon"),
    "zero clients": (overridden("clients.population=0"), errors.EmptyPopulation, "at least 1"),
    "a client without text": (
        with_file(f'{ROW}\n{{"who": "b", "text": "  "}}\n', "clients.population=2"),
        errors.NoUsableText,
        "'b'",
    ),
    "no tokenizer": (without_tokenizer, errors.TokenizerMissing, "tokenizer"),
    "no base model": (overridden("model.base=./nowhere"), errors.ModelNotFound, "nowhere"),
    "unknown module": (
        overridden('lora.target_modules=["q_porj"]'),
        errors.UnsupportedModel,
        "q_porj",
    ),
    "rank too large": (overridden("lora.r=500"), errors.InvalidValue, "500"),
    "more clients than records": (
        with_file(ROW, "data.partitioner=iid", "clients.population=40"),
        errors.InvalidValue,
        "40",
    ),
    "distributed without its terms": (
        overridden("privacy.mode=client-distributed"),
        errors.ConflictingSettings,
        "privacy.honest_fraction",
    ),
    "fractions that protect nobody": (
        overridden(
            "privacy.mode=client-distributed",
            "privacy.honest_fraction=0.5",
            "privacy.survivor_fraction=0.6",
            "privacy.min_cohort=3",
        ),
        errors.ConflictingSettings,
        "survivor_fraction",
    ),
    "a database without a key": (
        lambda _: ["--ledger", "postgresql://nobody:hunter2@127.0.0.1/none"],
        errors.UsageError,
        "--ledger-key",
    ),
    "cap below plan": (overridden("privacy.cap=1.0"), errors.PrivacyBudgetExhausted, "cap"),
}


@pytest.mark.parametrize("case", BAD_INPUT, ids=str)
def test_bad_input_is_one_clear_error(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, error, needle = BAD_INPUT[case]
    scenario = tmp_path / "small.toml"
    scenario.write_text(scenario_text())
    out = tmp_path / "run"
    arguments = ["simulate", str(scenario), "--out", str(out), *make(tmp_path)]
    assert run(arguments) == error.exit_code
    shown = capsys.readouterr()
    assert needle in shown.err
    assert shown.err.count(f"error [{error.code}]") == 1
    assert "Traceback" not in shown.err
    assert SECRET not in shown.err
    assert "hunter2" not in shown.err
    assert shown.out == ""
    assert not out.exists()
    assert run([*arguments, "--json"]) == error.exit_code
    described = json.loads(capsys.readouterr().out)
    assert described["error"] == error.code
    assert described["exit_code"] == error.exit_code


def test_unknown_scenario_and_no_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "quickstrat"]) == errors.ScenarioNotFound.exit_code
    assert "Did you mean 'quickstart'?" in capsys.readouterr().err
    assert run(["simulate"]) == errors.UsageError.exit_code
    assert run(["simulate", "quickstart", "--frobnicate"]) == errors.UsageError.exit_code


@pytest.mark.slow
def test_a_full_disk_loses_nothing_and_is_resumed(tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: the operating system refuses the write."""
    scenario = tmp_path / "small.toml"
    scenario.write_text(scenario_text())
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "simulations.cli",
        "simulate",
        str(scenario),
        "--out",
        str(out),
    ]
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 120; exec "$@"', "limited", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert limited.returncode == errors.OutOfDisk.exit_code, limited.stderr
    assert "Traceback" not in limited.stderr
    assert not (out / "summary.json").exists()
    assert not list(out.glob(".*.partial"))
    resumed = subprocess.run(
        [*command, "--resume", "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["status"] == "completed"
