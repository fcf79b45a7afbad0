"""The native kernel on contiguous uint64 arrays. Whatever does not fit raises: ValueError for shapes, levels, residues and
objects of another ring, TypeError for another kind of object."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

_U64 = npt.NDArray[np.uint64]

def paths() -> list[str]:
    """The paths that this machine can run, slowest first."""

def default_path() -> str:
    """The path of this process; SECATEUR_KERNEL forces one. Raises RuntimeError if that is unavailable."""

def blake2xb_nodes(dst: _U64, roots: _U64, path: str) -> None:
    """BLAKE2Xb on one path: each root digest of 8 words to 512, for seeds of public polynomials."""

class Ntt:
    def __init__(self, n: int, q: int, path: str) -> None: ...
    @property
    def root(self) -> int: ...
    @property
    def path(self) -> str: ...
    def forward(self, dst: _U64, src: _U64) -> None: ...
    def inverse(self, dst: _U64, src: _U64) -> None: ...

class Field:
    def __init__(self, q: int, path: str) -> None: ...
    @property
    def path(self) -> str: ...
    def add(self, dst: _U64, a: _U64, b: _U64) -> None: ...
    def sub(self, dst: _U64, a: _U64, b: _U64) -> None: ...
    def multiply(self, dst: _U64, a: _U64, b: _U64) -> None: ...
    def negate(self, dst: _U64, a: _U64) -> None: ...
    def multiply_constant(self, dst: _U64, a: _U64, w: int) -> None: ...
    def sub_multiply_constant(self, dst: _U64, a: _U64, b: _U64, w: int) -> None: ...
    def dot(self, dst: _U64, a: Sequence[_U64], b: Sequence[_U64], accumulate: bool = False) -> None: ...
    def dot_pair(
        self,
        dst0: _U64,
        dst1: _U64,
        a: Sequence[_U64],
        b0: Sequence[_U64],
        b1: Sequence[_U64],
        accumulate: bool = False,
    ) -> None: ...
    def dot_constants(self, dst: _U64, a: Sequence[_U64], w: Sequence[int], accumulate: bool = False) -> None: ...
    def convert(self, dst: _U64, a: _U64, from_q: int) -> None: ...

class Galois:
    def __init__(self, n: int, element: int) -> None: ...
    def permute(self, dst: _U64, src: _U64, path: str) -> None: ...

def threads() -> int:
    """Threads that may compute at once, over all calls of the process; at first as many as it may use."""

def set_threads(count: int) -> None:
    """1 to 256; calls in progress finish with the former number."""

def cached_bytes() -> int:
    """Bytes of freed polynomials that are kept for reuse."""

def release_cached() -> None:
    """Give them back."""

class Task:
    """One call, stopped by `cancel` from any thread (RuntimeError) or by what `poll` raises; a stopped one stays so.

    `poll` is called every few milliseconds by the thread that computes, also while it waits for its turn.
    """

    def __init__(self, poll: Callable[[], object] | None = None) -> None: ...
    def cancel(self) -> None: ...
    @property
    def progress(self) -> int:
        """Units of work done."""

class Ring:
    """The tables of one parameter set; `alpha` primes make a digit. Takes at most 64 primes in all."""

    def __init__(self, n: int, primes: Sequence[int], special: Sequence[int], alpha: int, path: str) -> None: ...
    @property
    def path(self) -> str: ...

class Ciphertext:
    """Two or three polynomials in evaluation form; never changed."""

    @property
    def level(self) -> int: ...
    @property
    def size(self) -> int: ...

class SwitchKey:
    """A key-switching key for ciphertexts of its level and below."""

    @property
    def level(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class Plaintext:
    """An encoded operand; with special rows if `extended`."""

    @property
    def level(self) -> int: ...
    @property
    def extended(self) -> bool: ...
    @property
    def bytes(self) -> int: ...

def upload(ring: Ring, level: int, polys: Sequence[_U64]) -> Ciphertext:
    """Two or three polynomials (level + 1, n) in evaluation form, every residue below its prime."""

def download(x: Ciphertext, dst: _U64) -> None:
    """Fills (polynomials, level + 1, n)."""

def make_key(ring: Ring, level: int, element: int, digits: Sequence[tuple[_U64, _U64]]) -> SwitchKey:
    """Per digit (b, a), each (level + 1 + special primes, n); `element` is the automorphism it follows, 1 for none."""

def encode(ring: Ring, level: int, extended: bool, coefficients: npt.NDArray[np.float64], compact: bool) -> Plaintext:
    """Whole numbers, coefficient i of X^(i n / count); compact ones are transformed at each use."""

def constant(ring: Ring, level: int, extended: bool, residues: Sequence[int]) -> Plaintext:
    """One integer for all slots, by its residue in every row."""

def borrow(ring: Ring, level: int, extended: bool, residues: _U64) -> Plaintext:
    """An operand that reads (rows, n) residues where they are, from a cache line on, and keeps the array alive.

    Each is checked to be below its prime; they must not change afterwards.
    """

def residues(ring: Ring, plain: Plaintext, dst: _U64) -> None:
    """Fills (rows, n), whatever the operand's form."""

def add(ring: Ring, x: Ciphertext, y: Ciphertext, task: Task) -> Ciphertext: ...
def add_plain(ring: Ring, x: Ciphertext, plain: Plaintext, task: Task) -> Ciphertext: ...
def mul_plain(ring: Ring, x: Ciphertext, plain: Plaintext, task: Task) -> Ciphertext: ...
def mul(ring: Ring, x: Ciphertext, y: Ciphertext, task: Task) -> Ciphertext:
    """Three polynomials."""

def square(ring: Ring, x: Ciphertext, task: Task) -> Ciphertext:
    """Three polynomials."""

def relinearize(ring: Ring, x: Ciphertext, key: SwitchKey, task: Task) -> Ciphertext:
    """Three polynomials to two, with the key for the secret's square."""

def rescale(ring: Ring, x: Ciphertext, task: Task) -> Ciphertext:
    """Divided by the last prime, one level down."""

def mod_switch(ring: Ring, x: Ciphertext, task: Task) -> Ciphertext:
    """Without the last prime, one level down."""

def apply_galois(ring: Ring, x: Ciphertext, element: int, key: SwitchKey, task: Task) -> Ciphertext:
    """The automorphism X -> X^element, then its key."""

def rotate_hoisted(
    ring: Ring, x: Ciphertext, elements: Sequence[int], keys: Mapping[int, SwitchKey], task: Task
) -> list[Ciphertext]:
    """One ciphertext per Galois element; the operand is cut into digits once for all. IndexError without a key."""

def read_bandwidth(ring: Ring, keys: Sequence[SwitchKey]) -> int:
    """Reads every word of the keys once, on one thread, and returns their sum modulo 2^64."""

class Transform:
    """out_i = sum over groups of i of galois_group(sum over its cells of plaintext * galois_baby(in))."""

    @staticmethod
    def make(
        ring: Ring,
        level: int,
        inputs: int,
        outputs: int,
        babies: Sequence[tuple[int, int]],
        groups: Sequence[tuple[int, int]],
        cells: npt.NDArray[np.int64],
        plaintexts: Sequence[Plaintext],
    ) -> Transform:
        """Babies are (input, element), groups (output, element), cells (group, baby, plaintext) in the order of groups.

        Element 1 is no rotation. With any other baby the plaintexts need their special rows.
        """

    def run(
        self, inputs: Sequence[Ciphertext], keys: Mapping[int, SwitchKey], task: Task
    ) -> tuple[list[Ciphertext], dict[str, int]]:
        """The outputs, and what was done: counts, words and nanoseconds by stage. IndexError without a key."""
