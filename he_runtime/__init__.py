"""CompressedModel in, Plan out; price, simulate, execute. No torch, no grpc."""

from __future__ import annotations

from .compile import compile
from .cost import CostReport, CostTable, price
from .execute import Executor, run_clear
from .model import CompressedModel
from .plan import Plan

__all__ = ["CompressedModel", "CostReport", "CostTable", "Executor", "Plan", "compile", "price", "run_clear"]
