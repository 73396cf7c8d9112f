"""The plug-in protocol of node rules: which nodes of a trained network go, and who inherits them.

A rule sees the nodes of one group at a time: what arrives at them, what leaves them, and what
they compute on the images of a calibration set. Whoever drives it (`wiring.removal` for neural
graphs, `wiring.models.removal` for any other network) removes the nodes physically.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from wiring.config import Config, Share, parse
from wiring.registry import Registry


class NodeOptions(Config):
    """`share` of each group's nodes that is removed."""

    share: Share = 0.5


@dataclass(frozen=True)
class Nodes:
    """The nodes of one group.

    incoming float [size, fan_in]: the weights of each node's incoming edges, its bias last where
    it has one. outgoing float [destinations, size, kh, kw]: those of the edges that read the
    nodes, all readers of equal kernel side by side; None where a rule cannot change them.
    values float [M, size]: what the nodes compute, behind their activation, on M samples (images,
    or pixels of images), drawn at random. effective float [size, features] is what makes a node
    what it is: `incoming` with a batch norm's scale and shift taken in, and what else it has of
    its own (a depthwise kernel). Nodes of equal rows compute the same.
    """

    name: str
    incoming: Tensor
    outgoing: Tensor | None
    values: Tensor
    effective: Tensor | None = None

    @property
    def size(self) -> int:
        return self.incoming.shape[0]


class NodeRule(ABC):
    """Which nodes stay, and how the others' outgoing weights are handed to them.

    Plain objects: all that a rule knows is its options. Those that shape a network while it
    trains (`trains`) also see the weights after every optimiser step.
    """

    paper: ClassVar[str] = ""
    use: ClassVar[str] = ""
    Options: ClassVar[type[Config]] = NodeOptions
    # `shrink` is called after every step of the training that precedes the removal.
    trains: ClassVar[bool] = False

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        self.options = self.parse_options(options or {})

    @classmethod
    def parse_options(cls, options: dict[str, Any]) -> Any:
        """Checked options of this rule. Raises ConfigError."""
        return parse(cls.Options, options, where=f"node rule {cls.__module__.rpartition('.')[2]}")

    @abstractmethod
    def select(self, nodes: Nodes, generator: torch.Generator) -> Tensor:
        """The nodes that stay, bool [size]; at least one. Ties go to the lower index."""

    def transfer(self, nodes: Nodes, kept: Tensor) -> Tensor:
        """T float [size, kept]: outgoing weights become W·T. By default what leaves the removed
        nodes is lost: the rows of kept nodes are unit vectors, the others 0."""
        return torch.eye(nodes.size, dtype=nodes.incoming.dtype, device=kept.device)[:, kept]

    def shrink(self, groups: Sequence[Tensor], lr: float) -> None:
        """For rules that train: change the weights [size, fan_in] of each group's incoming edges
        in place, after a step at rate `lr`."""
        raise NotImplementedError(f"{type(self).__name__} does not train")


NODE_RULES: Registry[NodeRule] = Registry(
    "node rule", package="wiring.methods", group="wiring.node_rules"
)


def strongest_nodes(scores: Tensor, count: int) -> Tensor:
    """Bool [size]: the `count` nodes of the highest scores [size], ties to the lower index."""
    kept = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    kept[torch.sort(scores, descending=True, stable=True).indices[:count]] = True
    return kept


def remaining(size: int, share: float) -> int:
    """How many of `size` nodes stay where a share goes: at least one."""
    return max(1, size - round(share * size))


def squared_distances(rows: Tensor) -> Tensor:
    """‖row_i − row_j‖² of rows [size, features]; float64 [size, size], exactly 0 where two rows
    differ by no more than rounding."""
    rows = rows.double()
    products = rows @ rows.T
    squares = products.diagonal()
    sums = squares[:, None] + squares[None, :]
    distances = sums - 2 * products
    return torch.where(distances > 1e-12 * sums, distances, 0.0)
