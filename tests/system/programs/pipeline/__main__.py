"""The package as a program: ``python -m pipeline COUNT``."""

import sys

from distributed import Client

from pipeline import Gather, stages

if __name__ == "__main__":
    with Client() as client:
        gathers = client.map(Gather.make, range(int(sys.argv[1])))
        print(client.submit(stages.stack, client.map(stages.clean, gathers)).result())
        print(__name__, sys.argv[1:])
