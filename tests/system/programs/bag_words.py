"""Counts words of generated log lines, in the manner of a first look at a pile of text files."""

from operator import itemgetter

import dask.bag as db
from distributed import Client

WORDS = ["kernel", "panic", "disk", "full", "job", "ended", "node", "down"]


def lines(part):
    return [" ".join(WORDS[(part * 31 + i * j) % 8] for j in range(1, 7)) for i in range(200)]


if __name__ == "__main__":
    with Client() as client:
        text = db.from_sequence(range(8), npartitions=8).map(lines).flatten()
        words = text.map(str.split).flatten()
        print(sorted(words.frequencies().compute(), key=itemgetter(1, 0)))
        pairs = text.filter(lambda line: "panic" in line).foldby(
            lambda line: line.split()[0], lambda total, _: total + 1, 0, lambda a, b: a + b, 0
        )
        print(sorted(pairs.compute()))
        print(text.str.upper().take(1))
