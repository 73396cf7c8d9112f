"""Bits and scales that keep what a layer computes: binary weights as hashing.

A filter W_i of a trained layer reads columns X (one per patch) in the network as it was, and X̃
once earlier layers are binary. Bits B_i and a scale α_i are sought that make

    ‖Xᵀ W_i - α_i X̃ᵀ B_i‖²  =  ‖Xᵀ W_i‖² - 2 α_i B_iᵀ Q_i + α_i² B_iᵀ C B_i,
    C = X̃ X̃ᵀ,  Q = X̃ Xᵀ W,

small: an inner-product-preserving hash of W_i whose target is the layer in full precision, so
that errors do not add up from layer to layer (Hu, Wang and Cheng: From Hashing to CNNs, AAAI
2018). From B = sign W and α = mean |W|, in turns:

- every bit in order, for all filters at once: b_j ← sign(α (Q_j - α Σ_{k≠j} C_jk b_k)), as it was
  where that is 0;
- α_i = (B_iᵀ Q_i) / (B_iᵀ C B_i); with rows in several groups, each with a scale of its own,
  α_i = (ZᵀZ)⁻¹ Zᵀ Xᵀ W_i, column g of Z being X̃_gᵀ B_ig.

Both solve their part exactly, so no filter's objective ever rises, which is asserted. Where C is
a multiple of the identity nothing moves: that is a Binary-Weight-Network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.errors import WiringError
from wiring.graph.edges import Seen
from wiring.graph.surrogates import sign

BLOCK = 64  # bits whose inputs are brought up to date by one product of matrices
CHUNK = 2048  # patches held at a time
SLACK = 1e-9  # of an objective's largest term: rounding in float64
DEGENERATE = 1e-10  # of the largest eigenvalue of ZᵀZ


@dataclass(frozen=True)
class Moments:
    """What the objective is made of, float64: gram = C [R, R], cross = Q [R, D], energy =
    ‖Xᵀ W_i‖² [D]."""

    gram: Tensor
    cross: Tensor
    energy: Tensor


@dataclass(frozen=True)
class Hashed:
    """bits [D, R]: ±1, and 0 where an edge is dead; scales [D, G] >= 0; objectives [steps, D]:
    after the start, and after every turn of bits and of scales."""

    bits: Tensor
    scales: Tensor
    objectives: Tensor


def sampled_patches(
    seen: Seen,
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    count: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(X, X̃) transposed, [n, R] at a time: windows of both at the same places, R = S·kh·kw.

    `count` of them drawn without replacement, or all where there are no more. Raises WiringError
    where the two are of different shapes.
    """
    if seen.full.shape != seen.here.shape:
        raise WiringError(
            "a layer reads inputs of one shape before and after earlier layers change, got "
            f"{list(seen.full.shape)} and {list(seen.here.shape)}"
        )
    views = [_windows(x, kernel, stride, padding) for x in (seen.full, seen.here)]
    images, _, height, width = views[0].shape[:4]
    places = torch.randperm(images * height * width, generator=generator)[:count]
    for chunk in torch.split(places, CHUNK):
        pixel = chunk % (height * width)
        at = [
            part.to(seen.full.device)
            for part in (chunk // (height * width), pixel // width, pixel % width)
        ]
        full, here = (view[at[0], :, at[1], at[2]].flatten(1) for view in views)
        yield full, here


def _windows(x: Tensor, kernel: tuple[int, int], stride: int, padding: int) -> Tensor:
    """A view [N, S, H', W', kh, kw] of x with its padding."""
    padded = F.pad(x, (padding,) * 4)
    return padded.unfold(2, kernel[0], stride).unfold(3, kernel[1], stride)


def moments(patches: Iterator[tuple[Tensor, Tensor]], weight: Tensor) -> Moments:
    """Of the target weight [D, R]: what is dead in it is 0."""
    filters, rows = weight.shape
    gram, cross, energy = (
        torch.zeros(size, dtype=torch.float64, device=weight.device)
        for size in ((rows, rows), (rows, filters), (filters,))
    )
    for full, here in patches:
        target = full.to(weight.dtype) @ weight.T
        here = here.to(weight.dtype)
        # In the data's own precision, which is twice as fast; only sums of chunks add up further.
        gram += here.T @ here
        cross += here.T @ target
        energy += target.double().square().sum(dim=0)
    return Moments((gram + gram.T) / 2, cross, energy)


@torch.no_grad()
def hash_weights(
    weight: Tensor, live: Tensor, seen: Moments, groups: Tensor, *, sweeps: int
) -> Hashed:
    """The bits and scales of weights [D, R] on their live edges, bool [D, R].

    groups int64 [R]: the group of each row, 0 to G - 1. At most `sweeps` turns; fewer where no
    bit moves any more.
    """
    alive = live.T.contiguous()
    bits = sign(weight.T.double()) * alive
    members = F.one_hot(groups).to(torch.float64)
    counts = alive.double().T @ members
    scales = (weight.T.double().abs() * alive).T @ members / counts.clamp(min=1)
    products = _products(bits, seen, members)
    objectives = [_objective(scales, *products, seen)]
    for _ in range(sweeps):
        before = bits.clone()
        _sweep(bits, scales[:, groups].T.contiguous(), alive, seen)
        products = _products(bits, seen, members)
        objectives.append(_checked(objectives[-1], _objective(scales, *products, seen), seen))
        scales = _best_scales(scales, *products)
        objectives.append(_checked(objectives[-1], _objective(scales, *products, seen), seen))
        if torch.equal(bits, before):
            break
    turned = torch.where(scales < 0, -1.0, 1.0)
    bits = bits.T * turned[:, groups]
    return Hashed(bits, scales.abs(), torch.stack(objectives))


def _sweep(bits: Tensor, scale: Tensor, alive: Tensor, seen: Moments) -> None:
    """Every bit in turn, in place; bits, scale and alive [R, D].

    `rest` is Q - C (α B) of a block of rows. A bit that changes moves it within the block at
    once, and in later blocks by way of their product.
    """
    values, gram = scale * bits, seen.gram
    for start in range(0, len(bits), BLOCK):
        block = slice(start, start + BLOCK)
        inner = gram[block, block]
        rest = torch.addmm(seen.cross[block], gram[block], values, alpha=-1)
        # What a row's own bit takes from the rest is given back before it is chosen.
        for place, row in enumerate(range(start, start + len(rest))):
            wanted = rest[place].addcmul(inner[place, place], values[row]).mul_(scale[row])
            chosen = torch.where(wanted == 0, bits[row], torch.sign(wanted)).mul_(alive[row])
            value = scale[row] * chosen
            rest[place + 1 :].addr_(inner[place + 1 :, place], value - values[row], alpha=-1)
            bits[row], values[row] = chosen, value


def _products(bits: Tensor, seen: Moments, members: Tensor) -> tuple[Tensor, Tensor]:
    """(ZᵀZ [D, G, G], ZᵀS [D, G]) of bits [R, D]; members [R, G] one-hot."""
    squared = []
    for group in members.T:
        one = group.bool()
        reached = seen.gram[:, one] @ bits[one]
        squared.append((bits * reached).T @ members)
    return torch.stack(squared, dim=2), (bits * seen.cross).T @ members


def _objective(scales: Tensor, squared: Tensor, crossed: Tensor, seen: Moments) -> Tensor:
    """‖XᵀW_i - Z α_i‖² [D]."""
    quadratic = torch.einsum("dg,dgh,dh->d", scales, squared, scales)
    return seen.energy - 2 * (scales * crossed).sum(dim=1) + quadratic


def _best_scales(scales: Tensor, squared: Tensor, crossed: Tensor) -> Tensor:
    """The least-squares scales; of those that the data cannot tell apart, the nearest to the old
    ones."""
    rest = crossed - torch.einsum("dgh,dh->dg", squared, scales)
    inverse = torch.linalg.pinv(squared, hermitian=True, rtol=DEGENERATE)
    return scales + torch.einsum("dgh,dh->dg", inverse, rest)


def _checked(before: Tensor, after: Tensor, seen: Moments) -> Tensor:
    """`after`, which must not exceed `before` for any filter."""
    slack = SLACK * (seen.energy + before.abs())
    assert bool((after <= before + slack).all()), "a turn of binary hashing made a filter worse"
    return after
