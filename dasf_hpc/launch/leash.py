"""Launch: the step in front of the user's script, which ends the script when the run dies.

Run as ``python -m dasf_hpc.launch.leash PID COMMAND …``: it asks the kernel to end this process
when its parent does (prctl(2), PR_SET_PDEATHSIG, which survives exec), and becomes the command.
Without it a script whose run was killed would wait for its scheduler for ever.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from dasf_hpc.launch.script_environment import FOLDER_VARIABLE

_PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> None:
    """Tie this process to its parent and become the command."""
    parent, command = int(words[0]), words[1:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel was asked
        sys.exit(128 + signal.SIGTERM)
    # Only for the script's Python: this one would set them, and start the script with them.
    if folder := os.environ.get(FOLDER_VARIABLE):
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
