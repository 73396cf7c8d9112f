"""The matrices of Winograd's minimal filtering, and the three transforms as matrix products.

F(m x m, 3 x 3) reads tiles d of a = m + 2 pixels a side, m apart, and gives m² results of each:

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A.

A transform of both sides of a tile is one product with a Kronecker matrix, vec(Bᵀ d B) =
(Bᵀ ⊗ Bᵀ) vec(d), taken for all tiles and channels at once. Transformed tiles are [a², T, S],
filters [a², S, D], so that the sum over channels is a² matrix products; channels lie innermost
throughout.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.masked_conv2d.definition import as_last, check_edges, check_image

# Lavin & Gray, section 4: B transposed, G and A transposed by the side of a tile's results.
_MATRICES = {
    2: (
        ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
        ((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    4: (
        (
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        (
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
}
TILES = tuple(_MATRICES)


class Matrices(NamedTuple):
    """Kronecker squares: `image` [a², a²], `filter` [a², 9], `result` [m², a²]."""

    image: Tensor
    filter: Tensor
    result: Tensor


@functools.cache
def matrices(tile: int, dtype: torch.dtype, device: torch.device) -> Matrices:
    """The matrices of F(tile x tile, 3 x 3) in a type, rounded from float64."""
    squares = []
    for rows in _MATRICES[tile]:
        matrix = torch.tensor(rows, dtype=torch.float64)
        squares.append(torch.kron(matrix, matrix).to(device, dtype))
    return Matrices(*squares)


def like(tile: int, tensor: Tensor) -> Matrices:
    """The matrices in the type of a tensor, and where it is."""
    return matrices(tile, tensor.dtype, tensor.device)


def check(x: Tensor, weight: Tensor, padding: int, tile: int) -> tuple[int, int]:
    """(H', W'); raises WiringError where types, shapes, sizes or the tile do not fit."""
    check_edges(weight)
    if tuple(weight.shape[2:]) != (3, 3):
        raise WiringError(f"Winograd tiles are for kernels of 3x3, got {list(weight.shape[2:])}")
    if tile not in TILES:
        raise WiringError(f"a Winograd tile has 2 or 4 results a side, got {tile}")
    size = check_image(x, weight, 1, padding)
    if x.dtype not in (torch.float32, torch.float64):
        raise WiringError(f"Winograd transforms take float32 or float64, got {x.dtype}")
    return size


def filter_tiles(weight: Tensor, tile: int) -> Tensor:
    """G g Gᵀ of weight [D, S, 3, 3]: [a², S, D]."""
    d, s = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(9, s * d)
    return (like(tile, weight).filter @ taps).view((tile + 2) ** 2, s, d)


def image_tiles(x: Tensor, size: tuple[int, int], padding: int, tile: int) -> Tensor:
    """Bᵀ d B of the tiles that give `size` results: x [N, S, H, W] → [a², N·th·tw, S].

    Images are filled up with zeros to whole tiles; a negative padding cuts them.
    """
    side = tile + 2
    down, right = (-(-n // tile) for n in size)
    bottom = down * tile + 2 - x.shape[2] - padding
    end = right * tile + 2 - x.shape[3] - padding
    last = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, end, padding, bottom))
    tiles = last.unfold(1, side, tile).unfold(2, side, tile).permute(4, 5, 0, 1, 2, 3)
    rows = tiles.reshape(side * side, -1)
    return (like(tile, x).image @ rows).view(side * side, -1, x.shape[1])


def result_images(tiles: Tensor, images: int, size: tuple[int, int], tile: int) -> Tensor:
    """Aᵀ m A of [a², T, D], put together: [N, D, H', W'], channels_last."""
    down, right = (-(-n // tile) for n in size)
    y = like(tile, tiles).result @ tiles.flatten(1)
    y = y.view(tile, tile, images, down, right, -1).permute(2, 3, 0, 4, 1, 5)
    y = y.reshape(images, down * tile, right * tile, -1)[:, : size[0], : size[1]]
    return as_last(y.permute(0, 3, 1, 2))


def gradient_tiles(grad: Tensor, tile: int) -> Tensor:
    """A dy Aᵀ of grad [N, D, H', W']: [a², T, D]."""
    down, right = (-(-n // tile) for n in grad.shape[2:])
    filled = (0, 0, 0, right * tile - grad.shape[3], 0, down * tile - grad.shape[2])
    last = F.pad(grad.permute(0, 2, 3, 1), filled)
    tiles = last.reshape(len(grad), down, tile, right, tile, -1)
    rows = tiles.permute(2, 4, 0, 1, 3, 5).reshape(tile * tile, -1)
    return (like(tile, grad).result.t() @ rows).view((tile + 2) ** 2, -1, grad.shape[1])


def filter_gradient(tiles: Tensor, tile: int) -> Tensor:
    """Gᵀ dU G of [a², S, D]: dw [D, S, 3, 3], contiguous."""
    taps = like(tile, tiles).filter.t() @ tiles.flatten(1)
    return taps.view(3, 3, *tiles.shape[1:]).permute(3, 2, 0, 1).contiguous()
