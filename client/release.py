"""Decryptions that others may see: flooded with wide noise, rounded, and counted against a budget per key.

A CKKS decryption is f(x) + e where e depends on the secret key; with the ciphertext, e gives the key away (Li and
Micciancio, EUROCRYPT'21). Li, Micciancio, Schultz and Sorrell, "Securing approximate homomorphic encryption using
differential privacy" (CRYPTO'22, ePrint 2022/816) add Gaussian noise to the decryption. For outputs with
|e| <= t in the Euclidean norm, noise of standard deviation sigma leaves a KL divergence of t^2 / (2 sigma^2) between what
is released and what could be computed without the key, per release. Their theorem asks for at most 2^(-s-7) over all q
releases of a key, for s bits of security:

    sigma = 8 * sqrt(q) * 2^(s/2) * t,   t = sqrt(n) * (B + g)

with n values per release, B the bound on a value's error that the client spec states, and g the grid on which noise and
values are added (it makes an exact integer sampler possible, and rounding onto it may move both sides by half of g).
KL divergences of many releases add up, also when they are of one ciphertext and an attacker averages them. In plain
statistical distance the same noise gives 2^(-s/2-4) over the whole budget (Pinsker).

This is security against those who see released values and all ciphertexts of a server that follows the protocol. A
server that sends other ciphertexts than the agreed ones, or states a false error bound, is not covered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from he_runtime.client_spec import ClientSpec
from he_runtime.noise import fresh_variance
from he_runtime.ring import CiphertextData

from .errors import PrecisionImpossible, ReleaseRefused
from .exchange import decrypt
from .release_ledger import charge
from .wide_noise import discrete_gaussian

if TYPE_CHECKING:
    from .prepare import Prepared

__all__ = [
    "RELEASES",
    "STATISTICAL_BITS",
    "Flooding",
    "Release",
    "decrypt_for_release",
    "flooding",
    "require_precision",
]

Floats = npt.NDArray[np.float64]
RELEASES = 16  # of a key, unless its owner declares another budget
STATISTICAL_BITS = 30
_FEWEST_BITS, _MOST_BITS, _MOST_RELEASES = 20, 128, 1 << 20
_SIGMAS = 6.0  # beyond it lies one value in 2^29
_ARITHMETIC = 2.0**-40  # errors of decoding in double precision, of outputs up to a thousand
_GRID_BITS = 6  # the grid is 2^6 times finer than the error, so rounding onto it counts little


@dataclass(frozen=True)
class Flooding:
    """The noise of one model's releases under one budget; all sizes are in output units.

    `sigma` is the standard deviation, an integer multiple of `grid`, a power of two. `error_bound` bounds the error of the
    decryption itself, `values` is how many numbers one release holds.
    """

    sigma: float
    grid: float
    error_bound: float
    values: int
    releases: int
    statistical_bits: int

    @property
    def divergence(self) -> float:
        """KL divergence of the whole budget from values that do not depend on the key, in nats: below 2^(-s-7)."""
        return self.releases * self.values * (self.error_bound + self.grid) ** 2 / (2 * self.sigma**2)

    @property
    def uncertainty(self) -> float:
        """What a released value may be off before it is rounded."""
        return _SIGMAS * self.sigma + self.error_bound

    @property
    def best_bits(self) -> int:
        """The most bits after the binary point that released values can have; may be negative."""
        return math.floor(-math.log2(self.uncertainty)) - 1


@dataclass(frozen=True, eq=False)
class Release:
    """Values that may be published: multiples of 2^-bits, each within 2^-bits of the exact output (one in 2^29 is not).

    `values` is (samples, *output shape). `sigma` is the standard deviation of the noise in them, `statistical_bits` the
    security of the key after all releases of its budget, of which `releases_left` remain.
    """

    values: Floats
    bits: int
    sigma: float
    statistical_bits: int
    releases_left: int


def flooding(spec: ClientSpec, releases: int = RELEASES, statistical_bits: int = STATISTICAL_BITS) -> Flooding:
    """The noise that a budget of `releases` needs for `statistical_bits`; ReleaseRefused for a budget out of range."""
    if not 1 <= releases <= _MOST_RELEASES or not _FEWEST_BITS <= statistical_bits <= _MOST_BITS:
        raise ReleaseRefused(
            f"cannot release a decryption with a budget of {releases} at {statistical_bits} bits: need 1 to {_MOST_RELEASES} "
            f"releases at {_FEWEST_BITS} to {_MOST_BITS} bits"
        )
    error = max(spec.error_bound, _least_error(spec), _ARITHMETIC)
    values = math.prod(spec.output.shape)
    grid = 2.0 ** (math.floor(math.log2(error)) - _GRID_BITS)
    sigma = 8 * math.sqrt(releases * values) * 2.0 ** (statistical_bits / 2) * (error + grid)
    return Flooding(math.ceil(sigma / grid) * grid, grid, error, values, releases, statistical_bits)


def _least_error(spec: ClientSpec) -> float:
    """What no honest evaluation stays below, whatever the server states: six sigmas of a fresh encryption's noise."""
    return _SIGMAS * math.sqrt(fresh_variance(spec.params, spec.output.scale))


def decrypt_for_release(
    ready: Prepared,
    replies: Sequence[list[CiphertextData]],
    count: int,
    bits: int,
    *,
    releases: int = RELEASES,
    statistical_bits: int = STATISTICAL_BITS,
) -> Release:
    """Decrypt the outputs of `count` samples so that they may be published with `bits` bits after the binary point.

    `replies` are checked (exchange.decode_reply) answers to inputs within the calibrated range; each holds as many samples
    as the plan's batch, the last one maybe fewer. Every sample uses one of the `releases` of the key, which its first
    release declares for good, whatever model it is of.

    Raises PrecisionImpossible, naming the best, where the noise is wider than `bits` allow; ReleaseBudgetSpent when too
    few releases are left; ReleaseRefused for another budget than the key's; KeyStoreError when the disk does not take the
    count.
    """
    noise = require_precision(ready.spec, bits, releases, statistical_bits)
    ledger = charge(ready.entry.path, count, releases, statistical_bits)
    batch = ready.spec.input.batch
    exact = [decrypt(ready.spec, ready.secret, reply, min(batch, count - k * batch)) for k, reply in enumerate(replies)]
    return Release(_published(np.concatenate(exact), noise, bits), bits, noise.sigma, statistical_bits, ledger.left)


def require_precision(spec: ClientSpec, bits: int, releases: int, statistical_bits: int) -> Flooding:
    """The noise of a release; PrecisionImpossible, naming the best, where it is wider than `bits` allow."""
    noise = flooding(spec, releases, statistical_bits)
    if bits > noise.best_bits:
        raise PrecisionImpossible(
            f"cannot release {bits} bits after the binary point: the noise for {releases} releases at {statistical_bits} bits "
            f"of security is {noise.sigma:.3g}, which leaves {noise.best_bits}; try bits={noise.best_bits}, fewer releases "
            "with a new key, or a server whose plan has a smaller max_error",
            noise.best_bits,
        )
    return noise


def _published(exact: Floats, noise: Flooding, bits: int) -> Floats:
    """Values onto the grid, noise added, rounded to multiples of 2^-bits: in integers, so that no last bit tells anything."""
    sigma, coarse = round(noise.sigma / noise.grid), round(2.0**-bits / noise.grid)
    flooded = [round(value / noise.grid) + discrete_gaussian(sigma) for value in exact.ravel().tolist()]
    steps = [(2 * value + coarse) // (2 * coarse) for value in flooded]
    return np.array(steps, dtype=np.float64).reshape(exact.shape) * 2.0**-bits
