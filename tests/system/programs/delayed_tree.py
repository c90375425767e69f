"""Sums squares in a tree of delayed calls, one of which is slow."""

import time

from dask import compute, delayed
from distributed import Client


@delayed
def load(i):
    if i == 3:
        time.sleep(0.2)
    return list(range(i * 10, i * 10 + 10))


@delayed
def squares(values):
    return sum(v * v for v in values)


@delayed(pure=True)
def add(a, b):
    return a + b


def main():
    client = Client()
    level = [squares(load(i)) for i in range(16)]
    while len(level) > 1:
        level = [add(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
    total = level[0]
    print(total.compute(), sum(i * i for i in range(160)))
    doubled, same = compute(total * 2, total)
    print(doubled, same, client.status)


main()
