"""LinearMap: what every linear layer is before packing, a sparse matrix over flat elements plus a bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

__all__ = ["LinearMap"]


@dataclass(frozen=True)
class LinearMap:
    """y = matrix @ x + bias on row-major flattened tensors; matrix is (out elements, in elements), CSR, float64."""

    matrix: sp.csr_array
    bias: npt.NDArray[np.float64]

    def after(self, first: LinearMap) -> LinearMap:
        """The composition self(first(x)): two linear layers cost one level and one packing instead of two."""
        return LinearMap(sp.csr_array(self.matrix @ first.matrix), self.matrix @ first.bias + self.bias)

    def without_zeros(self) -> LinearMap:
        """Drop stored zeros, so that a pruned weight is no operand at all."""
        matrix = self.matrix.copy()
        matrix.eliminate_zeros()
        return LinearMap(matrix, self.bias)
