"""Draws docs/images/dashboard.png: the dashboard of a made-up fleet in a real browser.

python -m tests.server.dashboard.picture docs/images/dashboard.png
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.chromium import Page, running_browser
from tests.server.dashboard.homes import OPERATOR, PASSWORD, full_home, supervised


def main(path: Path) -> None:
    """Serve a made-up fleet, log in, take the picture, stop."""
    with tempfile.TemporaryDirectory() as folder:
        home = full_home(Path(folder) / "home")
        url = f"https://localhost:{home.config.dashboard_port}"
        process = subprocess.Popen([sys.executable, "-m", "server.dashboard", str(home.path)])
        try:
            _wait(url)
            profile, flags = Path(folder) / "profile", ["--ignore-certificate-errors"]
            with supervised(home), running_browser(profile, flags=flags) as browser:
                page = browser.page()
                page.look(width=1200)
                _login(page, url)
                page.picture(path)
        finally:
            process.terminate()
            process.wait(10)


def _wait(url: str) -> None:
    """Wait until it is served; on loopback, for a picture, whoever answers will do."""
    for _ in range(200):
        try:
            httpx.get(f"{url}/healthz", verify=False)  # noqa: S501
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return


def _login(page: Page, url: str) -> None:
    """Log in."""
    page.goto(f"{url}/login")
    page.write(OPERATOR)
    page.press("Tab")
    page.write(PASSWORD)
    page.press("Enter")
    page.wait_loaded()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
