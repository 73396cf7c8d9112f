"""L_ij = exp(−β ‖v_i − v_j‖²) + ε δ_ij,  β = 10 / |T|,  v_i what node i computes on the set T

k nodes stay with probability det(L_Y) / Σ_|Y'|=k det(L_Y'): a k-DPP, which prefers nodes that
differ. Sampled exactly: L = Σ λ_n q_n q_nᵀ; k eigenvectors are drawn with elementary symmetric
polynomials of λ, then k nodes from the projection on them.        (Kulesza and Taskar 2012, alg. 8)

The removed nodes are fused into those that stay by least squares: T minimises ‖V − V_kept T'‖² with
V [|T|, size] the values, so that the next layer reads nearly what it read.
                                                                   (Mariet and Sra 2016, section 3)
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor

from wiring.graph.node_rules import (
    NODE_RULES,
    NodeOptions,
    NodeRule,
    Nodes,
    remaining,
    squared_distances,
)


class Options(NodeOptions):
    """`share` of each group's nodes goes. `beta` times |T| is the paper's 10, `epsilon` its ε."""

    beta: PositiveFloat = 10.0
    epsilon: PositiveFloat = 0.01


@NODE_RULES.register("dpp")
class DiversityNetworks(NodeRule):
    """A diverse sample of the nodes stays, the others are fused into it by least squares."""

    paper = "Mariet, Sra: Diversity Networks, ICLR 2016"
    use = (
        "For layers whose nodes do alike things, with images at hand: the next layer hardly "
        "notices, even before any retraining. Take merge where there are no images."
    )
    Options = Options

    def kernel(self, nodes: Nodes) -> Tensor:
        """L, float64 [size, size]."""
        distances = squared_distances(nodes.values.T)
        similar = torch.exp(-self.options.beta / len(nodes.values) * distances)
        similar.diagonal().add_(self.options.epsilon)
        return similar

    def select(self, nodes: Nodes, generator: torch.Generator) -> Tensor:
        count = remaining(nodes.size, self.options.share)
        chosen = sample(self.kernel(nodes).cpu(), count, generator)
        return chosen.to(nodes.incoming.device)

    def transfer(self, nodes: Nodes, kept: Tensor) -> Tensor:
        """Rows of removed nodes: what they compute as a combination of those that stay."""
        values = nodes.values.double().cpu()
        stay = kept.cpu()
        fused = super().transfer(nodes, kept)
        if not bool(stay.all()):
            solved = torch.linalg.lstsq(values[:, stay], values[:, ~stay], driver="gelsy")
            fused[~kept] = solved.solution.T.to(fused)
        return fused


def sample(kernel: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """An exact sample of a k-DPP; kernel float64 [size, size], returns bool [size]."""
    values, vectors = torch.linalg.eigh(kernel)
    chosen = _eigenvectors(values.clamp(min=torch.finfo(values.dtype).tiny), count, generator)
    return _projection(vectors[:, chosen], generator)


def _eigenvectors(values: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Which `count` eigenvectors span the projection: sets weigh as the product of their values.

    sums[n][l] is the logarithm of the elementary symmetric polynomial of degree l in the first n
    eigenvalues: the polynomials themselves pass any float's range.
    """
    logs = values.log()
    none = torch.full((count + 1,), -torch.inf, dtype=values.dtype)
    none[0] = 0.0
    sums = [none]
    for log in logs:
        longer = sums[-1].clone()
        longer[1:] = torch.logaddexp(longer[1:], log + sums[-1][:-1])
        sums.append(longer)
    draws = torch.rand(len(values), generator=generator, dtype=values.dtype)
    chosen: list[int] = []
    for n in range(len(values), 0, -1):
        left = count - len(chosen)
        if left == 0:
            break
        share = torch.exp(logs[n - 1] + sums[n - 1][left - 1] - sums[n][left])
        if left == n or bool(draws[n - 1] < share):
            chosen.append(n - 1)
    return chosen


def _projection(basis: Tensor, generator: torch.Generator) -> Tensor:
    """A sample of the DPP whose kernel projects on `basis`, orthonormal [size, k]; bool [size].

    One item after the other, each with the square of its distance to the span of those drawn.
    """
    size, count = basis.shape
    drawn = torch.zeros(size, dtype=torch.bool)
    spanned = basis.new_zeros(size, count)
    left = basis.square().sum(dim=1)
    for place in range(count):
        weights = torch.where(drawn, 0.0, left.clamp(min=0.0))
        item = int(torch.multinomial(weights, 1, generator=generator))
        drawn[item] = True
        along = basis @ basis[item] - spanned[:, :place] @ spanned[item, :place]
        spanned[:, place] = along / along[item].sqrt()
        left = left - spanned[:, place].square()
    return drawn
