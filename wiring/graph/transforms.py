"""Fast transforms of the last dimension, and what they cost; all in O(n log n).

Walsh-Hadamard: H₁ = 1, H₂ₙ = [[Hₙ, Hₙ], [Hₙ, -Hₙ]], symmetric, H H = n I; its gradient is itself.
Cosine (DCT-II, orthonormal): X_k = c_k Σ_j x_j cos(π (2j + 1) k / 2n), c_0 = √(1/n), else √(2/n),
by one Fourier transform of n points in another order (Makhoul: A Fast Cosine Transform in One and
Two Dimensions, IEEE Trans. ASSP 1980). Its inverse is its transpose.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wiring.cost import Cost
from wiring.errors import WiringError


def power_of_two(least: int) -> int:
    """The smallest power of two from `least` on."""
    return 1 << max(0, least - 1).bit_length()


def _butterflies(x: Tensor) -> Tensor:
    n, half = x.shape[-1], 1
    y = x
    while half < n:
        pairs = y.reshape(*x.shape[:-1], n // (2 * half), 2, half)
        a, b = pairs.unbind(-2)
        y = torch.stack((a + b, a - b), dim=-2)
        half *= 2
    return y.reshape(x.shape)


class _WalshHadamard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _butterflies(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        result: Tensor = _WalshHadamard.apply(grad)
        return result


def walsh_hadamard(x: Tensor) -> Tensor:
    """H x for x [..., 2^p], in Sylvester's order and without a factor: twice gives 2^p x.

    Raises WiringError for another length.
    """
    n = x.shape[-1]
    if n != power_of_two(n):
        raise WiringError(f"a Walsh-Hadamard transform takes a power of two of values, got {n}")
    result: Tensor = _WalshHadamard.apply(x)
    return result.clone() if n == 1 else result


def _turns(n: int, like: Tensor) -> Tensor:
    """exp(-iπk / 2n) for k = 0..n//2."""
    angle = torch.arange(n // 2 + 1, dtype=torch.float64, device=like.device) * (-math.pi / (2 * n))
    kind = torch.complex128 if like.dtype == torch.float64 else torch.complex64
    return torch.polar(torch.ones_like(angle), angle).to(kind)


def check_float(x: Tensor) -> None:
    """Raises WiringError for numbers of half the precision, of which PyTorch has no transform."""
    if x.dtype not in (torch.float32, torch.float64):
        raise WiringError(f"Fourier transforms take float32 or float64, got {x.dtype}")


def cosine(x: Tensor) -> Tensor:
    """The orthonormal DCT-II of x [..., n], float32 or float64, any n ≥ 1."""
    check_float(x)
    n = x.shape[-1]
    # Even places, then the odd ones backwards.
    mixed = torch.cat((x[..., ::2], x[..., 1::2].flip(-1)), dim=-1)
    z = torch.fft.rfft(mixed) * _turns(n, x)
    # Coefficient n - k is the imaginary part of coefficient k, with a minus.
    upper = -z.imag[..., 1 : (n + 1) // 2].flip(-1)
    y = torch.cat((z.real, upper), dim=-1) * math.sqrt(2 / n)
    return torch.cat((y[..., :1] * math.sqrt(0.5), y[..., 1:]), dim=-1)


def inverse_cosine(y: Tensor) -> Tensor:
    """The inverse of `cosine`, an orthonormal DCT-III; y [..., n]."""
    n = y.shape[-1]
    x = torch.cat((y[..., :1] * math.sqrt(2), y[..., 1:]), dim=-1) * math.sqrt(n / 2)
    nothing = torch.zeros_like(x[..., :1])
    backwards = torch.cat((nothing, x[..., 1:].flip(-1)), dim=-1)[..., : n // 2 + 1]
    z = torch.complex(x[..., : n // 2 + 1], -backwards)
    mixed = torch.fft.irfft(z * _turns(n, x).conj(), n=n)
    even = (n + 1) // 2
    first, second = mixed[..., :even], mixed[..., even:].flip(-1)
    if n % 2:
        second = torch.cat((second, nothing), dim=-1)
    return torch.stack((first, second), dim=-1).flatten(-2)[..., :n]


def fourier_cost(n: int) -> Cost:
    """One Fourier transform of n real values (or back to them): ⌈n log₂ n⌉ multiplications and
    ⌈3/2 n log₂ n⌉ additions, half of what the radix-2 butterflies of n complex values take.

    Images of n1 x n2 values count as n1·n2 of them.
    """
    steps = n * math.log2(max(1, n))
    return Cost(math.ceil(steps), math.ceil(1.5 * steps), transforms=1)


def cosine_cost(n: int) -> Cost:
    """One cosine transform: a Fourier transform, and n/2 complex products (4 multiplications and
    2 additions each)."""
    pairs = -(-n // 2)
    return fourier_cost(n) + Cost(4 * pairs, 2 * pairs)


def walsh_hadamard_cost(n: int) -> Cost:
    """One Walsh-Hadamard transform of n = 2^p values: n p additions."""
    return Cost(additions=n * (n.bit_length() - 1), transforms=1)
