"""An ordinary Dask script: seismic attributes of a synthetic volume, block by block.

It knows nothing of dasf-hpc: ``Client()`` finds the cluster through Dask's own configuration. On
workers with a GPU and CuPy the blocks are computed there; ``--gpu`` makes an error of it where they
cannot be, ``--no-gpu`` computes them with NumPy wherever they are.

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


def library(gpu: bool | None) -> Any:
    """Give CuPy or NumPy: what this worker is to compute with.

    Parameters
    ----------
    gpu
        True for CuPy, False for NumPy, None for CuPy where it can use a GPU.
    """
    if gpu is not False:
        try:
            import cupy

            devices = cupy.cuda.runtime.getDeviceCount()
        except Exception:  # no CuPy, no driver, a CuPy for another CUDA: each has its own error
            if gpu:
                raise
        else:
            if devices:
                return cupy
            if gpu:
                raise RuntimeError("this worker has no GPU")
    return np


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


def analytic(block: Any, gpu: bool | None = None) -> Any:
    """Give the analytic signal along time: the negative frequencies' half set to zero."""
    xp = library(gpu)
    n = block.shape[-1]
    spectrum = xp.fft.fft(xp.asarray(block), axis=-1)
    weights = xp.zeros(n)
    weights[0] = 1
    weights[1 : (n + 1) // 2] = 2
    if n % 2 == 0:
        weights[n // 2] = 1
    return host(xp.fft.ifft(spectrum * weights, axis=-1).astype("complex64"))


def envelope(signal: Any, gpu: bool | None = None) -> Any:
    """Give the instantaneous amplitude."""
    xp = library(gpu)
    return host(xp.abs(xp.asarray(signal)))


def frequency(signal: Any, gpu: bool | None = None) -> Any:
    """Give the instantaneous frequency in Hz."""
    xp = library(gpu)
    phase = xp.unwrap(xp.angle(xp.asarray(signal)), axis=-1)
    hertz = xp.gradient(phase, axis=-1) / (2 * np.pi * SAMPLE_INTERVAL_S)
    return host(hertz.astype("float32"))


def similarity(block: Any, gpu: bool | None = None) -> Any:
    """Give the likeness of each trace to its crossline neighbours, 0 to 1."""
    xp = library(gpu)
    block = xp.asarray(block)
    left, right = xp.roll(block, 1, axis=1), xp.roll(block, -1, axis=1)
    both = block + left + right
    energy = block**2 + left**2 + right**2
    return host((both**2 / xp.maximum(3 * energy, 1e-12)).astype("float32"))


def computed_with(gpu: bool | None) -> str:
    """Name what this worker computes with."""
    return "CuPy" if library(gpu) is not np else "NumPy"


def main() -> None:
    """Compute the attributes and print what they come to."""
    parser = argparse.ArgumentParser(description="Seismic attributes of a synthetic volume.")
    parser.add_argument("--shape", type=int, nargs=3, default=[192, 192, 512])
    parser.add_argument("--block", type=int, default=64, help="inlines and crosslines of a block")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--gpu", action=argparse.BooleanOptionalAction, help="default: where a worker has one"
    )
    options = parser.parse_args()
    gpu = options.gpu
    shape = tuple(options.shape)
    chunks = (options.block, options.block, shape[2])
    # Without, Dask would ask the functions for it here, where there may be another GPU or none.
    empty = np.empty((0, 0, 0), dtype="float32")

    with Client() as client:
        volume = client.persist(synthetic(shape, chunks, options.seed))
        signal = volume.map_blocks(analytic, gpu=gpu, meta=empty.astype("complex64"))
        amplitude = signal.map_blocks(envelope, gpu=gpu, meta=empty)
        hertz = signal.map_blocks(frequency, gpu=gpu, meta=empty)
        likeness = volume.map_overlap(
            similarity, depth={1: 1}, boundary="nearest", gpu=gpu, meta=empty
        )
        results = da.compute(
            amplitude.mean(),
            amplitude.max(),
            da.nanmean(da.where(amplitude > amplitude.mean(), hertz, np.nan)),
            likeness.mean(),
        )
        libraries = sorted(set(client.run(computed_with, gpu).values()))
    names = ("mean envelope", "largest envelope", "mean frequency of strong samples, Hz")
    for name, value in zip((*names, "mean similarity"), results, strict=True):
        print(f"{name}: {float(value):.4f}")
    print(f"computed with {' and '.join(libraries)}")


if __name__ == "__main__":
    main()
