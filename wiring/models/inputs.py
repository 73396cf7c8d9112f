"""What a network is given to look at: an example, and batches of data; checked beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wiring.errors import ConfigError, WiringError
from wiring.graph.staged import evaluating


def input_batches(data: Iterable[Any] | None, model: nn.Module) -> list[Tensor]:
    """The inputs of batches, on the model's device. Raises ConfigError for other things."""
    if isinstance(data, Tensor):
        raise ConfigError("data must be batches of inputs, got one tensor: put it into a list")
    if not isinstance(data, (Iterable, type(None))):
        raise ConfigError(f"data must be batches of inputs, got {type(data).__name__}")
    place = next(model.parameters(), torch.empty(0)).device
    batches = []
    for batch in () if data is None else data:
        inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
        if not isinstance(inputs, Tensor) or inputs.dim() == 0 or len(inputs) == 0:
            raise ConfigError(
                "data must be batches of inputs, or pairs of inputs and targets, got "
                f"{type(batch).__name__}"
            )
        if not bool(inputs.isfinite().all()):
            raise ConfigError("data has values that are not finite")
        batches.append(inputs.to(place))
    if data is not None and not batches:
        raise ConfigError("data has no batch")
    return batches


@torch.no_grad()
def check_runs(model: nn.Module, example: Tensor | None, batches: Sequence[Tensor] = ()) -> None:
    """Raises ConfigError where a network does not run on the example, or on the first input of a
    batch of another shape or type than those before."""
    tried = set()
    for what, x in (("example", example), *(("data", batch) for batch in batches)):
        if x is None:
            continue
        if not isinstance(x, Tensor) or x.dim() == 0:
            raise ConfigError(f"{what} must be a batch of inputs, got {type(x).__name__}")
        if (x.shape[1:], x.dtype) in tried:
            continue
        tried.add((x.shape[1:], x.dtype))
        try:
            with evaluating(model):
                model(x[:1])
        except WiringError:
            raise
        except Exception as error:  # whatever a network's own code raises
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"{what}: the network does not run on {list(x.shape)} of "
                f"{str(x.dtype).removeprefix('torch.')}: {reason}"
            ) from error
