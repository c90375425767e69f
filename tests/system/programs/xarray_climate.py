"""Anomalies of a climate that is made up, with labelled axes."""

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from distributed import Client

with Client() as client:
    time = pd.date_range("2001-01-01", periods=240)
    wave = da.from_array(np.sin(np.arange(240) * 2 * np.pi / 365.25), chunks=120)
    field = wave[:, None, None] * da.linspace(1, 2, 8, chunks=4)[None, :, None] + da.zeros(
        (240, 8, 6), chunks=(120, 4, 6)
    )
    data = xr.Dataset(
        {"t": (("time", "lat", "lon"), field)},
        coords={"time": time, "lat": np.linspace(-70, 70, 8), "lon": np.arange(6) * 60.0},
    )
    monthly = data.t.groupby("time.month").mean("time")
    anomaly = data.t.groupby("time.month") - monthly
    print(np.round(monthly.mean(("lat", "lon")).compute().values[:4], 6))
    print(round(float(abs(anomaly).max().compute()), 6))
    print(data.t.sel(lat=slice(-30, 30)).resample(time="QS").max().compute().shape)
    block = client.submit(lambda: xr.DataArray(np.ones((3, 2)), dims=("x", "y")), key="block")
    print(float(block.result().sum()))
