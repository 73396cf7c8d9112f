"""Modules one after another as few steps: norms inside convolutions, activations in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from wiring.compiled.program import Builder, is_ambiguous
from wiring.graph.nodes import Bias, normalise


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(scale, shift) [C] of a batch norm in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = norm.bias.double() - norm.running_mean.double() * scale
    return scale.float().detach(), shift.float().detach()


def add_chain(
    builder: Builder, modules: Sequence[nn.Module], place: int, *, owned: bool, exact: bool
) -> int:
    """Steps for modules that follow one another; the place of their result.

    `owned` says that nobody else reads `place`. Where it must be `exact`, every module stays the
    operation that evaluation runs, so that not a bit changes.
    """
    queue = list(modules)
    while queue:
        module = queue.pop(0)
        if isinstance(module, nn.Conv2d):
            norm = queue.pop(0) if not exact and queue and _is_norm(queue[0]) else None
            place = builder.add("conv", _convolution(module, cast("nn.BatchNorm2d", norm)), place)
            owned = True
        elif isinstance(module, nn.ReLU):
            in_place = owned and not is_ambiguous(builder.value(place))
            place = builder.add("relu", torch.relu_ if in_place else torch.relu, place)
            owned = True
        elif _is_norm(module):
            place = builder.add("norm", _batch_norm(cast("nn.BatchNorm2d", module)), place)
            owned = True
        elif isinstance(module, nn.InstanceNorm2d):
            _, rest = normalise(module, builder.value(place), queue)
            taken = queue[: len(queue) - len(rest)]
            place = builder.add("instance norm", partial(_normalised, module, taken), place)
            queue, owned = rest, True
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d | Bias):
            place = builder.add(type(module).__name__.lower(), module.forward, place)
            owned = True
        elif not isinstance(module, nn.Dropout):
            place = builder.add(type(module).__name__.lower(), module.forward, place)
            owned = False
    return place


def _normalised(norm: nn.InstanceNorm2d, behind: list[nn.Module], x: Tensor) -> Tensor:
    return normalise(norm, x, behind)[0]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d)


def _batch_norm(norm: nn.BatchNorm2d) -> partial[Tensor]:
    return partial(
        torch.batch_norm,
        weight=norm.weight.detach(),
        bias=norm.bias.detach(),
        running_mean=norm.running_mean,
        running_var=norm.running_var,
        training=False,
        momentum=0.0,
        eps=norm.eps,
        cudnn_enabled=False,
    )


def _convolution(module: nn.Conv2d, norm: nn.BatchNorm2d | None) -> partial[Tensor]:
    """y = norm(w * x + b) as one convolution: the scale goes into w."""
    weight = module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    if norm is not None:
        scale, shift = affine(norm)
        weight = weight * scale.view(-1, 1, 1, 1)
        bias = shift if bias is None else shift + bias * scale
    return partial(
        torch.conv2d,
        weight=weight,
        bias=bias,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
    )
