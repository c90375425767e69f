"""Launch: what the worker command takes, asked where the workers' Python is.

`worker_options` runs this file's text with ``-c`` there: in an image, or by another Python, which
may have another dasf-hpc or none. So it imports nothing of ours, and click only through the command
that is asked about. Its last line is what it found, as JSON.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import sys
from typing import Any


def options_of(module: str) -> list[dict[str, Any]]:
    """List the options of a worker command: names, how many words follow, if it may come again."""
    found = importlib.import_module(module)
    for command in vars(found).values():
        options = [p for p in getattr(command, "params", []) if p.param_type_name == "option"]
        if any("--nthreads" in option.opts for option in options):
            return [
                {
                    "names": [*option.opts, *option.secondary_opts],
                    "takes": 0 if option.is_flag or option.count else option.nargs,
                    "many": bool(option.multiple),
                }
                for option in options
            ]
    raise LookupError(f"{module} has no command that starts workers")


def without_protocol(name: str) -> str | None:
    """Say why there is no such protocol here; None where it can be used."""
    from distributed.comm.registry import get_backend

    try:
        if name.startswith("ucx"):
            # Dask's own ucx is there without what it needs, and complains when it is used.
            old = _is_there("ucp") and not _is_there("distributed_ucxx")
            for module in ("ucp",) if old else ("distributed_ucxx", "ucxx"):
                importlib.import_module(module)
        get_backend(name).resolve_address("127.0.0.1:0")
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[0].rstrip(".")
    return None


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def main(module: str, package: str, protocol: str) -> None:
    """Print what a module's worker command takes, and whether a protocol is there."""
    found: dict[str, Any] = {"python": sys.executable, "version": None, "options": None}
    try:
        found["version"] = importlib.metadata.version(package)
        found["options"] = options_of(module)
    except Exception as error:
        found["why"] = f"{type(error).__name__}: {error}".splitlines()[0]
    found["no_protocol"] = without_protocol(protocol) if protocol else None
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:4])
