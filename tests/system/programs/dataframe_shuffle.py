"""Joins and groups tables on columns that they are not sorted by: a shuffle between workers."""

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.distributed import Client

dask.config.set({"dataframe.shuffle.method": "p2p"})
client = Client()
n = 4000
shots = pd.DataFrame({"shot": np.arange(n) % 97, "depth": np.arange(n) * 7 % 1000})
sites = pd.DataFrame({"shot": np.arange(97), "site": [f"s{i % 5}" for i in range(97)]})
left = dd.from_pandas(shots, npartitions=6)
right = dd.from_pandas(sites, npartitions=3)
joined = left.merge(right, on="shot", how="inner")
means = joined.groupby("site").depth.agg(["mean", "count", "max"]).compute().sort_index()
print(means.round(3).to_string())
ordered = left.set_index("depth", sorted=False).compute()
print(ordered.index.is_monotonic_increasing, len(ordered), int(ordered.shot.sum()))
print(left.shuffle("shot", npartitions=4).map_partitions(len).compute().sum())
client.close()
