"""The 41k-parameter classifier in continuous time: the discrete one's function as a derivative."""

from __future__ import annotations

from typing import ClassVar

from search.spaces.base import SPACES
from search.spaces.tiny_discrete import TinyDiscrete
from wiring.graph.topology import Continuous, Dynamics


@SPACES.register("tiny-continuous")
class TinyContinuous(TinyDiscrete):
    """A graph of 800 nodes as a differential equation, t from 0 to 1: 32,000 edges, 41k parameters.

    Solved by dopri5 with relative and absolute tolerances of 1e-3.
    """

    name = "tiny-continuous"
    use = (
        "For wirings as differential equations. It costs many evaluations an image; tiny- "
        "discrete takes five steps."
    )
    dynamics: ClassVar[Dynamics] = Continuous(solver="dopri5", time=1.0, rtol=1e-3, atol=1e-3)
