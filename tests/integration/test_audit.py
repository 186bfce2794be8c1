"""`fedslm audit` and the release gate on a real, small run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shared.errors import LedgerError, ReleaseRefused, ReportInvalid, UsageError
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_notes import AUDIT_REPORT
from simulations.budget_common import open_ledger
from simulations.cli import run as fedslm
from tests.integration.scenario import run_small

QUICK = ("ledger", "mechanism", "one-run", "exposure")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited") / "run"
    run_small(folder, ["clients.population=80", "clients.cohort=20.0", "data.max_length=64"])
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def only(names: Sequence[str] = QUICK) -> list[str]:
    return [word for name in names for word in ("--only", name)]


def audited(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "audit.json").read_text())
    return report


@pytest.fixture(scope="module")
def report_dir(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with its quick audits done once."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("report") / "run"))
    assert fedslm(["audit", "run", str(folder), *only()]) in {0, 2}
    return folder


def test_a_run_is_audited_signed_and_verified(
    report_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = audited(report_dir)
    assert report["schema"] == 2
    assert [finding["audit"] for finding in report["findings"]] == list(QUICK)
    assert {finding["audit"]: finding["verdict"] for finding in report["findings"]}[
        "ledger"
    ] == "consistent"
    assert report["canaries"]["committed"]
    assert set(report["controls"]) == {"one-run", "exposure"}
    assert (report_dir / "audit.html").read_text().startswith("<!doctype html>")
    capsys.readouterr()
    assert fedslm(["audit", "verify", str(report_dir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"]
    assert found["concluded"] == list(QUICK)
    key = found["signed_by"]
    assert fedslm(["audit", "verify", str(report_dir), "--public-key", key]) == 0
    other = "0" * 64
    assert fedslm(["audit", "verify", str(report_dir), "--public-key", other]) == (
        ReportInvalid.exit_code
    )


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("verdict",), "consistent"),
        (("epsilon_claimed",), 1000.0),
        (("findings", 2, "evidence", "kinds", 0, "included", 0), 99.0),
        (("findings", 3, "value"), 0.0),
        (("canaries", "commitment"), "0" * 64),
        (("canaries", "opening", "repeats"), 9),
        (("controls", "exposure", "detected"), None),
    ],
)
def test_a_changed_report_does_not_hold(
    report_dir: Path, tmp_path: Path, where: tuple[str | int, ...], value: object
) -> None:
    folder = Path(shutil.copytree(report_dir, tmp_path / "run"))
    report: Any = audited(folder)
    place = report
    for step in where[:-1]:
        place = place[step]
    assert place[where[-1]] != value
    place[where[-1]] = value
    (folder / "audit.json").write_text(json.dumps(report))
    assert fedslm(["audit", "verify", str(folder)]) == ReportInvalid.exit_code
    (folder / "audit.sig.json").unlink()
    unsigned = fedslm(["audit", "verify", str(folder)])
    if where != ("controls", "exposure", "detected"):
        assert unsigned == ReportInvalid.exit_code


def test_no_canary_and_no_record_is_in_the_report(report_dir: Path) -> None:
    from shared.configfile import load_config
    from simulations.assemble import open_clients

    config = load_config(report_dir / "config.toml", [], source="config.toml").config
    dataset, plan = open_clients(config, base_dir=Path.cwd())
    written = "".join(
        (report_dir / name).read_text() for name in ("audit.json", "audit.html", "report.html")
    )
    for canary in plan.canaries:
        if len(canary.passage.text.split()) > 1:
            assert canary.passage.text not in written
        assert canary.passage.prompt not in written
    for record in dataset.client(3).train:
        assert str(record.text) not in written


def test_the_gate_releases_what_was_audited(
    report_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(report_dir, tmp_path / "run"))
    capsys.readouterr()
    to = tmp_path / "released"
    assert fedslm(["adapter", "release", str(folder), "--to", str(to), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    record = json.loads((to / "release.json").read_text())
    report = audited(report_dir)
    assert record["audit_verdict"] == report["verdict"]
    assert record["weights_sha256"] == report["subject"]["weights_sha256"]
    assert record["audit_signed_by"] is not None
    assert printed["audit_sha256"] == record["audit_sha256"]
    if report["verdict"] == "inconclusive":
        assert any("inconclusive" in warning for warning in printed["warnings"])
    assert (to / "adapter_model.safetensors").is_file()
    with open_ledger(str(folder)) as ledger:
        notes = ledger.notes(printed["ledger_note"]["run_id"])
    (note,) = (note for note in notes if note.name == AUDIT_REPORT)
    assert (note.digest, note.seq) == (record["audit_sha256"], record["ledger_note"]["seq"])
    assert fedslm(["budget", "verify", str(folder)]) == 0
    assert fedslm(["audit", "run", str(folder), "--only", "ledger"]) == 0


def test_an_adapter_without_its_ledger_is_released_with_a_warning(
    report_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, to = str(report_dir / "audit.json"), str(tmp_path / "released")
    arguments = [str(report_dir / "adapter"), "--report", report, "--to", to]
    capsys.readouterr()
    assert fedslm(["adapter", "release", *arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["ledger_note"] is None
    assert any("No ledger" in warning for warning in printed["warnings"])
    there = ["--ledger", str(report_dir / "ledger.sqlite")]
    assert fedslm(["adapter", "release", *arguments, *there]) == UsageError.exit_code


def test_a_ledger_that_the_run_never_charged_gets_no_note(report_dir: Path, tmp_path: Path) -> None:
    to, other = tmp_path / "released", tmp_path / "other.sqlite"
    arguments = ["adapter", "release", str(report_dir), "--to", str(to), "--ledger", str(other)]
    assert fedslm(arguments) == LedgerError.exit_code
    assert not other.exists()
    with Ledger(other) as ledger:
        assert fedslm(arguments) == UsageError.exit_code
        assert ledger.notes() == ()
    assert not to.exists()


def test_the_gate_refuses_other_weights_and_changed_reports(
    report_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(report_dir, tmp_path / "run"))
    report = audited(folder)
    report["findings"][0]["verdict"] = "inconclusive"
    (folder / "audit.json").write_text(json.dumps(report))
    to = str(tmp_path / "released")
    assert fedslm(["adapter", "release", str(folder), "--to", to]) == ReleaseRefused.exit_code
    report = audited(report_dir)
    report["subject"]["weights_sha256"] = "f" * 64
    (folder / "audit.json").write_text(json.dumps(report))
    (folder / "audit.sig.json").unlink()
    assert fedslm(["adapter", "release", str(folder), "--to", to]) == ReleaseRefused.exit_code
    assert not (tmp_path / "released" / "release.json").exists()


def test_a_label_that_the_ledger_does_not_support_is_a_violation(
    run_dir: Path, tmp_path: Path
) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    summary["privacy"]["epsilon"] /= 2
    (run_dir / "summary.json").write_text(json.dumps(summary))
    assert fedslm(["audit", "run", str(run_dir), "--only", "ledger"]) == 1
    assert audited(run_dir)["verdict"] == "violation"
    to = str(tmp_path / "released")
    assert fedslm(["adapter", "release", str(run_dir), "--to", to]) == ReleaseRefused.exit_code


def test_reports_are_compared(report_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert fedslm(["audit", "compare", str(report_dir), str(report_dir), "--markdown"]) == 0
    table = capsys.readouterr().out
    assert table.count("| one-run |") == 1
    assert fedslm(["audit", "compare", str(report_dir), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["findings"]
    assert [row["audit"] for row in rows] == list(QUICK)


def test_audits_are_listed_with_who_attacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedslm(["audit", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["audits"]
    assert {"ledger", "mechanism", "span", "client-canary", "one-run", "exposure"} <= {
        row["audit"] for row in rows
    }
    assert all(row["threat_model"] and row["needs"] for row in rows)
    assert fedslm(["audit", "list"]) == 0


def test_an_adapter_from_elsewhere_is_audited_with_the_users_files(
    finished: Path, tmp_path: Path
) -> None:
    files = {}
    for side, start in (("members", 0), ("nonmembers", 100)):
        files[side] = tmp_path / f"{side}.jsonl"
        rows = [
            json.dumps({"text": f"note {start + i}: the patient of bed {start + i} is well"})
            for i in range(40)
        ]
        files[side].write_text("\n".join(rows))
    out = tmp_path / "out"
    arguments = ["audit", "run", "--adapter", str(finished / "adapter"), "--base", "demo"]
    arguments += ["--members", str(files["members"]), "--nonmembers", str(files["nonmembers"])]
    assert fedslm([*arguments, "--only", "membership", "--out", str(out)]) == 2
    report = audited(out)
    assert report["epsilon_claimed"] is None
    assert report["subject"]["kind"] == "adapter"
    assert report["findings"][0]["n_in"] > 0
    assert fedslm(["audit", "verify", str(out)]) == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["audit", "run"], 2),
        (["audit", "run", "nowhere"], 80),
        (["audit", "run", "nowhere", "--profile", "quick"], 2),
        (["audit", "run", "nowhere", "--only", "one-runs"], 12),
        (["audit", "run", "--adapter", "nowhere"], 2),
        (["audit", "run", "nowhere", "--members", "a.jsonl"], 2),
        (["audit", "verify", "nowhere.json"], 53),
        (["audit", "compare", "nowhere.json"], 53),
        (["adapter", "release", "nowhere", "--to", "there"], 42),
    ],
)
def test_bad_input_gets_one_clear_error(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedslm(arguments) == code
    message = capsys.readouterr().err
    assert message.count("error [") == 1
    assert "Traceback" not in message
