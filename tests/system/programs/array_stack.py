"""Synthetic traces are stacked, normalised and decomposed."""

import dask.array as da
import numpy as np
from dask.distributed import Client

client = Client()
rng = da.random.default_rng(7)
traces = rng.normal(size=(600, 400), chunks=(150, 100)) + np.linspace(0, 1, 400)
centred = traces - traces.mean(axis=0)
energy = (centred**2).sum(axis=1)
print("energy", round(float(energy.max().compute()), 6), energy.shape)
smoothed = centred.map_overlap(lambda x: (x[2:] + x[1:-1] + x[:-2]) / 3, depth={0: 1}, trim=False)
print("smoothed", round(float(abs(smoothed).mean().compute()), 9))
u, s, v = da.linalg.svd_compressed(centred.rechunk((600, 100)), 3, seed=1)
print("singular values", [round(float(x), 4) for x in s.compute()])
client.close()
