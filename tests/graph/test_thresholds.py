"""A comparison before the norm gives the bits of the sign behind it, at the border too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wiring.compiled.thresholds import sign_thresholds

CHANNELS, SIDE = 67, 5
FORMATS = (torch.contiguous_format, torch.channels_last)


def norm(seed: int) -> nn.BatchNorm2d:
    """A norm whose channels rise, fall, and stand still on either side of 0."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.BatchNorm2d(CHANNELS).eval()
    assert module.running_mean is not None
    assert module.running_var is not None
    with torch.no_grad():
        for tensor in (module.weight, module.bias, module.running_mean):
            tensor.copy_(torch.randn(CHANNELS, generator=generator))
        module.running_var.copy_(torch.rand(CHANNELS, generator=generator) * 10 ** (seed - 2))
        module.weight[:3] = 0
        module.bias[:3] = torch.tensor([-1.0, 0.0, 1.0])
        module.bias[3:5] = 0
    return module


CHAINS = {
    "norm": lambda seed: nn.Sequential(norm(seed)),
    "act-norm": lambda seed: nn.Sequential(nn.ReLU(), norm(seed)),
    "norm-act": lambda seed: nn.Sequential(norm(seed), nn.ReLU()),
    "nothing": lambda seed: nn.Sequential(),
    "two norms": lambda seed: nn.Sequential(norm(seed), norm(seed + 1)),
}


@torch.no_grad()
@pytest.mark.parametrize("memory_format", FORMATS, ids=["planar", "channels_last"])
@pytest.mark.parametrize("seed", [0, 1, 2, 4])
@pytest.mark.parametrize("name", CHAINS)
def test_bits_are_those_of_the_steps_on_both_sides_of_every_border(
    name: str, seed: int, memory_format: torch.memory_format
) -> None:
    steps = CHAINS[name](seed)
    example = torch.randn(2, CHANNELS, SIDE, SIDE).contiguous(memory_format=memory_format)
    found = sign_thresholds(steps, example)
    assert found is not None
    threshold, flip = (part.view(1, -1, 1, 1) for part in found)
    border = threshold.nan_to_num(neginf=0.0).expand_as(example)
    far = torch.full_like(border, torch.inf)
    for x in (
        example,
        example * 1e-30,
        example * 1e30,
        border,
        torch.nextafter(border, far),
        torch.nextafter(border, -far),
        torch.zeros_like(example),
        -torch.zeros_like(example),
    ):
        x = x.contiguous(memory_format=memory_format)
        assert torch.equal((x >= threshold) ^ flip, steps(x) >= 0)


def test_steps_that_treat_positions_differently_have_no_threshold() -> None:
    def slanted(x: Tensor) -> Tensor:
        return x - torch.arange(SIDE)

    assert sign_thresholds(slanted, torch.zeros(1, CHANNELS, SIDE, SIDE)) is None
