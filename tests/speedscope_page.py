"""speedscope's own application with a file in it, under a browser's control.

The application is the one that its package of Node.js ships: nothing is fetched from anywhere.
"""

from __future__ import annotations

import functools
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

#: The folder of the package, where it lies elsewhere than npm installs for all.
VARIABLE = "DASF_HPC_SPEEDSCOPE"


def why_not() -> str | None:
    """Say what keeps the application from being there, ``None`` if nothing does."""
    try:
        folder = package()
    except (OSError, subprocess.SubprocessError):
        return f"npm is not installed, and {VARIABLE} names no folder"
    return None if (folder / "package.json").exists() else f"speedscope is not in {folder}"


@functools.cache
def package() -> Path:
    """Give the folder of the package, whether it is there or not."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    told = subprocess.run(
        ["npm", "root", "--global"], capture_output=True, text=True, check=True, timeout=60
    )
    return Path(told.stdout.strip()) / "speedscope"


@contextmanager
def opened(browser: Any, profile: Path, timeout_s: float = 60) -> Iterator[str]:
    """Open a file in the browser and give the page's text once it is drawn."""
    pages = package() / "dist" / "release"

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return str(profile) if path == "/profile" else super().translate_path(path)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(pages)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        browser.get("about:blank")
        browser.get(f"{address}/index.html#profileURL={address}/profile&title={profile.name}")
        deadline = time.monotonic() + timeout_s
        while True:
            text = str(browser.execute_script("return document.body.innerText"))
            if "Sandwich" in text:
                break
            assert time.monotonic() < deadline, f"speedscope did not open the file: {text[:500]}"
            time.sleep(0.1)
        yield text
    finally:
        server.shutdown()
        server.server_close()
