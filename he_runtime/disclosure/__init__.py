"""Plans that tell clients a network's shape and nothing else of its weights.

A *stand-in* of the same shape with public weights is planned; the real weights then take the place of the stand-in's
operands, one for one. Operations, levels, parameters, keys, slot maps and the stated error bound are the stand-in's, so
they cannot depend on the real weights.
"""

from .stand_in import PUBLIC_MAGNITUDE, stand_in
from .weights import public_budget, with_weights

__all__ = ["PUBLIC_MAGNITUDE", "public_budget", "stand_in", "with_weights"]
