"""A headless Chromium, spoken to in its own protocol (chromedevtools.github.io/devtools-protocol)."""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.processes import started, wait_until

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0", "--hide-scrollbars",
)  # fmt: skip
_START_S = 30


class Page:
    """One page."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call one of the protocol's methods; keeps what the page's console complains of meanwhile."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self._connection.recv(timeout=30))).get("id") != number:
            if message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(message["params"]))
        assert "error" not in message, message
        return dict(message["result"])

    def open(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.send(f"{domain}.enable")
        self.send("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """What an expression is, promises resolved."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true; the page itself says when."""
        done = self.value(
            f"new Promise(done => {{ const end = Date.now() + 20000; const look = () => ({condition}) ? done(true) : "
            "Date.now() > end ? done(false) : requestAnimationFrame(look); look(); })"
        )
        assert done, f"{condition} did not come: {self.value('document.body.innerText')}"

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in an input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self) -> bytes:
        """A PNG of the whole page."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a browser with a new profile."""
    assert PROGRAM is not None
    command = [PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        with connect(_address(profile), max_size=None, compression=None) as connection:
            yield Page(connection)
        process.terminate()
        process.wait(10)


def _address(profile: Path) -> str:
    file = profile / "DevToolsActivePort"
    wait_until(lambda: file.is_file() and len(file.read_text().splitlines()) == 2, seconds=_START_S)
    with urllib.request.urlopen(f"http://127.0.0.1:{file.read_text().splitlines()[0]}/json/list", timeout=10) as answer:
        pages = [target for target in json.load(answer) if target["type"] == "page"]
    return str(pages[0]["webSocketDebuggerUrl"])
