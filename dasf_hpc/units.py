"""Units: how durations, sizes and moments are written, the same in every output.

Three digits and the unit that suits; a space between them. Times of the trace are ns.
"""

from __future__ import annotations

import math

#: Units of a duration, largest first, in ns.
_TIMES = (("s", 1e9), ("ms", 1e6), ("us", 1e3), ("ns", 1.0))

#: Units of a size, largest first, in bytes: powers of ten.
_SIZES = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))


def duration_text(ns: float) -> str:
    """Write a duration with a unit that suits it: ``27.9 us``, ``1.05 s``, ``3,600 s``."""
    return _with_unit(ns, _TIMES)


def bytes_text(count: float) -> str:
    """Write a number of bytes with a unit that suits it: ``96 MB``."""
    return _with_unit(count, _SIZES)


def rate_text(bytes_per_second: float) -> str:
    """Write a throughput, bytes a second, with a unit that suits it: ``1.2 GB/s``."""
    return f"{bytes_text(bytes_per_second)}/s"


def byte_time_text(gigabyte_seconds: float) -> str:
    """Write a size times a time, GB s, with a unit that suits it: ``230 MB s``."""
    return f"{bytes_text(gigabyte_seconds * 1e9)} s"


def moment_text(ns: float, origin: int = 0) -> str:
    """Write a moment as seconds since `origin`: ``12.346 s``."""
    return f"{(ns - origin) / 1e9:,.3f} s"


def clock_text(seconds: float) -> str:
    """Write how long something has been going on, as a clock does: ``0:01:30``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def share_text(percent: float) -> str:
    """Write a share, %: one digit after the point below 10 %, none above."""
    return f"{percent:.1f} %" if abs(percent) < 9.95 else f"{percent:.0f} %"


def count_text(count: float) -> str:
    """Write a number: whole ones whole, with commas; others with three digits."""
    if not math.isfinite(count):
        return str(count)
    return f"{count:,.0f}" if count == int(count) else three_digits(count)


def three_digits(value: float) -> str:
    """Write three significant digits, never as a power of ten: ``0.127``, ``12.7``, ``1,270``."""
    if not math.isfinite(value) or value == 0:
        return f"{value:.0f}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    if abs(round(value, places)) >= 10 ** (3 - places):  # rounded up to one more digit
        places = max(0, places - 1)
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _with_unit(value: float, units: tuple[tuple[str, float], ...]) -> str:
    """Write a value in the largest unit of which it has one or more, as it is rounded."""
    for unit, size in units:
        text = three_digits(value / size) if size > 1 else f"{value:.0f}"
        if abs(float(text.replace(",", ""))) >= 1 or unit == units[-1][0]:
            return f"{text} {unit}"
    raise AssertionError("the smallest unit takes every value")
