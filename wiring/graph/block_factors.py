"""Factors of many small tensors at once: the pairs of clusters that a weight is divided into.

Blocks are [B, f, c] or [B, f, c, p], float64: f outputs, c inputs, p pixels. Each is factored by
itself, to a rank that all share.
"""

from __future__ import annotations

import torch
from torch import Tensor

SWEEPS = 5
OUTER_STEPS = 100


def matrices(blocks: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U [B, K, c] and V [B, f, K] with V U nearest to the blocks [B, f, c]."""
    left, values, right = torch.linalg.svd(blocks, full_matrices=False)
    root = values[:, :rank].sqrt()
    return root[..., None] * right[:, :rank], left[..., :rank] * root[:, None]


def tucker(blocks: Tensor, before: int, after: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [B, K, c], C [B, L, K, p], V [B, f, L] near the blocks [B, f, c, p].

    Singular vectors by inputs, then by outputs (Denton, section 3.3), and some sweeps of higher
    order orthogonal iteration, in which the error never rises.
    """
    inputs = _leading(blocks.transpose(1, 2).flatten(2), before)
    for _ in range(SWEEPS):
        seen = torch.einsum("bfcp,bck->bfkp", blocks, inputs)
        outputs = _leading(seen.flatten(2), after)
        seen = torch.einsum("bfcp,bfl->bclp", blocks, outputs)
        inputs = _leading(seen.flatten(2), before)
    core = torch.einsum("bfcp,bck,bfl->blkp", blocks, inputs, outputs)
    # Factors of one size train alike; the core alone has one in orthonormal coordinates.
    size = core.flatten(1).square().mean(dim=1).pow(1 / 6).clamp(min=1e-12).view(-1, 1, 1)
    return inputs.transpose(1, 2) * size, core / size.unsqueeze(3).square(), outputs * size


def _leading(matrices: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors [B, m, rank] of [B, m, n], completed where n < rank."""
    left: Tensor = torch.linalg.svd(matrices, full_matrices=rank > matrices.shape[2])[0]
    return left[..., :rank]


def outer_products(blocks: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [B, K, c], C [B, K, p], V [B, f, K] near the blocks [B, f, c, p].

    Alternating least squares from singular vectors, in which the error never rises.
    """
    inputs = _first(blocks.transpose(1, 2).flatten(2), rank)
    pixels = _first(blocks.movedim(3, 1).flatten(2), rank)
    for _ in range(OUTER_STEPS):
        outputs = torch.einsum("bfcp,bck,bpk->bfk", blocks, inputs, pixels)
        outputs = outputs @ _inverse(inputs, pixels)
        inputs = torch.einsum("bfcp,bfk,bpk->bck", blocks, outputs, pixels)
        inputs = _unit(inputs @ _inverse(outputs, pixels))
        pixels = torch.einsum("bfcp,bfk,bck->bpk", blocks, outputs, inputs)
        pixels = pixels @ _inverse(outputs, inputs)
        outputs = _unit(outputs)
    # Both are of length 1 or 0 now: what an outer product weighs is in its kernel alone.
    weighed = torch.einsum("bfcp,bfk,bck->bpk", blocks, outputs, inputs)
    pixels = weighed @ _inverse(outputs, inputs)
    size = torch.linalg.vector_norm(pixels, dim=1, keepdim=True).pow(1 / 3)
    pixels = _unit(pixels) * size
    return (inputs * size).mT, pixels.mT, outputs * size


def _first(matrices: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors of [B, m, n], and where there are fewer than `rank` of
    them, vectors drawn from one seed; [B, m, rank]."""
    known = torch.linalg.svd(matrices, full_matrices=False)[0][..., :rank]
    shape = (*known.shape[:2], rank - known.shape[2])
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([known, _unit(drawn.to(known))], dim=2)


def _inverse(one: Tensor, other: Tensor) -> Tensor:
    """Of the moments [B, K, K] of the outer products of two factors' columns."""
    inverse: Tensor = torch.linalg.pinv((one.mT @ one) * (other.mT @ other), hermitian=True)
    return inverse


def _unit(columns: Tensor) -> Tensor:
    """Columns [B, m, K] of length 1, or of 0."""
    length: Tensor = torch.linalg.vector_norm(columns, dim=1, keepdim=True)
    return columns / length.clamp(min=1e-300)
