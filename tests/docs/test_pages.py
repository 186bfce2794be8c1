"""Links lead somewhere, the changelog keeps its form, decisions are numbered, nothing strays in."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ADRS = sorted((ROOT / "docs" / "adr").glob("*.md"))
COMMENT = re.compile(r"\A<!--.*?-->\n")  # a generated page says first what generates it
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
TITLE = re.compile(r"^#+ (.+)$", re.MULTILINE)

CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Privacy"}
RELEASE = re.compile(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}|\[Unreleased\]")

TEXT = {".py", ".md", ".toml", ".txt", ".cfg", ".yml", ".yaml", ".json", ".css", ".j2", ""}
# Spelt in pieces, or this file would be its own first finding.
FORBIDDEN = [
    r"(?<![\w.])/" + r"(?:root|work|tmp/dev|home/\w+|Users/\w+)/",
    r"\b" + r"pypi\." + r"org|python" + r"hosted|download\." + r"pytorch",
    r"registry\." + r"npmjs|deb\." + r"debian\.org",
]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    titles = TITLE.findall(FENCE.sub("", path.read_text(encoding="utf-8")))
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        inside = file.is_relative_to(ROOT) and file.exists()
        if not inside or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []


def test_the_expected_pages_exist() -> None:
    expected = {
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "docs/overview.md",
        "docs/privacy.md",
        "docs/threat-model.md",
        "docs/sharp-edges.md",
        "docs/errors.md",
        "docs/tutorial-simulate.md",
    }
    assert expected <= {name(page) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_has_one_title_and_it_comes_first(page: Path) -> None:
    text = COMMENT.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1


def test_the_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert releases
    assert all(RELEASE.fullmatch(release) for release in releases)
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= CHANGES
    for body in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        assert "### Privacy" in body


def test_the_newest_release_is_this_version_or_not_out_yet() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    newest = re.findall(r"^## (.+)$", text, re.MULTILINE)[0]
    assert newest == "[Unreleased]" or newest.startswith(f"[{project['version']}]")


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in ADRS] == list(range(1, len(ADRS) + 1))


@pytest.mark.parametrize("adr", ADRS, ids=name)
def test_a_decision_says_context_and_consequences(adr: Path) -> None:
    text = adr.read_text(encoding="utf-8")
    assert text.startswith(f"# {adr.name[:4]} ")
    assert re.search(r"^Status: (proposed|accepted|superseded by \d{4})$", text, re.MULTILINE)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def sources() -> list[Path]:
    """Return every text file of the project, wherever it is checked out."""
    folders = ("server", "client", "shared", "simulations", "tests", "docs", "examples")
    loose = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    nested = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    extra = [*(ROOT / "constraints").iterdir(), *(ROOT / ".ci").iterdir()]
    return [p for p in [*loose, *nested, *extra] if p.suffix in TEXT and p.name != ".coverage"]


def test_neither_machine_paths_nor_registry_hosts_stray_in() -> None:
    patterns = [re.compile(pattern) for pattern in FORBIDDEN]
    found = [
        (name(path), match.group())
        for path in sources()
        for pattern in patterns
        if (match := pattern.search(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_no_sentence_calls_text_anonymous() -> None:
    # Clipped, noised, released: words that say what was done.
    said = [
        name(p) for p in PAGES if re.search(r"anonymi[sz]ed", p.read_text("utf-8"), re.IGNORECASE)
    ]
    assert said == []
