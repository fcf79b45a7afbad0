"""The native kernel: C++ for the `native` backend. `_kernel` exists only where it was built; `status` tells."""

from __future__ import annotations

from .availability import KernelStatus, status

__all__ = ["KernelStatus", "status"]
