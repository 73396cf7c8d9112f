"""What drives neural graphs through a training: an optimiser's steps, and operators' stages.

`attach` hangs every graph inside a module on an optimiser; `advance` takes operators through their
stages at once, where nobody trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from wiring.errors import WiringError
from wiring.graph.edges import EdgeOp
from wiring.graph.neural import NeuralGraph
from wiring.graph.staged import Progress, enter_stage, staged


def graphs_in(module: nn.Module) -> list[NeuralGraph]:
    """Every neural graph inside a module."""
    return [part for part in module.modules() if isinstance(part, NeuralGraph)]


def advance(
    module: nn.Module,
    batches: Sequence[Tensor] | None = None,
    *,
    stage: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Take the operators inside `module` to a stage, by default the last, through those between.

    `batches` are inputs of `module`, for operators that look at data. Raises WiringError where
    these are missing, and where the graphs inside have operators of different stages.
    """
    live = {id(g.op(name)): mask for g in graphs_in(module) for name, mask in g.live().items()}
    ops = staged(op for op in module.modules() if isinstance(op, EdgeOp))
    if not ops:
        return
    last = len(ops[0].phases()) - 1 if stage is None else stage
    for number in range(ops[0].stage + 1, last + 1):
        enter_stage(
            module,
            lambda name: live[id(module.get_submodule(name))],
            stage=number,
            batches=batches,
            progress=progress,
        )


def attach(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int | None = None,
    data: Callable[[], Sequence[Tensor]] | None = None,
) -> None:
    """Make an optimiser's step drive every neural graph inside `module`.

    `steps` is how many optimiser steps training takes, for rules that follow a schedule and
    operators that train in stages. `data` gives inputs of `module`, some tens of images, for
    operators that look at them when a stage begins. Call it while the parameters have their first
    values: rules that rewind go back to those. Raises WiringError where one of the two is needed
    and missing.
    """
    graphs = graphs_in(module)
    for graph in graphs:
        if graph.needs_data and data is None:
            raise WiringError(
                "an operator looks at images when its second stage begins: say "
                "attach(..., data=...), a function that returns some batches"
            )
        graph.begin(steps)
    first: dict[str, Tensor] = {}
    if any(phase.rewind for graph in graphs for phase in graph.phases()):
        first = {name: tensor.detach().clone() for name, tensor in _weights(module).items()}

    def before(*_: object) -> None:
        for graph in graphs:
            graph.before_step(optimizer)

    @torch.no_grad()
    def after(*_: object) -> None:
        for graph in graphs:
            graph.after_step(optimizer)
        due = max((graph.due_stage for graph in graphs), default=0)
        if due > max((graph.stage for graph in graphs), default=0):
            needy = data is not None and any(graph.needs_data for graph in graphs)
            advance(module, data() if data is not None and needy else None, stage=due)
        begun = [graph.phases()[g.phase] for graph in graphs if (g := graph.clock).begins_phase]
        if any(phase.rewind for phase in begun):
            for name, tensor in _weights(module).items():
                tensor.copy_(first[name])
        if begun:
            optimizer.state.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, and the running moments of norms."""
    moments = {
        f"{name}.{key}": buffer
        for name, part in module.named_modules()
        if isinstance(part, nn.BatchNorm2d)
        for key, buffer in part.named_buffers(recurse=False)
    }
    return {**dict(module.named_parameters()), **moments}
