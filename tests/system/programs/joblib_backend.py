"""Code that is parallel with joblib already, run on the cluster by its Dask backend."""

import math

import joblib
from distributed import Client


def zeta(s, terms):
    return math.fsum(1 / k**s for k in range(1, terms))


if __name__ == "__main__":
    client = Client()
    with joblib.parallel_config(backend="dask"):
        values = joblib.Parallel()(joblib.delayed(zeta)(s, 5000) for s in range(2, 26))
        lengths = joblib.Parallel(batch_size=4)(joblib.delayed(len)("x" * n) for n in range(20))
    print([round(v, 9) for v in values[:4]], len(values))
    print(sum(lengths))
