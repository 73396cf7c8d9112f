"""Hashes of many positions at once, for wirings and weights that follow from a seed."""

from wiring.kernels.xxhash32.definition import coin, xxh32
from wiring.kernels.xxhash32.op import hashed_places

__all__ = ["coin", "hashed_places", "xxh32"]
