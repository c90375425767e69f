"""Launch: a notebook as a run's script; what its cells show is printed, and kept in a copy.

Run as ``python -m dasf_hpc.launch.notebook NOTEBOOK EXECUTED``. The kernel is this Python's,
whatever kernel the notebook names, and its working directory is the notebook's folder, as in
Jupyter. Needs the extra ``notebook``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text

from dasf_hpc.launch.script_environment import FOLDER_VARIABLE

try:
    import nbformat
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
except ModuleNotFoundError as lacking:  # of an image
    sys.exit(
        f"dasf-hpc: a notebook needs {lacking.name} where it runs: pip install 'dasf-hpc[notebook]'"
    )

#: The path of a Unix socket has at most 107 bytes (unix(7)).
SOCKET_FOLDER = 100


class _ThisPython(KernelSpecManager):
    """Knows one kernel: this Python's."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Give how this Python's kernel is started."""
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python",
            language="python",
        )


class _Shown(NotebookClient):
    """Runs a notebook and writes what its cells write, as they do."""

    #: How the kernel is talked to.
    sockets: ClassVar[dict[str, str]] = {}

    def create_kernel_manager(self) -> Any:
        """Give what starts the kernel."""
        self.km = AsyncKernelManager(kernel_spec_manager=_ThisPython(), **self.sockets)
        return self.km

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        """Show one message of the kernel; nbclient keeps it in the notebook."""
        content, kind = msg["content"], msg["msg_type"]
        if kind == "stream":
            stream = sys.stderr if content["name"] == "stderr" else sys.stdout
            print(content["text"], end="", file=stream, flush=True)
        elif kind in ("execute_result", "display_data"):
            print(content["data"].get("text/plain", ""), flush=True)
        return super().process_message(msg, cell, cell_index)


def main(words: Sequence[str]) -> int:
    """Run a notebook; give 0, or 1 where a cell failed or the kernel died."""
    given, kept = Path(words[0]), Path(words[1])
    if folder := os.environ.get(FOLDER_VARIABLE):  # the kernel is the script's process
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    notebook = nbformat.read(given, as_version=4)

    def keep(**said: Any) -> None:
        partial = kept.with_name(f".{kept.name}")
        nbformat.write(notebook, partial)
        partial.rename(kept)

    client = _Shown(
        notebook,
        timeout=None,
        resources={"metadata": {"path": str(given.parent)}},
        on_cell_executed=keep,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="dasf-hpc-") as folder:
            if (
                len(folder) < SOCKET_FOLDER
            ):  # nobody else on this host can read them, as they could TCP
                file = f"{folder}/kernel.json"
                _Shown.sockets = {"transport": "ipc", "ip": f"{folder}/k", "connection_file": file}
            client.execute()
    except CellExecutionError as error:
        print(Text.from_ansi(str(error)).plain.rstrip(), file=sys.stderr)
        return 1
    except DeadKernelError:
        print(f"dasf-hpc: the kernel of {given.name} died", file=sys.stderr)
        return 1
    finally:
        keep()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
