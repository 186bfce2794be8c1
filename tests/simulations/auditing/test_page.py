"""The audit page: complete, escaped, self-contained, and never in the way of a newer report."""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from server.audit.commitment import commitment_of, opening_of
from server.audit.verify import SIGNATURE, sign_report
from shared.crypto import SigningKey
from shared.errors import ReportInvalid
from simulations import auditrates, auditupdates
from simulations.auditfigures import primary_score
from simulations.auditing.page import write_page
from tests.simulations import auditreports
from tests.simulations.htmlpage import Page

Json = dict[str, Any]

SECTIONS = (
    "verdict",
    "findings",
    "bounds",
    "membership",
    "exposure",
    "extraction",
    "prompts",
    "conformance",
    "updates",
    "queries",
    "words",
    "canaries",
    "limits",
    "verify",
)
EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>$x$"


def write(folder: Path, report: Json) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(report))
    path = write_page(folder)
    assert path == folder / "audit.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report() -> Json:
    return auditreports.every()


@pytest.fixture(scope="module")
def text(report: Json, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("every"), report)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def row_of(page: Page, audit: str) -> list[str]:
    (found,) = [row for row in page.rows if row and row[0].startswith(audit) and len(row) > 4][:1]
    return found


def finding_of(report: Json, audit: str) -> Json:
    (found,) = [finding for finding in report["findings"] if finding["audit"] == audit]
    return dict(found)


def test_the_page_is_well_formed_and_in_its_order(page: Page) -> None:
    assert page.open == []
    assert len(page.identifiers) == len(set(page.identifiers))
    assert tuple(i for i in page.identifiers if i in SECTIONS) == SECTIONS
    assert {f"#{name}" for name in SECTIONS} <= set(page.links)


def test_the_page_asks_nobody_for_anything(text: str, page: Page) -> None:
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & {t for t, _ in page.tags}
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) <= {"http://www.w3.org/2000/svg"}
    used = set(re.findall(r"url\(#([^)]*)\)", text))
    assert used <= set(page.identifiers)


def test_every_picture_has_words_and_a_name(page: Page) -> None:
    labels = [a.get("aria-label") or "" for _, a in page.tags if a.get("role") == "img"]
    figures = sum(tag == "figure" for tag, _ in page.tags)
    assert len(labels) == figures == sum(tag == "figcaption" for tag, _ in page.tags) == 12
    assert all(re.search(r"\d", label) for label in labels)
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert sum(tag == "caption" for tag, _ in page.tags) == tables > 8


def test_each_finding_has_its_row_with_what_the_report_says(page: Page, report: Json) -> None:
    for audit in auditreports.ATTACKS:
        finding, row = finding_of(report, audit), row_of(page, audit)
        control = report["controls"][audit]
        assert finding["verdict"] in row[1]
        assert finding["strength"] in row[1]
        for cell, side in ((row[3], finding), (row[4], control)):
            shown = float(cell.split("[")[0].split("caught")[0])
            assert shown == pytest.approx(side["value"], rel=0.01, abs=1e-9)
            if side["interval"] is not None:
                low, high = re.findall(r"\[(.*), (.*)\]", cell)[0]
                assert float(low) == pytest.approx(side["interval"][0], rel=0.01)
                assert float(high) == pytest.approx(side["interval"][1], rel=0.01)
        assert row[4].endswith("caught")
        assert float(row[6]) == pytest.approx(finding["ceiling"], rel=0.01)
    assert row_of(page, "span")[4] == "built incaught"
    assert row_of(page, "extraction")[3].startswith("15\u00a0%[")


def test_epsilon_never_stands_without_its_delta(page: Page) -> None:
    words = " ".join(" ".join(page.texts).split())
    for claimed in ("Claimed epsilon 7.94", "Epsilon for a record canary 11.9"):
        assert f"{claimed} at delta 5·10⁻⁴" in words
    assert "Epsilon 7.94 at delta 5·10⁻⁴, per client, add-or-remove-one, mode" in words
    assert "held against epsilon 11.9 at delta 5·10⁻⁴" in words
    assert "epsilon, at delta 5·10⁻⁴; at most" in words
    assert "Bounds are stated at delta 5·10⁻⁴." in words


def test_the_verdict_says_what_it_means_and_does_not(text: str) -> None:
    assert '<div class="verdict-panel inconclusive">' in text
    assert "It means:" in text
    assert "It does not mean:" in text
    words = set(re.findall(r'class="verdict (\S+)"', text))
    assert words <= {"violation", "consistent", "inconclusive"}
    shown = re.sub(r"<[^>]+>", " ", text)
    assert not re.search(r"\b(pass|passed|safe|private)\b(?! twin)", shown, flags=re.IGNORECASE)


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("violation", "contradicts what is claimed or declared: one-run"),
        ("consistent", "shown to work where it must"),
        ("perfect", "not every audit could have contradicted it"),
    ],
)
def test_each_verdict_has_its_own_words(tmp_path: Path, verdict: str, said: str) -> None:
    found = {"audit": "one-run", "verdict": verdict}
    other = {"audit": "later", "verdict": "consistent"}
    written = write(
        tmp_path,
        {"schema": 2, "verdict": verdict, "epsilon_claimed": 1.0, "findings": [found, other]},
    )
    assert said in written
    assert "perfect" not in written


def test_seeded_noise_is_said_where_there_is_noise(tmp_path: Path) -> None:
    told = "Whoever knows the seed can take the noise away"
    for private in (True, False):
        report = auditreports.small(0.6, private=private)
        report["findings"] = []
        assert (told in write(tmp_path, report)) == private


def test_checks_of_the_mechanism_are_shown_corrected(page: Page, report: Json) -> None:
    checks = finding_of(report, "mechanism")["evidence"]["derived"]["checks"]
    rows = {(row[0], row[1]): row for row in page.rows if len(row) == 4}
    shown = 0
    for check in checks:
        for name, p_value in check["p_values"].items():
            cell = rows[check["check"], name][2]
            assert float(cell) == pytest.approx(min(1.0, 32 * p_value), rel=0.06)
            shown += 1
    assert shown >= 10


def test_an_audit_that_could_not_run_says_why(page: Page) -> None:
    ledger = [r for r in page.rows if r and r[0].startswith("ledger")]
    assert len(ledger) == 1
    assert "This audit needs what is not here (LedgerArtefact)" in ledger[0][-1]
    assert "not run" in ledger[0][1]


def test_coins_and_commitment_are_revealed(text: str) -> None:
    for shown in ("c0" * 32, "9f" * 30, "5e" * 32):
        assert shown in text
    assert "The ledger held the commitment to the coins before the first round." in text


def test_what_is_revealed_is_held_against_the_commitment(tmp_path: Path) -> None:
    opening = opening_of(
        salt="ab" * 32,
        repeats=4,
        coins=[True, False],
        kinds=["secret"] * 2,
        digests=["cd" * 32] * 2,
    )
    report = auditreports.small(0.6, private=True)
    report["findings"] = []
    report["canaries"] |= {"opening": opening, "commitment": commitment_of(opening)}
    assert "is what was committed to." in write(tmp_path, report)
    report["canaries"]["opening"]["coins"] = "40"
    assert "is not what was committed to." in write(tmp_path, report)
    report["canaries"]["opening"]["coins"] = "no hex"
    assert "is not what was committed to." in write(tmp_path, report)


def test_text_recovered_from_updates_is_drawn_by_what_was_done_to_them() -> None:
    arms = [("plain", 1, 0.9), ("noised", 1, 0.2), ("noised", 4, 0.1)]
    results = [
        {"arm": arm, "batch": batch, "rouge_1": rouge, "interval": [0.0, 1.0], "baseline": 0.15}
        for arm, batch, rouge in arms
    ]
    finding = {"audit": "inversion", "evidence": {"derived": {"results": results}}}
    drawn = auditupdates.inversion_picture({"findings": [finding]})
    assert drawn is not None
    assert "plain 0.900, noised 0.200, noised, 4 texts 0.100" in drawn.alt
    assert drawn.svg.count("noised") >= 2
    assert auditupdates.inversion_picture({"findings": []}) is None


def test_the_kind_of_personal_data_that_is_hidden_least_is_named(report: Json) -> None:
    drawn = auditrates.redaction_picture(report)
    assert drawn is not None
    assert "Of 2 protected kinds, id is hidden least: 0 %." in drawn.alt


def test_a_commitment_that_came_late_is_said(tmp_path: Path) -> None:
    late = auditreports.small(0.6, private=True)
    late["canaries"]["committed"] = False
    assert "does not show that the coins were committed" in write(tmp_path, late)


def test_who_signed_is_said(tmp_path: Path, report: Json) -> None:
    key = SigningKey.load_or_create(tmp_path / "key")
    bare = {**report, "findings": []}
    assert "The report is not signed." in write(tmp_path, bare)
    signature = sign_report(bare, key)
    (tmp_path / SIGNATURE).write_text(json.dumps(signature.to_dict()))
    signed = write(tmp_path, bare)
    assert "held when this page was written" in signed
    assert signature.public_key in signed
    assert signature.sha256 in signed
    assert "does not belong to it" in write(tmp_path, {**bare, "seed": 8})
    (tmp_path / SIGNATURE).write_text("{")
    assert "is not a signature" in write(tmp_path, bare)


def test_a_report_is_needed_and_of_this_form(tmp_path: Path) -> None:
    with pytest.raises(ReportInvalid):
        write_page(tmp_path)
    (tmp_path / "audit.json").write_text('{"schema": 1}')
    with pytest.raises(ReportInvalid, match="schema=1"):
        write_page(tmp_path)
    assert not (tmp_path / "audit.html").exists()


def test_equal_reports_give_equal_pages(tmp_path: Path, report: Json, text: str) -> None:
    assert write(tmp_path, report) == text


def test_a_finding_of_a_later_audit_is_shown(tmp_path: Path) -> None:
    later = {
        "audit": "telepathy",
        "verdict": "violation",
        "strength": "certified",
        "metric": "thoughts_read",
        "value": 12.5,
        "interval": [10.0, 15.0],
        "explanation": "It reads thoughts.",
        "evidence": {"derived": {"kinds": 7}},
    }
    found = Page(write(tmp_path, {"schema": 2, "verdict": "violation", "findings": [later]}))
    row = row_of(found, "telepathy")
    assert "thoughts read" in row[2]
    assert row[3] == "12.5[10, 15]"
    assert "It reads thoughts." in found.texts


@pytest.mark.parametrize(
    "given", [{}, {"findings": []}, {"findings": 3, "controls": [], "canaries": "x"}]
)
def test_an_empty_report_is_a_page(tmp_path: Path, given: Json) -> None:
    assert "No audit was asked for" in write(tmp_path, {"schema": 2, **given})


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a report, lists of numbers by their first three entries."""
    inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value))[:3]
    found = []
    for key, entry in inner:
        found.append((*path, key))
        if isinstance(entry, dict | list):
            found += _places(entry, (*path, key))
    return found


def _damaged(report: Json, seed: int, share: float) -> Json:
    """A report in which a share of all entries is gone or something else."""
    rng = random.Random(seed)
    damaged = copy.deepcopy(report)
    junk: tuple[Any, ...] = (
        None,
        "x",
        -1,
        1e308,
        [],
        {},
        [None],
        {"a": 1},
        True,
        10**400,
        [1, 2, 3],
        "$\\frac$",
    )
    for path in _places(report):
        if path[0] == "schema" or rng.random() > share:
            continue
        holder: Any = damaged
        try:
            for key in path[:-1]:
                holder = holder[key]
            if rng.random() < 0.5:
                del holder[path[-1]]
            else:
                holder[path[-1]] = copy.deepcopy(rng.choice(junk))
        except (KeyError, IndexError, TypeError):
            continue  # what held it is gone already
    return damaged


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_no_damage_breaks_the_page(tmp_path: Path, report: Json, seed: int) -> None:
    share = (0.01, 0.03, 0.1)[seed % 3]
    written = write(tmp_path, _damaged(report, seed, share))
    assert Page(written).open == []


def test_everything_from_the_report_is_escaped(tmp_path: Path) -> None:
    report = auditreports.every()

    def rename(entry: Json, *path: str) -> None:
        for key in path[:-1]:
            entry = entry[key]
        kinds = entry[path[-1]]
        entry[path[-1]] = {f"{EVIL}{name}": value for name, value in kinds.items()}

    derived: Callable[[str], Json] = lambda audit: next(  # noqa: E731
        f for f in report["findings"] if f["audit"] == audit
    )["evidence"]["derived"]
    rename(derived("membership"), "sets")
    rename(derived("exposure"), "kinds")
    rename(derived("extraction"), "kinds")
    rename(derived("prompt-leak"), "families")
    rename(derived("mechanism")["checks"][0], "p_values")
    report["findings"].append(
        {"audit": EVIL, "verdict": EVIL, "strength": EVIL, "metric": EVIL, "explanation": EVIL}
    )
    report["canaries"] |= {"commitment": EVIL, "coins": EVIL, "salt": EVIL}
    report["canaries"]["kinds"][0]["kind"] = EVIL
    report["subject"] |= {"scenario": EVIL, EVIL: EVIL, "versions": {EVIL: EVIL}}
    report |= {"unit": EVIL, "neighboring_relation": EVIL, "mode": EVIL, "profile": EVIL}
    report["controls"]["one-run"]["source"] = EVIL
    written = write(tmp_path, report)
    page = Page(written)
    assert page.open == []
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "<script" not in written
    assert written.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 15


def test_much_evidence_makes_no_large_page(tmp_path: Path) -> None:
    report = auditreports.small(0.6, private=True)
    membership = finding_of(report, "membership")["evidence"]["sets"]
    rng = random.Random(1)
    for one in membership:
        one["scores"]["reference"] = {
            side: [rng.gauss(shift, 1) for _ in range(20_000)]
            for side, shift in (("in", 0.2), ("out", 0.0))
        }
    kinds = finding_of(report, "one-run")["evidence"]["derived"]["kinds"]
    kinds += [copy.deepcopy(kinds[0]) for _ in range(3000)]
    checks = {"checks": [{"check": "c", "p_values": {str(i): 0.5}} for i in range(3000)]}
    report["findings"].append({"audit": "mechanism", "evidence": {"derived": checks}})
    assert len(write(tmp_path, report).encode()) < 2_000_000


def test_the_run_report_is_named_where_there_is_one(tmp_path: Path) -> None:
    report = {"schema": 2, "findings": []}
    assert "report.html" not in write(tmp_path, report)
    (tmp_path / "report.html").write_text("")
    assert 'href="report.html"' in write(tmp_path, report)


PROBE = """<iframe id="page" src="audit.html" style="width:{width}px; height:900px"></iframe>
<script>document.getElementById("page").onload = function () {{
  const root = this.contentDocument.documentElement;
  document.title = ["wide", root.scrollWidth, root.clientWidth].join(" ");
}}</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [340, 390, 1280])
def test_a_browser_needs_no_sideways_scrolling(tmp_path: Path, report: Json, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed")
    write(tmp_path, report)
    (tmp_path / "probe.html").write_text(PROBE.format(width=width))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command = [browser, *flags, "--virtual-time-budget=8000", "--dump-dom"]
    ran = subprocess.run(
        [*command, (tmp_path / "probe.html").as_uri()],
        capture_output=True,
        check=True,
        timeout=120,
    )
    found = re.search(rb"<title>wide (\d+) (\d+)", ran.stdout)
    assert found is not None
    assert int(found[1]) <= int(found[2])


def test_the_curve_is_of_the_score_that_gives_the_value(report: Json) -> None:
    """Oracle: the area under the drawn curve is the AUC in the finding."""
    finding = finding_of(report, "membership")
    derived = finding["evidence"]["derived"]
    for one in finding["evidence"]["sets"]:
        score = primary_score(report, one["name"])
        inside, outside = (np.array(one["scores"][score][side]) for side in ("in", "out"))
        u = mannwhitneyu(inside, outside).statistic / (inside.size * outside.size)
        known = derived["sets"][one["name"]]["scores"][score]["auc"]
        assert u == pytest.approx(known)
        if one["name"] == derived["primary_set"]:
            assert u == pytest.approx(finding["value"])
