"""All or nothing: a network that a step fails to change is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

CONTENTS = ("_parameters", "_buffers", "_modules")


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Inside, a network may be changed in any way; where an exception leaves, its modules, sizes
    and values are those of before. Meanwhile a copy of all its tensors is kept."""
    modules = {module: dict(vars(module)) for module in model.modules()}
    held = [vars(module)[name] for module in modules for name in CONTENTS]
    contents = [dict(part) for part in held]
    tensors: list[tuple[Tensor, Tensor, bool]] = [
        (tensor, tensor.detach().clone(), tensor.requires_grad)
        for tensor in (*model.parameters(), *model.buffers())
        if not isinstance(tensor, (UninitializedBuffer, UninitializedParameter))
    ]
    try:
        yield
    except BaseException:
        for module, attributes in modules.items():
            vars(module).clear()
            vars(module).update(attributes)
        for part, content in zip(held, contents, strict=True):
            part.clear()
            part.update(content)
        for tensor, values, learns in tensors:
            _put_back(tensor, values)
            tensor.requires_grad_(learns)
        raise


@torch.no_grad()
def _put_back(tensor: Tensor, values: Tensor) -> None:
    if tensor.device == values.device and tensor.shape == values.shape:
        tensor.copy_(values)  # in place: others may look at the same memory
    else:
        tensor.data = values
