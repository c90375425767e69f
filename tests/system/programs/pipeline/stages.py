"""The package's functions."""

from pipeline.gather import Gather


def clean(gather):
    return gather.without(0.0)


def stack(gathers):
    traces = [t for g in gathers for t in g.traces]
    return Gather("stack", [sum(traces), len(traces)])
