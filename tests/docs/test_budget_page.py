"""Every command of docs/budget.md runs and prints what the page shows."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner
from shared.privacy.planning import make_plan
from simulations.attest.about import About
from simulations.cli import run

PAGE = Path(__file__).parents[2] / "docs" / "budget.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
WIDE = "200"


def blocks(kind: str) -> list[str]:
    return [text for name, text in FENCE.findall(PAGE.read_text(encoding="utf-8")) if name == kind]


def commands() -> list[tuple[str, list[str]]]:
    """Return each command with the lines that it is said to print."""
    found = []
    for block in blocks("console"):
        first, *shown = block.splitlines()
        assert first.startswith("$ fedslm ")
        found.append((first.removeprefix("$ fedslm "), shown))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the page: a signed ledger of 20 rounds under the plan of its first section."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", WIDE)
    clinics = tmp_path / "runs" / "clinics"
    clinics.mkdir(parents=True)
    plan = make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        epsilon=4.0,
        delta=1e-5,
        clipping_norm=0.5,
        sampling_probability=0.1,
        rounds=50,
        population=2000,
    )
    signer = LedgerSigner.load_or_create(clinics / "ledger.key")
    with Ledger(clinics / "ledger.sqlite", signer=signer) as ledger:
        ledger.register_plan("clinics", plan, "notes-2031")
        for server_round in range(1, 21):
            reserved = ledger.reserve(
                run_id="clinics",
                server_round=server_round,
                subjects=["population"],
                event=plan.event_for_participation(),
            )
            ledger.commit(reserved)
    (toml,) = blocks("toml")
    (tmp_path / "about.toml").write_text(toml, encoding="utf-8")
    return tmp_path


def matches(shown: str, printed: str) -> bool:
    """Compare two lines; ``…`` on the page stands for anything, trailing blanks for nothing."""
    pattern = ".*".join(re.escape(part) for part in shown.rstrip().split("…"))
    return re.fullmatch(pattern, printed.rstrip()) is not None


@pytest.mark.slow
@pytest.mark.parametrize(("command", "shown"), commands(), ids=range(len(commands())))
def test_a_command_prints_what_the_page_shows(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, shown: list[str]
) -> None:
    assert run(shlex.split(command)) == 0
    printed = capsys.readouterr().out.splitlines()
    for line in shown:
        assert any(matches(line, other) for other in printed), (line, printed)
    assert folder.is_dir()


def test_the_page_shows_enough() -> None:
    verbs = {command.split()[1] for command, _ in commands()}
    assert verbs == {"plan", "status", "verify", "export"}
    assert all(shown for _, shown in commands())


def test_the_operators_file_has_every_key() -> None:
    (toml,) = blocks("toml")
    assert set(tomllib.loads(toml)) == set(About.model_fields)


def test_a_wrong_number_would_be_noticed() -> None:
    assert matches("head 40:…", "head 40:abc  ")
    assert not matches("epsilon 3.9995 at", "epsilon 3.9996 at")
