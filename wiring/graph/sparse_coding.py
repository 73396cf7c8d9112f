"""Dictionaries: vectors as sums of a few multiples of shared atoms, t ≈ Σ_{l≤s} c_l·d[i_l].

Codes by orthogonal matching pursuit (Pati, Rezaiifar, Krishnaprasad, Asilomar 1993): the atom that
lies nearest to the residual joins, then all coefficients are fitted anew. Atoms by the method of
optimal directions (Engan, Aase, Husøy, ICASSP 1999): least squares for fixed codes. Everything is
deterministic.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pursue(targets: Tensor, atoms: Tensor, lookups: int) -> Tensor:
    """Codes [n, k] with at most `lookups` entries a row, for targets [n, d] and atoms [k, d].

    The residual of a row never grows with another look-up. Atoms of norm 0 are never taken.
    """
    norms = atoms.norm(dim=1)
    directions = atoms / norms.clamp(min=torch.finfo(atoms.dtype).tiny)[:, None]
    rows = torch.arange(len(targets), device=targets.device)
    taken = (norms == 0).expand(len(targets), -1).clone()
    codes = targets.new_zeros(len(targets), len(atoms))
    chosen = torch.empty(len(targets), 0, dtype=torch.int64, device=targets.device)
    residual = targets
    for _ in range(min(lookups, int((norms > 0).sum()))):
        nearness = (residual @ directions.T).abs().masked_fill(taken, -1.0)
        best = nearness.argmax(dim=1)
        taken[rows, best] = True
        chosen = torch.cat([chosen, best[:, None]], dim=1)
        used = directions[chosen]
        # By the pseudo-inverse: atoms may be parallel.
        gram = torch.linalg.pinv(used @ used.mT, rtol=1e-10, hermitian=True)
        fitted = (gram @ (used @ targets[:, :, None])).squeeze(2)
        residual = targets - (fitted[:, None] @ used).squeeze(1)
        codes = torch.zeros_like(codes).scatter_(1, chosen, fitted)
    return codes / torch.where(norms > 0, norms, 1.0)


def first_atoms(targets: Tensor, count: int) -> Tensor:
    """`count` of the targets [n, d]: the longest, then again and again the one that lies farthest
    from the line through its nearest atom; zeros once none lies off those lines."""
    residual = targets.norm(dim=1)
    floor = float(residual.max()) * 1e-9 if len(targets) else 0.0
    atoms = targets.new_zeros(count, targets.shape[1])
    for place in range(count):
        farthest = int(residual.argmax()) if len(targets) else 0
        if not len(targets) or float(residual[farthest]) <= floor:
            break
        atoms[place] = targets[farthest]
        direction = targets[farthest] / targets[farthest].norm()
        off = targets - (targets @ direction)[:, None] * direction
        residual = torch.minimum(residual, off.norm(dim=1))
        residual[farthest] = 0.0
    return atoms


def learn_dictionary(
    targets: Tensor, atoms: int, lookups: int, *, iterations: int = 20
) -> tuple[Tensor, Tensor]:
    """(dictionary [atoms, d], codes [n, atoms]) near to targets [n, d], float64.

    Atoms have norm 1 or, where they are not needed, 0. Codes have at most `lookups` entries a row.
    The best of all iterations is returned: where the targets lie on no more lines than there are
    atoms, that is exact.
    """
    targets = targets.detach().double()
    dictionary = _unit(first_atoms(targets, atoms))
    codes = pursue(targets, dictionary, lookups)
    best = (float((targets - codes @ dictionary).norm()), dictionary, codes)
    for _ in range(iterations):
        fitted = torch.linalg.pinv(codes) @ targets
        unused = codes.abs().amax(dim=0) == 0
        if unused.any():
            worst = (targets - codes @ dictionary).norm(dim=1).argsort(descending=True)
            places = unused.nonzero().squeeze(1)[: len(worst)]
            fitted[places] = targets[worst[: len(places)]]
        dictionary = _unit(fitted)
        codes = pursue(targets, dictionary, lookups)
        error = float((targets - codes @ dictionary).norm())
        if error < best[0]:
            best = (error, dictionary, codes)
    return best[1], best[2]


def _unit(rows: Tensor) -> Tensor:
    norms = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1.0)
