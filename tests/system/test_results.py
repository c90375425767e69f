"""Recording a result costs a task nothing, and does nothing to it, whatever the result is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from system.conftest import Submit

from dasf_hpc import open_trace

#: Any of these would show in what is printed if somebody asked the result for its shape.
ODD = '''
    import time
    import numpy as np
    from distributed import Client, wait

    class Ends:
        @property
        def shape(self):
            raise SystemExit("asked for a shape")

    class Interrupts:
        dtype = property(lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))

    class Sleeps:
        @property
        def shape(self):
            time.sleep(5)
            return (1,)

    class Everything:
        """Has all attributes, as a mock has, and none of them is what it seems."""

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return self

        def __call__(self, *args, **kwargs):
            return self

        def __hash__(self):
            return 7

        def __eq__(self, other):
            return other

    class Counts(np.ndarray):
        @property
        def shape(self):
            raise SystemExit("asked for a shape")

    def make(kind):
        if kind == "counts":
            return np.zeros((2, 3)).view(Counts)
        return {"ends": Ends, "interrupts": Interrupts, "sleeps": Sleeps, "all": Everything}[kind]()

    def one():
        return 1

    KEYS = [
        "plain", ("pair", 1), ("deep", 1, (2, "x")), 5, 2.5, "ünï-çode☃", "nul\\0inside",
        "new\\nline", "x" * 100_000, b"bytes", "", "-", "(1, 2)", "'quote\\"", "a/b;c,d|e",
        "</script><script>alert(1)</script>", ("number", np.int64(3)),
        ("none", None), ("flag", True),
    ]

    def outcome(future):
        wait(future, timeout=30)
        return future.status

    if __name__ == "__main__":
        with Client() as client:
            for key in KEYS:
                try:
                    print(repr(key)[:40], client.submit(one, key=key, pure=False).result())
                except Exception as error:
                    print(repr(key)[:40], type(error).__name__, str(error)[:60])
            for kind in ("ends", "interrupts", "sleeps", "all", "counts"):
                begun = time.time()
                status = outcome(client.submit(make, kind, key=f"make-{kind}", retries=0))
                print(kind, status, "soon" if time.time() - begun < 4 else "late")
'''


def test_keys_and_results_of_any_kind_are_as_without_recording(
    submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    job = script(ODD)
    plain = subprocess.run(
        [sys.executable, job], cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    done = submit("--on", "local", "--no-nsys", job)
    assert done.code == 0, done.err
    lines = plain.stdout.splitlines()
    assert done.out.splitlines()[: len(lines)] == lines
    assert "ends finished soon" in lines
    assert "sleeps finished soon" in lines
    with open_trace(done.directory) as trace:
        tasks = trace.tasks[trace.tasks["key"].astype(str).str.startswith("make-")].set_index("key")
        assert list(tasks["state"]) == ["memory"] * 5
        assert tasks.loc["make-counts", "shape"] == "(2, 3)"
        assert tasks["shape"].isna().sum() == 4
