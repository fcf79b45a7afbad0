"""The wide noise of released decryptions: a discrete Gaussian on the integers, from the operating system's generator.

This is the only place of the project that draws randomness on which security rests. All arithmetic is on Python's integers,
so a sample is distributed exactly as stated: floating-point Gaussians leak through their last bits (Mironov, CCS'12).

Canonne, Kamath, Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020, section 5: rejection from a
discrete Laplace distribution, which is made of coins that fall with probability exp(-n/d). It takes as long as the coins
make it take; nothing it does depends on the values that the noise is added to.
"""

from __future__ import annotations

import secrets

__all__ = ["discrete_gaussian"]


def discrete_gaussian(sigma: int) -> int:
    """A sample with probability proportional to exp(-k^2 / (2 sigma^2)), sigma an integer of at least 1."""
    spread = sigma + 1
    while True:
        k = _laplace(spread)
        distance = abs(k) * spread - sigma * sigma
        if _coin_exp(distance * distance, 2 * sigma * sigma * spread * spread):
            return k


def _laplace(spread: int) -> int:
    """A sample with probability proportional to exp(-|k| / spread)."""
    while True:
        rest = secrets.randbelow(spread)
        if not _coin_exp(rest, spread):
            continue
        whole = 0
        while _coin_exp(1, 1):
            whole += 1
        size = rest + spread * whole
        if secrets.randbits(1):
            return size
        if size:  # zero has one sign only
            return -size


def _coin_exp(numerator: int, denominator: int) -> bool:
    """True with probability exp(-numerator / denominator), exactly."""
    whole, rest = divmod(numerator, denominator)
    return all(_coin_exp_below_one(1, 1) for _ in range(whole)) and _coin_exp_below_one(rest, denominator)


def _coin_exp_below_one(numerator: int, denominator: int) -> bool:
    """The same for a quotient of at most 1 (von Neumann): how many coins of g, g/2, g/3, ... fall in a row."""
    count = 1
    while secrets.randbelow(denominator * count) < numerator:
        count += 1
    return count % 2 == 1
