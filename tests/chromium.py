"""A real headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from websockets.sync.client import ClientConnection, connect

Json = dict[str, Any]

SECONDS = 30.0
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--mute-audio",
    "--no-first-run",
    "--remote-debugging-port=0",
)
_KEYS = {
    "Tab": (9, None),
    "Enter": (13, "\r"),
    "Space": (32, " "),
    "Escape": (27, None),
    "Backspace": (8, None),
}


class Page:
    """One tab.

    Attributes:
        errors: what the console, the log and scripts complained about.
        requests: the address of every request, in order.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self._events: list[Json] = []
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> Json:
        """Run one command of the protocol and return its result."""
        self._number += 1
        number = self._number
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = self._receive()
            if message.get("id") == number:
                if "error" in message:
                    pytest.fail(f"{method}: {message['error']}")
                result: Json = message["result"]
                return result

    def goto(self, url: str) -> None:
        """Open an address and wait until it is loaded."""
        self.call("Page.bringToFront")
        self._events.clear()
        self.call("Page.navigate", url=url)
        self.wait_loaded()

    def wait_loaded(self) -> None:
        """Wait for the next load event, or take one that has come since the last action."""
        end = time.monotonic() + SECONDS
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            if time.monotonic() > end:
                pytest.fail("the page did not load")
            self._receive()
        self._events.clear()

    def evaluate(self, expression: str) -> Any:
        """Return what a script gives, waiting for a promise."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            pytest.fail(f"{expression[:200]}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until a script gives something true."""
        end = time.monotonic() + SECONDS
        while not self.evaluate(expression):
            if time.monotonic() > end:
                pytest.fail(f"never true: {expression}")
            time.sleep(0.05)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press one key."""
        self._events.clear()
        code, text = _KEYS[key]
        name = " " if key == "Space" else key
        common: Json = {"key": name, "code": key, "windowsVirtualKeyCode": code}
        common["modifiers"] = 8 if shift else 0
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **down, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def write(self, text: str) -> None:
        """Type text into what has the focus."""
        self.call("Input.insertText", text=text)

    def look(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Set the size of the window and the colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Write what the page looks like."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _receive(self) -> Json:
        """Take one message; events are kept, complaints and requests noted."""
        message: Json = json.loads(self._socket.recv(timeout=SECONDS))
        method, parameters = message.get("method"), message.get("params", {})
        if method is not None:
            self._events.append(message)
        if method == "Log.entryAdded" and parameters["entry"]["level"] in {"error", "warning"}:
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url')}")
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in {"error", "warning"}:
            self.errors.append(str(parameters["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        return message


class Browser:
    """A running browser: open as many tabs as needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = ExitStack()

    def page(self) -> Page:
        """Open a tab; tabs share cookies."""
        request = Request(f"http://127.0.0.1:{self._port}/json/new?about:blank", method="PUT")
        with urlopen(request, timeout=SECONDS) as answer:  # noqa: S310 our own browser
            target = json.load(answer)
        address = target["webSocketDebuggerUrl"]
        socket = connect(address, max_size=1 << 26, proxy=None, open_timeout=SECONDS)
        return Page(self._open.enter_context(socket))

    def close(self) -> None:
        """Close all tabs."""
        self._open.close()


@contextmanager
def running_browser(profile: Path, *, flags: Sequence[str] = ()) -> Iterator[Browser]:
    """Start Chromium with a profile of its own, and end it whatever happens; skip without one."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed")
    command = [program, *_FLAGS, f"--user-data-dir={profile}", *flags, "about:blank"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        browser = Browser(_port(profile / "DevToolsActivePort", process))
        try:
            yield browser
        finally:
            browser.close()
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if process.poll() is None:
            process.kill()
            process.wait(10)


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    """Wait until the browser says where it listens."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError, ValueError, IndexError):
            return int(file.read_text().splitlines()[0])
        time.sleep(0.05)
    pytest.fail("chromium did not start")
