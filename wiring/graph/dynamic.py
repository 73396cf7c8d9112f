"""Neural graphs that run over time, cycles included."""

from __future__ import annotations

from torch import Tensor

from wiring.graph.neural import NeuralGraph


class DiscreteGraph(NeuralGraph):
    """T steps with shared node functions."""

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class ContinuousGraph(NeuralGraph):
    """An ordinary differential equation, solved by torchdiffeq."""

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError
