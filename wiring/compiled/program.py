"""A flat list of steps over numbered values, and its construction on an example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """values[write] = run(*values[reads]); then `drops` are needed no more."""

    label: str
    run: Callable[..., Tensor]
    reads: tuple[int, ...]
    write: int
    drops: tuple[int, ...] = ()


class Program:
    """Steps in order; value 0 is the input. Calls share nothing, so threads may call at once."""

    def __init__(self, steps: Sequence[Step], output: int) -> None:
        last = {step.write: number for number, step in enumerate(steps)}
        last |= {place: number for number, step in enumerate(steps) for place in step.reads}
        self.steps = [
            step._replace(drops=tuple(p for p, n in last.items() if n == number and p != output))
            for number, step in enumerate(steps)
        ]
        self.output = output
        self._size = 1 + max((step.write for step in steps), default=0)
        self._plan = [step[1:] for step in self.steps]

    def __call__(self, x: Tensor) -> Tensor:
        values: list[Any] = [None] * self._size
        values[0] = x
        for run, reads, write, drops in self._plan:
            values[write] = run(*[values[place] for place in reads])
            for place in drops:
                values[place] = None
        result: Tensor = values[self.output]
        return result


class Builder:
    """Runs every step as it is added: `values` holds what the example gives at each place.

    A value is *owned* if nobody else reads its memory, so that a step may work in place.
    """

    def __init__(self, example: Tensor) -> None:
        self.steps: list[Step] = []
        self.values: list[Tensor | None] = [example]
        self._known: dict[tuple[str, tuple[int, ...]], int] = {}

    def add(self, label: str, run: Callable[..., Tensor], *reads: int) -> int:
        """The place of the step's result."""
        self.steps.append(Step(label, run, reads, len(self.values)))
        self.values.append(run(*(self.value(place) for place in reads)))
        return len(self.values) - 1

    def once(self, label: str, run: Callable[..., Tensor], *reads: int) -> int:
        """The same, unless a step of this label has read these places before."""
        key = (label, reads)
        if key not in self._known:
            self._known[key] = self.add(label, run, *reads)
        return self._known[key]

    def value(self, place: int) -> Tensor:
        """What the example gives there."""
        value = self.values[place]
        assert value is not None, f"value {place} was dropped too early"
        return value

    def is_new(self, place: int) -> bool:
        """Whether the step that wrote there made new memory, no view of what it read."""
        step = next(step for step in self.steps if step.write == place)
        own = _memory(self.value(place))
        return all(own != _memory(self.value(read)) for read in step.reads)

    @contextmanager
    def preview(self) -> Iterator[list[Step]]:
        """Takes back the steps that are added inside; the list holds them afterwards."""
        steps, size, known = len(self.steps), len(self.values), dict(self._known)
        taken: list[Step] = []
        try:
            yield taken
        finally:
            taken += self.steps[steps:]
            del self.steps[steps:], self.values[size:]
            self._known = known

    def run(self, steps: Sequence[Step]) -> None:
        """Repeat some steps on the example and forget what they give; for timing."""
        values: dict[int, Tensor] = {}
        for step in steps:
            reads = (values[p] if p in values else self.value(p) for p in step.reads)
            values[step.write] = step.run(*reads)


def is_ambiguous(x: Tensor) -> bool:
    """Whether an image lies in both memory formats at once: it has one channel or one pixel.

    Its strides then say which one comes next, and working in place would keep other strides.
    """
    return x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def join(*values: Tensor) -> Tensor:
    """Along the channels of images [N, C, H, W]."""
    return torch.cat(values, dim=1)


def join_words(*values: Tensor) -> Tensor:
    """Along the words of packed images [N, H, W, words]."""
    return torch.cat(values, dim=3)
