"""s_ij = mean(a_j²) · ‖W_i − W_j‖²,  W incoming weights with the bias, a outgoing weights

Node j of the smallest s_ij goes, a_i ← a_i + a_j, and again until the share is gone, without any
data.                                                            (Srinivas and Babu 2015, eq. 8)

Equal nodes merge without a trace. W holds a batch norm's scale and shift, and a node's own
depthwise kernel, so that "equal" means computing the same. Ties: the higher index goes, to the
lowest node it is nearest to. Where outgoing weights cannot be changed all a_j count as 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wiring.graph.node_rules import NODE_RULES, NodeRule, Nodes, remaining, squared_distances


@NODE_RULES.register("merge")
class DataFreeMerge(NodeRule):
    """The most similar nodes become one, which takes over both sets of outgoing weights."""

    paper = "Srinivas, Babu: Data-free Parameter Pruning for Deep Neural Networks, BMVC 2015"
    use = (
        "For trained networks whose data are gone: only weights are looked at, so images of noise "
        "will do to run the network on; best on wide layers with duplicate nodes. Take dpp where "
        "images are at hand: it sees what nodes do, not what they weigh."
    )

    def select(self, nodes: Nodes, generator: torch.Generator) -> Tensor:
        count = nodes.size - remaining(nodes.size, self.options.share)
        kept = torch.ones(nodes.size, dtype=torch.bool, device=nodes.incoming.device)
        for gone, _ in _merges(nodes, kept, count):
            kept[gone] = False
        return kept

    def transfer(self, nodes: Nodes, kept: Tensor) -> Tensor:
        """Each removed node's row is the unit vector of the node it went into."""
        heirs = list(range(nodes.size))
        for gone, heir in _merges(nodes, ~kept, int((~kept).sum())):
            heirs[gone] = heir
        for node in range(nodes.size):
            while not kept[heirs[node]]:
                heirs[node] = heirs[heirs[node]]
        whole = torch.eye(nodes.size, dtype=nodes.incoming.dtype, device=kept.device)
        return whole[heirs][:, kept]


def _merges(nodes: Nodes, may_go: Tensor, count: int) -> list[tuple[int, int]]:
    """The first `count` merges (node that goes, node that takes over) among those that may go."""
    rows = nodes.incoming if nodes.effective is None else nodes.effective
    distances = squared_distances(rows)
    distances.fill_diagonal_(torch.inf)
    if nodes.outgoing is None:
        leaving = rows.new_ones(1, nodes.size, dtype=torch.float64)
    else:
        leaving = nodes.outgoing.double().transpose(0, 1).flatten(1).T.clone()
    strengths = leaving.square().mean(dim=0)
    nearest, heirs = distances.min(dim=1)
    eligible = may_go.clone()
    merges: list[tuple[int, int]] = []
    for _ in range(count):
        saliency = torch.where(eligible, strengths * nearest, torch.inf)
        gone = nodes.size - 1 - int(saliency.flip(0).argmin())
        heir = int(heirs[gone])
        merges.append((gone, heir))
        eligible[gone] = False
        if nodes.outgoing is not None:
            leaving[:, heir] += leaving[:, gone]
            strengths[heir] = leaving[:, heir].square().mean()
        distances[gone] = distances[:, gone] = torch.inf
        orphans = heirs == gone
        nearest[orphans], heirs[orphans] = distances[orphans].min(dim=1)
        nearest[gone] = torch.inf
    return merges
