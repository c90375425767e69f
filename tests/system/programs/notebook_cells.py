"""A notebook, cell by cell: a model of noisy curves, looked at as one goes."""

# %%
import numpy as np
from distributed import Client

client = Client(n_workers=3, processes=False)

# %%
points = np.linspace(0, 1, 50)


def measure(seed):
    noise = np.random.default_rng(seed).normal(0, 0.01, points.size)
    return 3 * points**2 - points + 1 + noise


def fit(curve):
    return np.polyfit(points, curve, 2)


curves = client.map(measure, range(12))
print(len(curves), "curves")

# %%
fits = client.map(fit, curves)
mean = client.submit(lambda all_of: np.mean(all_of, axis=0), fits, key="mean-of-fits").result()
print(np.round(mean, 1).tolist())

# %%
spread = client.submit(np.std, fits, axis=0, key="spread-of-fits").result()
print(bool((spread < 0.1).all()))
client.close()
