"""An ordinary Dask script: seismic attributes of a synthetic volume, block by block.

It knows nothing of dasf-hpc: ``Client()`` finds the cluster through Dask's own configuration. On
workers with a GPU and CuPy the blocks are computed there.

The attributes are those of the complex trace (Taner, Koehler and Sheriff, "Complex seismic trace
analysis", Geophysics 44, 1979): envelope, instantaneous phase and frequency, and a smoothed
similarity of neighbouring traces.
"""

from __future__ import annotations

import argparse
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client

SAMPLE_INTERVAL_S = 0.004


def device(block: Any) -> Any:
    """Move a block to this worker's GPU where it has one and CuPy, else leave it."""
    try:
        import cupy

        if cupy.cuda.runtime.getDeviceCount() > 0:
            return cupy.asarray(block)
    except Exception:
        pass
    return block


def host(block: Any) -> Any:
    """Bring a block back to the host."""
    return block.get() if hasattr(block, "get") else block


def synthetic(shape: tuple[int, int, int], chunks: tuple[int, int, int], seed: int) -> da.Array:
    """Make a volume (inline, crossline, time) of dipping reflectors in noise."""
    inline = da.arange(shape[0], chunks=chunks[0])[:, None, None]
    crossline = da.arange(shape[1], chunks=chunks[1])[None, :, None]
    sample = da.arange(shape[2], chunks=chunks[2])[None, None, :]
    phase = 0.25 * sample + 0.02 * inline + 0.03 * crossline
    noise = da.random.default_rng(seed).normal(0, 0.1, shape, chunks=chunks)
    return (da.sin(phase) * da.cos(0.013 * phase) + noise).astype("float32")


def analytic(block: Any) -> Any:
    """Give the analytic signal along time: the negative frequencies' half set to zero."""
    import numpy

    block = device(block)
    xp = numpy
    if type(block).__module__.startswith("cupy"):
        import cupy

        xp = cupy
    n = block.shape[-1]
    spectrum = xp.fft.fft(block, axis=-1)
    weights = xp.zeros(n)
    weights[0] = 1
    weights[1 : (n + 1) // 2] = 2
    if n % 2 == 0:
        weights[n // 2] = 1
    return host(xp.fft.ifft(spectrum * weights, axis=-1).astype("complex64"))


def envelope(signal: Any) -> Any:
    """Give the instantaneous amplitude."""
    return np.abs(signal)


def frequency(signal: Any) -> Any:
    """Give the instantaneous frequency in Hz."""
    phase = np.unwrap(np.angle(signal), axis=-1)
    return (np.gradient(phase, axis=-1) / (2 * np.pi * SAMPLE_INTERVAL_S)).astype("float32")


def similarity(block: Any) -> Any:
    """Give the likeness of each trace to its crossline neighbours, 0 to 1."""
    both = block + np.roll(block, 1, axis=1) + np.roll(block, -1, axis=1)
    energy = block**2 + np.roll(block, 1, axis=1) ** 2 + np.roll(block, -1, axis=1) ** 2
    return (both**2 / np.maximum(3 * energy, 1e-12)).astype("float32")


def main() -> None:
    """Compute the attributes and print what they come to."""
    parser = argparse.ArgumentParser(description="Seismic attributes of a synthetic volume.")
    parser.add_argument("--shape", type=int, nargs=3, default=[192, 192, 512])
    parser.add_argument("--block", type=int, default=64, help="inlines and crosslines of a block")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    shape = tuple(options.shape)
    chunks = (options.block, options.block, shape[2])

    with Client() as client:
        volume = client.persist(synthetic(shape, chunks, options.seed))
        signal = volume.map_blocks(analytic, dtype="complex64")
        amplitude = signal.map_blocks(envelope, dtype="float32")
        hertz = signal.map_blocks(frequency, dtype="float32")
        likeness = volume.map_overlap(similarity, depth={1: 1}, boundary="nearest", dtype="float32")
        results = da.compute(
            amplitude.mean(),
            amplitude.max(),
            da.nanmean(da.where(amplitude > amplitude.mean(), hertz, np.nan)),
            likeness.mean(),
        )
    names = ("mean envelope", "largest envelope", "mean frequency of strong samples, Hz")
    for name, value in zip((*names, "mean similarity"), results, strict=True):
        print(f"{name}: {float(value):.4f}")


if __name__ == "__main__":
    main()
