"""Chromium, driven over WebDriver: what a test of a page needs, and no more.

The protocol is HTTP and JSON, so the standard library speaks it; see https://www.w3.org/TR/webdriver2/.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromedriver")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_SWITCHES = (
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
)
_PATIENCE = 60
KEYS = {
    "Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "Home": "\ue011", "End": "\ue010",
    "Right": "\ue014", "Down": "\ue015",
}  # fmt: skip


class Browser:
    """One window of a browser of its own, with a profile of its own."""

    def __init__(self, port: int, profile: Path) -> None:
        self._address = f"http://127.0.0.1:{port}"
        self._wait_until_ready()
        switches = [*_SWITCHES, f"--user-data-dir={profile}"]
        if os.geteuid() == 0:
            switches.append("--no-sandbox")
        asked = {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "goog:chromeOptions": {"binary": shutil.which("chromium"), "args": switches},
        }
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": asked}})
        self._session = f"/session/{made['sessionId']}"
        self.prefer("light")

    def _wait_until_ready(self) -> None:
        stop = time.monotonic() + _PATIENCE
        while True:
            try:
                if self._call("GET", "/status")["ready"]:
                    return
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > stop:
                    raise
            time.sleep(0.05)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self._address + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from error

    def _do(self, path: str, body: Any = None) -> Any:
        return self._call("POST", self._session + path, {} if body is None else body)

    def quit(self) -> None:
        """End the browser."""
        self._call("DELETE", self._session)

    def open(self, page: Path) -> None:
        """Show a page, and wait until its script is through."""
        self._do("/url", {"url": page.as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function in the page; return what it returns."""
        return self._do("/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self._do("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def window(self, width: int, height: int) -> None:
        """Give the page a window of this size."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def prefer(self, scheme: str) -> None:
        """Have the system prefer light or dark."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            # Nothing is to move by itself: a test clicks on what stands still.
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def find(self, selector: str) -> dict[str, str]:
        """Return a reference to an element."""
        found: dict[str, str] = self._do("/element", {"using": "css selector", "value": selector})
        return found

    def click(self, selector: str) -> None:
        """Click on an element, where it is."""
        self._do(f"/element/{self.find(selector)[_ELEMENT]}/click")

    def type(self, selector: str, text: str) -> None:
        """Type into an element."""
        self._do(f"/element/{self.find(selector)[_ELEMENT]}/value", {"text": text})

    def keys(self, *names: str) -> None:
        """Press keys, one after the other, whatever has the focus."""
        actions = []
        for name in names:
            key = KEYS.get(name, name)
            actions += [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._do("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def point(
        self, selector: str, x: float, y: float, *, drag: tuple[int, int] | None = None
    ) -> None:
        """Move the mouse to a place in an element (0 to 1 each way), and drag from there."""
        # Whatever answers to scrolling has done so two frames later.
        self.run(
            "document.querySelector(arguments[0]).scrollIntoView({block: 'center'});"
            "const frame = () => new Promise(requestAnimationFrame); return frame().then(frame)",
            selector,
        )
        box = self.box(selector)
        at = {"x": round(box[0] + box[2] * x), "y": round(box[1] + box[3] * y)}
        move = {"type": "pointerMove", "duration": 0, "origin": "viewport"}
        actions: list[dict[str, Any]] = [{**move, **at}]
        if drag is not None:
            actions += [
                {"type": "pointerDown", "button": 0},
                {**move, "duration": 50, "x": at["x"] + drag[0], "y": at["y"] + drag[1]},
                {"type": "pointerUp", "button": 0},
            ]
        mouse = {"type": "pointer", "id": "mouse", "actions": actions}
        self._do("/actions", {"actions": [mouse]})

    def wheel(self, selector: str, x: float, y: float, delta: int) -> None:
        """Turn the wheel over a place in an element."""
        box = self.box(selector)
        turn = {
            "type": "scroll", "x": round(box[0] + box[2] * x), "y": round(box[1] + box[3] * y),
            "deltaX": 0, "deltaY": delta, "duration": 0, "origin": "viewport",
        }  # fmt: skip
        self._do("/actions", {"actions": [{"type": "wheel", "id": "wheel", "actions": [turn]}]})

    def box(self, selector: str) -> list[float]:
        """Return where an element is in the window: left, top, width, height."""
        script = (
            "const box = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [box.x, box.y, box.width, box.height]"
        )
        found: list[float] = self.run(script, selector)
        return found

    def text(self, selector: str) -> str:
        """Return the text of an element, as it is in the document."""
        found: str = self.run("return document.querySelector(arguments[0]).textContent", selector)
        return found

    def screenshot(self) -> bytes:
        """Return what the window shows, as PNG."""
        return base64.b64decode(self.devtools("Page.captureScreenshot")["data"])

    def complaints(self) -> list[dict[str, Any]]:
        """Return what has come to the console since it was last asked for."""
        found: list[dict[str, Any]] = self._do("/se/log", {"type": "browser"})
        return found

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since this was last called."""
        entries = [
            json.loads(e["message"])["message"]
            for e in self._do("/se/log", {"type": "performance"})
        ]
        return [
            entry["params"]["request"]["url"]
            for entry in entries
            if entry["method"] == "Network.requestWillBeSent"
        ]

    def tree(self) -> list[tuple[str, str]]:
        """Return what assistive technology is told: role and name of every element that has any."""
        self.devtools("Accessibility.enable")
        nodes = self.devtools("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]


@contextmanager
def browser() -> Iterator[Browser]:
    """Run a browser; it is gone afterwards, and so is its profile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            [shutil.which("chromedriver") or "chromedriver", f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            window = Browser(port, Path(profile))
            try:
                yield window
            finally:
                window.quit()
        finally:
            driver.terminate()
            driver.wait()
