"""k-means whose clusters have one size, for operators that keep a block for each of them."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 30


def balanced_clusters(points: Tensor, clusters: int) -> Tensor:
    """The cluster of each point [n, features], int64 [n]; sizes differ by at most one.

    Lloyd's iterations from centres far apart; each assignment has the least total squared distance
    of all with such sizes, so the sum never rises.
    """
    from scipy.optimize import linear_sum_assignment

    n = len(points)
    if clusters == 1:
        return torch.zeros(n, dtype=torch.long, device=points.device)
    chosen = [int(points.square().sum(dim=1).argmax())]
    while len(chosen) < clusters:
        near = torch.cdist(points, points[chosen]).amin(dim=1)
        near[chosen] = -1
        chosen.append(int(near.argmax()))
    centres = points[chosen]
    places = torch.arange(n, device=points.device) * clusters // n
    cluster = torch.full_like(places, -1)
    for _ in range(ROUNDS):
        distances = torch.cdist(points, centres).square()[:, places]
        _, taken = linear_sum_assignment(distances.cpu().numpy())
        found = places[torch.from_numpy(taken).to(places.device)]
        if torch.equal(found, cluster):
            break
        cluster = found
        centres = torch.stack([points[cluster == k].mean(dim=0) for k in range(clusters)])
    return cluster
