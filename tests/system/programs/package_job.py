"""Uses a package that lies beside it, whose functions and classes tasks run and give."""

import sys

from distributed import Client
from pipeline import Gather, stages
from pipeline.stages import clean

if __name__ == "__main__":
    count = int(sys.argv[1])
    with Client() as client:
        gathers = [client.submit(Gather.make, i) for i in range(count)]
        cleaned = client.map(clean, gathers)
        stacked = client.submit(stages.stack, cleaned)
        print(stacked.result())
        print([g.name for g in client.gather(cleaned)][:3])
