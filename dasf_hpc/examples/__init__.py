"""Example jobs: ordinary Dask scripts, run with ``dasf-hpc submit example:NAME``."""
