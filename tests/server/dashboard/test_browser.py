"""The dashboard in a real Chromium, served by its own process over HTTPS."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from server.dashboard.users import Cost
from server.fleetdb import FleetDatabase
from server.home import ServerHome
from tests.chromium import Browser, Page, running_browser
from tests.server.dashboard.homes import OPERATOR, PASSWORD, VIEWER, full_home

pytestmark = pytest.mark.slow

PAGES = (
    "/",
    "/runs",
    "/runs/clinics-night",
    "/runs/clinics-first",
    "/runs/trial-open",
    "/runs/clinics-first/report",
    "/runs/clinics-first/audit",
    "/runs/clinics-night/stop",
    "/nodes",
    "/nodes/clinic-3",
    "/nodes/clinic-3/revoke",
    "/budget",
    "/audits",
    "/adapters",
    "/adapters/rollback",
    "/activity",
)


@dataclass(frozen=True)
class Site:
    """A dashboard that is served."""

    home: ServerHome
    url: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if shutil.which("chromium") is None and shutil.which("chromium-browser") is None:
        pytest.skip("chromium is not installed")
    home = full_home(tmp_path_factory.mktemp("served") / "home", cost=Cost(n=2**10, r=8, p=1))
    process = subprocess.Popen(
        [sys.executable, "-m", "server.dashboard", str(home.path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"https://localhost:{home.config.dashboard_port}"
    try:
        _wait(f"{url}/healthz", home, process)
        yield Site(home, url, process)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait(10)


def _wait(url: str, home: ServerHome, process: subprocess.Popen[bytes]) -> None:
    """Wait for the server; its certificate is checked against the authority of the folder."""
    trust = ssl.create_default_context(cafile=str(home.ca_certificate))
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with suppress(httpx.TransportError):
            assert httpx.get(url, verify=trust, timeout=5).text == "ok\n"
            return
        time.sleep(0.1)
    pytest.fail("the dashboard did not start")


@pytest.fixture(scope="module")
def browser(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    profile = tmp_path_factory.mktemp("profile")
    with running_browser(profile, flags=["--ignore-certificate-errors"]) as running:
        yield running


def login(page: Page, site: Site, name: str) -> None:
    """Log in with the keyboard alone: the name has the focus, Enter sends the form."""
    page.call("Network.clearBrowserCookies")
    page.goto(f"{site.url}/login")
    assert page.evaluate("document.activeElement.id") == "name"
    page.write(name)
    page.press("Tab")
    page.write(PASSWORD)
    page.press("Enter")
    page.wait_loaded()
    assert page.evaluate("location.pathname") == "/"


@pytest.fixture(scope="module")
def page(site: Site, browser: Browser) -> Page:
    found = browser.page()
    found.look(width=1200)
    login(found, site, OPERATOR)
    return found


def test_every_page_loads_without_complaint_or_foreign_request(site: Site, page: Page) -> None:
    page.errors.clear()
    page.requests.clear()
    for path in PAGES:
        page.goto(site.url + path)
        assert page.evaluate("document.querySelectorAll('h1').length") == 1, path
        titled = "document.title.startsWith(document.querySelector('h1').textContent)"
        assert page.evaluate(titled), path
    assert page.errors == []
    own = urlsplit(site.url).netloc
    assert len(page.requests) >= 3 * len(PAGES)
    assert {urlsplit(url).netloc for url in page.requests} == {own}


def test_an_error_is_a_page_of_the_same_kind(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/runs/nothing-here")
    assert page.evaluate("document.querySelector('[role=alert]').textContent").strip() == (
        "There is no such run on this server. Go back to the overview."
    )
    page.goto(f"{site.url}/nowhere")
    assert page.evaluate("document.querySelector('h1').textContent") == "Not found"
    page.errors.clear()


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling(site: Site, page: Page, dark: bool) -> None:
    page.look(width=360, height=740, dark=dark)
    for path in PAGES:
        page.goto(site.url + path)
        root = "document.documentElement"
        wide, seen = page.evaluate(f"[{root}.scrollWidth, {root}.clientWidth]")
        assert wide <= seen <= 360, path
    page.look(width=1200)


CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const found = canvas.getImageData(0, 0, 1, 1).data;
    return [found[0], found[1], found[2], found[3] / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = (element) => {
    const chain = [];
    for (let one = element; one; one = one.parentElement) {
      chain.unshift(rgba(getComputedStyle(one).backgroundColor));
    }
    return chain.reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (["SCRIPT", "STYLE", "OPTION"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const svg = element.namespaceURI.endsWith("svg");
    found.push({
      text: walker.currentNode.textContent.trim().slice(0, 40),
      front: rgba(svg ? style.fill : style.color),
      back: behind(element),
      size: parseFloat(style.fontSize),
      weight: parseInt(style.fontWeight, 10),
    });
  }
  return found;
})()"""

EDGES = """[...document.querySelectorAll("input:not([type=hidden]), select, textarea, button")]
  .filter((one) => one.checkVisibility())
  .map((one) => {
    const style = getComputedStyle(one);
    const page = getComputedStyle(document.body).backgroundColor;
    return [style.borderTopColor, style.backgroundColor, page].map((text) => {
      const canvas = document.createElement("canvas").getContext("2d");
      canvas.fillStyle = text;
      canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data];
    });
  })"""


def luminance(colour: list[float]) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [c / 255 for c in colour[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    """WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_formula_knows_the_values_of_the_standard() -> None:
    assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
    assert contrast([119, 119, 119], [255, 255, 255]) == pytest.approx(4.48, abs=0.01)
    assert contrast([118, 118, 118], [255, 255, 255]) >= 4.5


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_the_contrast_of_wcag_aa(site: Site, page: Page, dark: bool) -> None:
    page.look(width=1200, dark=dark)
    checked = 0
    for path in (*PAGES, "/nowhere"):
        page.goto(site.url + path)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        for seen in page.evaluate(CONTRAST):
            large = seen["size"] >= 24 or (seen["size"] >= 18.66 and seen["weight"] >= 700)
            ratio = contrast(seen["front"], seen["back"])
            assert ratio >= (3.0 if large else 4.5), (path, seen, ratio)
            checked += 1
        for border, inside, outside in page.evaluate(EDGES):
            assert max(contrast(border, outside), contrast(inside, outside)) >= 3.0, path
    assert checked > 800
    page.look(width=1200)
    page.errors.clear()


def test_a_node_is_revoked_with_the_keyboard_alone(site: Site, browser: Browser) -> None:
    page = browser.page()
    page.look(width=1200)
    login(page, site, OPERATOR)
    page.goto(f"{site.url}/nodes")
    page.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert seen >= 0
    _tab_to(page, "Revoke clinic-2")
    page.press("Enter")
    page.wait_loaded()
    assert page.evaluate("location.pathname") == "/nodes/clinic-2/revoke"
    _tab_to(page, None, element="reason")
    page.write("lost in a taxi")
    _tab_to(page, None, element="confirm")
    page.write("clinic-2")
    page.press("Tab")
    page.press("Enter")
    page.wait_loaded()
    assert page.evaluate("location.pathname") == "/nodes"
    notice = page.evaluate("document.querySelector('[role=status].banner').textContent")
    assert "Node clinic-2 was revoked" in notice
    with FleetDatabase(site.home.fleet_database) as fleet:
        entry = fleet.node_by_name("clinic-2")
    assert entry is not None
    assert entry.revoked_reason == "lost in a taxi"
    assert page.errors == []


def _tab_to(page: Page, text: str | None, *, element: str | None = None) -> None:
    """Press Tab until something has the focus, which must be visible each time."""
    for _ in range(80):
        page.press("Tab")
        found = page.evaluate(
            "(() => { const one = document.activeElement; const style = getComputedStyle(one);"
            "return [one.textContent.trim(), one.id, style.outlineStyle,"
            "parseFloat(style.outlineWidth)]; })()"
        )
        assert found[2] == "solid", found
        assert found[3] >= 2, found
        if (text is not None and found[0] == text) or (element is not None and found[1] == element):
            return
    pytest.fail(f"never reached {text or element}")


def test_tables_forms_and_pictures_have_names(site: Site, page: Page) -> None:
    for path in PAGES:
        page.goto(site.url + path)
        counted: dict[str, Any] = page.evaluate(
            """({
              caption: [...document.querySelectorAll("table")].filter((t) => !t.caption).length,
              scope: [...document.querySelectorAll("th")].filter((t) => !t.scope).length,
              label: [...document.querySelectorAll("input:not([type=hidden]), select, textarea")]
                .filter((one) => one.labels.length !== 1).length,
              svg: [...document.querySelectorAll("svg")]
                .filter((one) => !one.closest("[aria-hidden=true]")).length,
              frame: [...document.querySelectorAll("iframe")].filter((f) => !f.title).length,
              twice: [...document.querySelectorAll("[id]")]
                .filter((e, i, all) => all.findIndex((o) => o.id === e.id) !== i).length,
              empty: [...document.querySelectorAll("a, button")]
                .filter((one) => !one.textContent.trim()).length,
              lang: document.documentElement.lang === "en" ? 0 : 1,
            })"""
        )
        assert set(counted.values()) == {0}, (path, counted)


def test_figures_renew_themselves_without_moving_the_page(site: Site, page: Page) -> None:
    page.look(width=1200)
    page.goto(f"{site.url}/runs/clinics-night")
    tall = page.evaluate("document.documentElement.scrollHeight")
    page.evaluate(
        "window.shifted = 0; new PerformanceObserver((list) => { for (const one of "
        "list.getEntries()) window.shifted += one.value; })"
        ".observe({type: 'layout-shift', buffered: true})"
    )
    metrics = site.home.runs / "clinics-night" / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    row = {**json.loads(lines[-1]), "round": 15, "epsilon": 5.5866}
    metrics.write_text("\n".join([*lines, json.dumps(row)]) + "\n")
    try:
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.until("document.getElementById('tiles').textContent.includes('15 / 30')")
        page.until("document.getElementById('live-said').textContent.includes('updated')")
        grown = page.evaluate("document.documentElement.scrollHeight") - tall
        assert 0 <= grown < 80
        assert page.evaluate("window.shifted") < 0.02
        page.evaluate("document.getElementById('live-pause').click()")
        assert page.evaluate("document.getElementById('live-pause').ariaPressed") == "true"
    finally:
        page.evaluate("sessionStorage.clear()")
        metrics.write_text("\n".join(lines) + "\n")
    assert page.errors == []


def test_a_page_that_was_logged_out_says_so(site: Site, browser: Browser) -> None:
    page = browser.page()
    page.look(width=1200)
    page.goto(f"{site.url}/nodes")
    if page.evaluate("location.pathname") == "/login":
        login(page, site, VIEWER)
        page.goto(f"{site.url}/nodes")
    cookies = page.call("Network.getCookies", urls=[site.url])["cookies"]
    assert all(one["secure"] and one["httpOnly"] for one in cookies)
    assert {one["sameSite"] for one in cookies} == {"Strict"}
    page.call("Network.clearBrowserCookies")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.until("document.getElementById('live').textContent.includes('You were logged out')")
    link = page.evaluate("document.querySelector('#live a').getAttribute('href')")
    assert link == "/login?next=%2Fnodes"
    for one in cookies:
        page.call(
            "Network.setCookie",
            url=site.url,
            name=one["name"],
            value=one["value"],
            secure=True,
            httpOnly=True,
            sameSite="Strict",
            path="/",
        )


def test_a_server_that_went_away_is_said(site: Site, browser: Browser) -> None:
    page = browser.page()
    page.goto(f"{site.url}/budget")
    if page.evaluate("location.pathname") == "/login":
        login(page, site, VIEWER)
        page.goto(f"{site.url}/budget")
    page.call(
        "Network.emulateNetworkConditions",
        offline=True,
        latency=0,
        downloadThroughput=-1,
        uploadThroughput=-1,
    )
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.until("document.getElementById('live').textContent.includes('does not answer')")


def test_a_framed_report_reaches_nothing(site: Site, page: Page) -> None:
    page.errors.clear()
    page.goto(f"{site.url}/runs/clinics-first/report")
    frame = "document.querySelector('iframe')"
    assert page.evaluate(f"{frame}.contentDocument") is None
    assert page.evaluate("window.x") is None
    targets = page.call("Target.getTargets")["targetInfos"]
    framed = [one["url"] for one in targets if one["type"] == "iframe"]
    assert len(framed) == 1
    assert framed[0].endswith("/clinics-first/report.html")
    page.errors.clear()


def test_it_stops_when_told(tmp_path: Path, site: Site) -> None:
    del site
    home = full_home(tmp_path / "home")
    process = subprocess.Popen([sys.executable, "-m", "server.dashboard", str(home.path)])
    try:
        url = f"https://localhost:{home.config.dashboard_port}"
        _wait(f"{url}/healthz", home, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in {0, -signal.SIGTERM}
    finally:
        process.kill()
        process.wait(10)
