"""The run report: complete, escaped, self-contained, honest in every mode."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import RunFolderError
from simulations import reporttext
from simulations.report import write_report
from tests.simulations.htmlpage import Page
from tests.simulations.runs import make_run


def _edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = make_run(tmp_path_factory.mktemp("private"))
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = make_run(tmp_path_factory.mktemp("plain"), private=False, gain=1.6)
    return write_report(folder).read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_identifiers_are_unique(private: str, plain: str) -> None:
    for text in (private, plain):
        page = Page(text)
        assert page.open == []
        assert len(page.identifiers) == len(set(page.identifiers))


def test_the_page_asks_nobody_for_anything(private: str) -> None:
    page = Page(private)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & {t for t, _ in page.tags}
    assert "default-src 'none'" in private
    assert "@import" not in private
    assert set(re.findall(r"url\(([^)]*)\)", private)) <= {
        f"#{identifier}" for identifier in page.identifiers
    }
    assert set(re.findall(r"https?://[^\"'\s<]+", private)) <= {"http://www.w3.org/2000/svg"}


def test_the_report_is_small(private: str) -> None:
    assert len(private.encode()) < 2_000_000


def test_every_section_of_the_contract_is_there(private: str) -> None:
    page = Page(private)
    wanted = ["result", "privacy", "audit", "clients", "traffic", "statement", "reproduce"]
    assert [i for i in page.identifiers if i in wanted] == wanted
    assert {f"#{name}" for name in wanted} <= set(page.links)
    for title in (
        "Held-out loss by round",
        "Held-out perplexity by round",
        "Epsilon by round",
        "Clients, before and after",
        "Traffic, added up over the rounds",
        "Lower bounds on epsilon",
        "Membership: ROC curves",
        "Exposure: secret",
    ):
        assert f"<h3>{title}</h3>" in private
    assert "What the base learned." in private
    assert "made-up figures" in private


def test_every_plot_has_words_for_those_who_cannot_see_it(private: str) -> None:
    page = Page(private)
    labels = [a.get("aria-label") or "" for tag, a in page.tags if a.get("role") == "img"]
    assert len(labels) == sum(tag == "figure" for tag, _ in page.tags) == 8
    assert sum(tag == "figcaption" for tag, _ in page.tags) == 8
    assert all(re.search(r"\d", label) for label in labels)
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert sum(tag == "caption" for tag, _ in page.tags) == tables > 0


def test_epsilon_never_stands_alone(private: str) -> None:
    tile = private[private.index("Epsilon spent") :][:400]
    for word in ("7.94", "5·10⁻⁴", "per client", "add-or-remove-one", "20 releases"):
        assert word in tile
    assert "31.20 at the same delta" in private  # whoever sees who took part
    assert "no protection in this mode" in private  # the server of client-central
    assert "outside the privacy budget" in private


def test_seeded_noise_is_announced(private: str, tmp_path: Path) -> None:
    assert "Whoever knows the seed can take the noise away" in private
    folder = make_run(tmp_path)
    _edit(folder, "summary.json", lambda s: s["privacy"].update(noise_source="os-entropy"))
    text = write_report(folder).read_text(encoding="utf-8")
    assert "Whoever knows the seed" not in text
    assert "cannot be repeated" in text


def test_a_run_without_privacy_says_so_in_red_and_shows_no_epsilon(plain: str) -> None:
    assert '<div class="banner red" role="note"><strong>No privacy:</strong>' in plain
    assert "Epsilon by round" not in plain
    assert "Epsilon spent" not in plain
    assert "No epsilon is claimed" in plain
    assert "Epsilon (RDP)" not in plain
    assert "Exposure: secret" in plain


def test_verdicts_are_only_the_three_words(private: str, plain: str) -> None:
    for text in (private, plain):
        words = set(re.findall(r'class="verdict (\S+)"', text))
        assert words <= {"violation", "consistent", "inconclusive"}
        assert words
        shown = re.sub(r"<[^>]+>", " ", text)
        assert not re.search(r"\bpass(ed)?\b", shown, flags=re.IGNORECASE)


def test_everything_from_a_file_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
    folder = make_run(tmp_path)

    def poison(summary: dict[str, Any]) -> None:
        summary.update(scenario=evil, base_model=evil, warnings=[evil], data={evil: evil})
        summary["statement"] = {"clauses": [{"topic": evil, "text": evil, "alarm": True}]}
        summary["versions"] = {evil: evil}
        summary["privacy"]["unit"] = evil

    _edit(folder, "summary.json", poison)
    _edit(folder, "evaluation.json", lambda e: [side.update({evil: 99.0}) for side in e.values()])
    _edit(folder, "audit.json", lambda a: a["findings"][0].update(explanation=evil, audit=evil))
    (folder / "config.toml").write_text(f"# {evil}\n")
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_equal_files_give_an_equal_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path, rounds=2)
    first = write_report(folder).read_bytes()
    (folder / "report.html").unlink()
    assert write_report(folder).read_bytes() == first


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("audit.json", "No audit was run"),
        ("evaluation.json", "No client was measured"),
        ("metrics.jsonl", "No round was finished"),
        ("config.toml", "Reproduce"),
    ],
)
def test_a_missing_part_is_said_and_not_invented(tmp_path: Path, missing: str, said: str) -> None:
    folder = make_run(tmp_path)
    (folder / missing).unlink()
    assert said in write_report(folder).read_text(encoding="utf-8")


def test_the_audit_is_shown_beside_its_control_and_leads_to_its_own_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    audit = json.loads((folder / "audit.json").read_text())
    text = write_report(folder).read_text(encoding="utf-8")
    rows = {row[0]: row for row in Page(text).rows if row}
    for finding in audit["findings"]:
        row = rows[next(cell for cell in rows if cell.startswith(finding["audit"]))]
        assert finding["verdict"] in row[1]
        control = audit["controls"][finding["audit"]]
        for cell, value in ((row[3], finding["value"]), (row[4], control["value"])):
            assert float(cell.split("[")[0].split("caught")[0]) == pytest.approx(value, rel=0.01)
        assert "caught" in row[4]
    assert "the non-private twin of this run" in text
    assert 'href="audit.html"' not in text
    (folder / "audit.html").write_text("")
    assert 'href="audit.html"' in write_report(folder).read_text(encoding="utf-8")


def test_an_audit_of_an_older_form_breaks_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    old = {"verdict": "consistent", "findings": [{"audit": "membership", "details": {}}]}
    (folder / "audit.json").write_text(json.dumps(old))
    text = write_report(folder).read_text(encoding="utf-8")
    assert Page(text).open == []
    assert "membership" in text


def test_a_run_stopped_by_its_budget_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path, rounds=1)
    _edit(folder, "summary.json", lambda s: s.update(status="budget-exhausted"))
    assert "would have passed the privacy cap" in write_report(folder).read_text(encoding="utf-8")


def test_an_audit_that_could_not_run_leaves_no_hole(tmp_path: Path) -> None:
    folder = make_run(tmp_path)

    def fail(audit: dict[str, Any]) -> None:
        for finding in audit["findings"]:
            evidence = {"error": "audit-error", "reason": "no model"}
            finding.update(value=None, interval=None, ceiling=None, evidence=evidence)
            finding.update(verdict="inconclusive", explanation="It could not be run. No model.")

    _edit(folder, "audit.json", fail)
    text = write_report(folder).read_text(encoding="utf-8")
    assert "Membership" not in text
    assert "Lower bounds" not in text
    assert text.count("It could not be run. No model.") == 6  # in the table and in words
    assert text.count('class="verdict inconclusive"') == 8  # a tile, a sentence, and 3 twice


def test_rounds_that_were_not_measured_are_dashes(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    quiet = [json.dumps({**json.loads(line), "loss": None, "perplexity": None}) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(quiet) + "\n")
    text = write_report(folder).read_text(encoding="utf-8")
    assert "No round was measured" in text
    assert "Held-out loss by round" not in text


def test_without_a_summary_or_with_a_damaged_one_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"has no summary\.json"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(RunFolderError):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_worst_tenth_is_named_by_loss_after_training() -> None:
    before = {f"c{n:02d}": 5.0 for n in range(20)}
    after = {f"c{n:02d}": 3.0 + n / 100 for n in range(20)} | {"c03": 6.0}
    spread = reporttext.client_spread({"before": before, "after": after | {"new": 9.0}})
    assert spread is not None
    assert len(spread.after) == 20  # a client without a value before is not compared
    assert (spread.worst_count, spread.worse) == (2, 1)
    assert [row[0] for row in spread.worst] == ["c03", "c19"]
    assert spread.worst_after == pytest.approx((6.0 + 3.19) / 2)
    assert spread.median_after == pytest.approx(3.105)
    assert reporttext.client_spread({"before": before, "after": {"c00": None}}) is None


def test_traffic_is_the_cohorts_and_not_one_clients() -> None:
    record = {"cohort": 3, "bytes_up_per_client": 10, "bytes_down_per_client": 20}
    total = reporttext.traffic([record, {**record, "cohort": 0}, record])
    assert total is not None
    assert (total.up, total.down) == (60, 120)
    assert reporttext.traffic([]) is None
    # Two clients of rank 2 for each of rank 4; a round tells nothing of who did not answer.
    ranks = [{"rank": 2, "clients": 4}, {"rank": 4, "clients": 2}]
    known = {**record, "bytes_by_rank": {"2": {"up": 4, "down": 5}, "4": {"up": 10, "down": 20}}}
    mixed = reporttext.traffic([known, record], ranks)
    assert mixed is not None
    assert (mixed.up, mixed.down) == (3 * 6 + 30, 3 * 10 + 60)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12345, "12\u202f345"),
        (0, "0"),
        (3.14159, "3.142"),
        (100.04, "100.0"),
        (1e-5, "1·10⁻⁵"),
        (0.00050118, "5.012·10⁻⁴"),
        (math.nan, "\u2013"),
        (-math.inf, "\u2013"),
        (10**400, "\u2013"),
        (None, "\u2013"),
        (True, "\u2013"),
        ("7", "\u2013"),
    ],
)
def test_figures(value: object, shown: str) -> None:
    assert reporttext.figure(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.4, "0.4 s"),
        (59.94, "59.9 s"),
        (131.2, "2 min 11 s"),
        (3600 * 5 + 61, "5 h 1 min"),
        (None, "not measured"),
    ],
)
def test_durations(value: object, shown: str) -> None:
    assert reporttext.duration(value) == shown


def test_sizes_settings_changes_and_facts() -> None:
    assert reporttext.size(24_700) == "24.7\u00a0kB"
    assert reporttext.size(12) == "12\u00a0bytes"
    assert reporttext.size(None) == "not measured"
    assert (reporttext.setting(0.5), reporttext.setting(1e-5)) == ("0.5", "1·10⁻⁵")
    assert reporttext.change(100, 40) == "\u221260.0\u00a0%"
    assert reporttext.change(100, 104) == "+4.0\u00a0%"
    assert reporttext.change(0, 4) == reporttext.change(None, 1) == ""
    assert reporttext.facts({"train_examples": 3, "ok": True, "list": [1, "x"], "n": None}) == [
        ("Train examples", "3"),
        ("Ok", "yes"),
        ("List", "1, x"),
        ("N", "\u2013"),
    ]
    assert reporttext.facts(None) == []


def test_a_statement_may_be_clauses_titles_or_sentences() -> None:
    clause = reporttext.Clause(title="Not protected", text="t", alarm=True)
    given = {"clauses": [{"topic": "not-protected", "text": "t", "alarm": True}]}
    assert reporttext.clauses(given) == [clause]
    assert reporttext.clauses([{"title": "A", "text": "t"}, "plain"]) == [
        reporttext.Clause(title="A", text="t", alarm=False),
        reporttext.Clause(title="", text="plain", alarm=False),
    ]
    assert reporttext.clauses(None) == reporttext.clauses("text") == []


def test_a_distributed_run_says_what_holds_against_whom(tmp_path: Path) -> None:
    folder = make_run(tmp_path)

    def distribute(summary: dict[str, Any]) -> None:
        summary["privacy"] |= {
            "mode": "client-distributed",
            "noise": "skellam",
            "accountant": "rdp",
            "server_epsilon": 77.25,
            "example": {
                "unit": "example",
                "neighboring_relation": "add-or-remove-one",
                "epsilon": 1.75,
                "delta": 1e-5,
                "releases": 120,
            },
        }

    _edit(folder, "summary.json", distribute)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    records[1]["aborted"] = "too few"
    records[-1]["clipping_norm"] = 0.125
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    text = write_report(folder).read_text(encoding="utf-8")
    assert Page(text).open == []
    for said in (
        "77.25 at the same delta",
        "Skellam, in shares of the clients",
        "1.750 at delta",
        "a second promise",
        "RDP, reported",
        "looser bound than PLD",
        "2: too few clients were left",
        "moved to 0.125",
    ):
        assert said in text
    assert "PLD, reported" not in text
    assert "RDP, cross-check" not in text
