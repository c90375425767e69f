"""Write a synthetic run: any number of nodes, workers and tasks, seeded, its true clocks known.

    python tests/benchmarks/synth_run.py FOLDER [--nodes 8] [--workers 8] [--tasks 100000]

The journals go to FOLDER/journals, written by the real writer. `tests/synthetic.py` says what they
hold, and gives a test every answer.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_large import synthesise


def main() -> None:
    """Write one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    begun = time.monotonic()
    size = synthesise(given.folder, given.nodes, given.workers, given.tasks, given.seed)
    print(f"{size / 1e6:.0f} MB of journals in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
