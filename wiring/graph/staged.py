"""Operators that train in stages: first as one kind of edge, then as another.

Weights that are clustered, hashed or binarised after an ordinary training are of this kind. The
stages follow one another within one training (`NeuralGraph.phases`), or `driving.advance` takes a
network through them at once. Which edges live is settled before an operator leaves its first stage.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from wiring.config import Config, Share
from wiring.errors import WiringError
from wiring.graph.edges import EdgeOp, Seen
from wiring.graph.phases import Phase

Progress = Callable[[int, int, str], None]
Change = Callable[[str, EdgeOp, "Seen | None"], None]


class StageOptions(Config):
    """`share` of all steps that the second stage takes, the last ones; there the rate is `lr`
    times the configured one."""

    share: Share = 0.3
    lr: PositiveFloat = 0.1


class StagedOp(EdgeOp):
    """An operator of several stages, numbered from 0; `stage` is the present one.

    Subclasses keep in buffers or parameters of fixed shapes what `enter` computes. `bits_by_edges`
    says whether the cost of every stage follows from which edges live; else its weight bits depend
    on the weights too.
    """

    bits_by_edges: ClassVar[bool] = True
    stage: int = 0

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """The stages, at least two. The first one's share is split among the rule's phases."""

    @abstractmethod
    def enter(self, stage: int, live: Tensor, seen: Seen | None = None) -> None:
        """Go on to a stage: called without gradients, once for each stage but the first, in
        order. The base class's sets `stage`; `seen` is given where `needs_data`."""
        self.stage = stage

    def get_extra_state(self) -> Tensor:
        """The stage, int64."""
        return torch.tensor(self.stage)

    def set_extra_state(self, state: Tensor) -> None:
        self.stage = int(state)


def staged(ops: Iterable[EdgeOp]) -> list[StagedOp]:
    """The operators among `ops` that have stages. Raises WiringError where those differ."""
    found = [op for op in ops if isinstance(op, StagedOp)]
    if len({op.phases() for op in found}) > 1:
        names = sorted({type(op).__name__ for op in found})
        raise WiringError(f"operators of one graph must have the same stages: {', '.join(names)}")
    return found


@torch.no_grad()
def enter_stage(
    module: nn.Module,
    live: Callable[[str], Tensor],
    *,
    stage: int,
    batches: Sequence[Tensor] | None = None,
    progress: Progress | None = None,
) -> None:
    """Take every staged operator inside `module` to a stage.

    `live(name)` gives the live edges of the operator of that qualified name. Operators that need
    data enter one after the other in the order in which they run: each is shown what it reads in
    the module as it was, and in the module whose earlier operators have entered already. Raises
    WiringError where such an operator is there and `batches` (inputs of `module`) are not.
    """
    ops = {name: op for name, op in module.named_modules() if isinstance(op, StagedOp)}

    def enter(name: str, op: EdgeOp, seen: Seen | None) -> None:
        assert isinstance(op, StagedOp)
        op.enter(stage, live(name), seen)

    needy: dict[str, EdgeOp] = {name: op for name, op in ops.items() if op.needs_data}
    for name, op in ops.items():
        if name not in needy:
            enter(name, op, None)
    if needy:
        in_order(module, needy, batches, enter, progress)


@torch.no_grad()
def in_order(
    module: nn.Module,
    ops: dict[str, EdgeOp],
    batches: Sequence[Tensor] | None,
    change: Change,
    progress: Progress | None = None,
) -> None:
    """Call `change(name, op, seen)` for operators by qualified name, in the order they first run.

    `seen.full` is what an operator reads in a copy of `module` made before the first change.
    Networks run in evaluation mode. Raises WiringError without batches, or for an operator that
    these do not reach.
    """
    if not batches or not all(len(batch) for batch in batches):
        kinds = ", ".join(sorted({type(op).__name__ for op in ops.values()}))
        raise WiringError(f"{kinds} looks at what layers read: give it images")
    reference = copy.deepcopy(module).eval()
    with evaluating(module):
        order = _order(reference, set(ops), batches[0][:1])
        missing = sorted(set(ops) - set(order))
        if missing:
            raise WiringError(f"the images given do not reach '{missing[0]}'")
        for place, name in enumerate(order):
            if progress:
                progress(place, len(order), name)
            full = _inputs(reference, name, batches)
            change(name, ops[name], Seen(full, _inputs(module, name, batches)))
        if progress:
            progress(len(order), len(order), "")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, a module is in evaluation mode; afterwards each part is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _order(module: nn.Module, names: set[str], x: Tensor) -> list[str]:
    """The names in the order in which their modules first run on x."""
    order: list[str] = []
    hooks = []
    for name, part in module.named_modules():
        if name in names:

            def note(_: nn.Module, __: object, name: str = name) -> None:
                if name not in order:
                    order.append(name)

            hooks.append(part.register_forward_pre_hook(note))
    try:
        module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return order


class _Reached(Exception):
    """The inputs that were wanted are there: the rest of the network need not run."""


def _inputs(module: nn.Module, name: str, batches: Sequence[Tensor]) -> Tensor:
    """What the operator of that name reads first, over all batches; [N, S, H, W]."""
    seen: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach())
        raise _Reached

    hook = module.get_submodule(name).register_forward_pre_hook(catch)
    try:
        for batch in batches:
            try:
                module(batch)
            except _Reached:
                continue
    finally:
        hook.remove()
    return torch.cat(seen)
