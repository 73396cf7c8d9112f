"""Exact selection of the k best edges."""

from wiring.kernels.select_edges.op import select_edges

__all__ = ["select_edges"]
