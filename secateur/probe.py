"""A fixed piece of arithmetic, timed beside a measurement to notice when the machine is disturbed."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["fourier_probe"]


def fourier_probe() -> Callable[[], None]:
    """A routine of a few milliseconds: long enough to time, short enough to run around every measured call."""
    import numpy as np

    work = np.random.default_rng(0).normal(size=1 << 16)

    def probe() -> None:
        for _ in range(4):
            np.fft.fft(work)

    return probe
