"""What the layers of a network take on this machine, beside what they cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wiring.compiled import compile as compile_network
from wiring.compiled.tuning import Microseconds, measure
from wiring.network import ModelSpec, Network, build_network
from workers.costs import TOTAL


def bundle_times(
    dense: ModelSpec, network: Network, *, batch: int = 1
) -> tuple[Microseconds, Microseconds]:
    """µs of every bundle in its fastest form, with what is folded into it, in an untrained
    network and in a trained one in its place; and of a whole batch, under `total`.

    Both are compiled for PyTorch's present number of threads. Raises WiringError for graphs in
    continuous time.
    """
    both = build_network(dense), network
    compiled = [compile_network(one.eval(), batch=batch) for one in both]
    image = network.spec.image
    x = torch.randn(batch, image.channels, image.side, image.side)
    whole = measure({str(place): partial(one, x) for place, one in enumerate(compiled)})
    times: list[Microseconds] = []
    for place, one in enumerate(compiled):
        chosen = {c.bundle: c.us[c.kernel] for c in one.choices() if c.kernel in c.us}
        times.append({**chosen, TOTAL: whole[str(place)]})
    return times[0], times[1]


@torch.no_grad()
def module_times(model: nn.Module, example: Tensor, names: set[str]) -> Microseconds:
    """µs of the modules of these qualified names, each by itself on what it reads the first time;
    and of the whole model, under `total`. In evaluation mode, which is put back."""
    calls: dict[str, Callable[[], Any]] = {}

    def catch(name: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.setdefault(name, partial(module, *inputs, **named))

    modes = {module: module.training for module in model.modules()}
    model.eval()
    hooks = [
        module.register_forward_pre_hook(
            lambda module, inputs, named, name=name: catch(name, module, inputs, named),
            with_kwargs=True,
        )
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        model(example)
        for hook in hooks:
            hook.remove()
        times = {name: measure({name: call})[name] for name, call in calls.items()}
        return {**times, TOTAL: measure({TOTAL: partial(model, example)})[TOTAL]}
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
