"""A real browser: Debian's chromium without a window, spoken to over two pipes (Chrome's DevTools protocol)."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_PATIENCE = 60.0  # seconds for an answer


@dataclass
class Tab:
    """One page of a browser."""

    writes: int
    reads: int
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    _sent: int = 0
    _unread: bytes = b""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Asks for something, and waits for the answer."""
        self._sent += 1
        session = {"sessionId": self.session} if self.session else {}
        asked = {"id": self._sent, "method": method, "params": parameters, **session}
        os.write(self.writes, json.dumps(asked).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer["error"]
                found: dict[str, Any] = answer["result"]
                return found
            self.events.append(answer)

    def open(self, page: Path, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        """Shows a page from disk, in a window of that size in CSS pixels; waits until it has loaded."""
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not self.told("Page.loadEventFired"):
            self.events.append(self._next())

    def resize(self, width: int, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def run(self, code: str) -> Any:
        """The value of some JavaScript. What the page itself may not run, this may."""
        done = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def point(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def told(self, method: str) -> list[dict[str, Any]]:
        """What happened, by the name of an event."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def picture(self, path: Path, whole: bool = False) -> None:
        """Writes a PNG of what the window shows, or of the whole page."""
        done = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(done["data"]))

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self.reads], [], [], max(end - time.monotonic(), 0))
            read = os.read(self.reads, 1 << 20) if ready else b""
            assert read, "the browser does not answer"
            self._unread += read
        first, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(first)
        return found


@contextmanager
def browser() -> Iterator[Tab]:
    """A new browser with a profile of its own, which is gone afterwards."""
    assert CHROMIUM is not None
    theirs_in, writes = os.pipe()
    reads, theirs_out = os.pipe()
    # It reads from descriptor 3 and writes to 4: these two must not be in the way.
    high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (theirs_in, theirs_out)]
    nowhere = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
    pipes = [(os.POSIX_SPAWN_DUP2, mine, his) for mine, his in zip(high, (3, 4), strict=True)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = os.posix_spawn(CHROMIUM, command, os.environ, file_actions=[nowhere, *pipes], setpgroup=0)
        for one in (theirs_in, theirs_out, *high):
            os.close(one)
        try:
            yield _attached(Tab(writes, reads))
        finally:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(writes)
            os.close(reads)


def _attached(tab: Tab) -> Tab:
    """To the page that is open, with what it may tell."""
    pages = [one for one in tab.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
    target = pages[0]["targetId"] if pages else tab.call("Target.createTarget", url="about:blank")["targetId"]
    tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        tab.call(f"{domain}.enable")
    return tab
