"""The forms a bundle may take, held against the operator's own evaluation, and which it gets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from wiring.compiled.program import Step
from wiring.compiled.tuning import Memory, Microseconds, measure
from wiring.errors import ConfigError, WiringError
from wiring.graph.edges import EdgeOp, Kernel

log = logging.getLogger(__name__)

EAGER = "eager"
TOLERANCE = 1e-4  # of the largest value, for float32 sums in another order


@dataclass(frozen=True)
class Choice:
    """The form a bundle got. `us`: time of each form on this machine, with its share of joining
    and packing; empty where there was nothing to choose. `remembered`: not measured this time."""

    bundle: str
    op: str
    image: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int
    padding: int
    live_edges: int
    kernel: str
    us: Microseconds
    remembered: bool

    @property
    def density(self) -> float:
        """Live edges over all, 0..1."""
        return self.live_edges / max(1, torch.Size(self.weight).numel())


@dataclass
class Form:
    """A kernel with the steps that make its input from what is there already."""

    kernel: Kernel
    packed: bool
    x: Tensor
    prepare: list[Step]


def check_forms(forms: dict[str, Form], *, exact: bool, bundle: str, op: str) -> None:
    """Drops forms that differ in a bit where none may, and refuses those that are wrong.

    Where bits count, the memory format stays too: what follows may sum in its order. Raises
    WiringError, naming the form, for one that does not compute what the operator does; but forms
    that say they round otherwise (`rounds`) are dropped where that shows on this input.
    """
    expected = forms[EAGER].kernel(forms[EAGER].x)
    largest = expected.abs().nan_to_num(0, 0, 0).max().item() if expected.numel() else 0.0
    for name, form in list(forms.items()):
        y = form.kernel(form.x)
        close = y.shape == expected.shape and torch.allclose(
            y, expected, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True
        )
        if not close and getattr(form.kernel, "rounds", False):
            log.info("bundle %s: form '%s' rounds too coarsely for this input", bundle, name)
            del forms[name]
            continue
        if not close:
            raise WiringError(
                f"kernel '{name}' of operator '{op}' does not compute what the operator does in "
                f"bundle '{bundle}'"
            )
        if exact and not torch.allclose(y, expected, rtol=0, atol=0, equal_nan=True):
            del forms[name]
        elif exact and y.stride() != expected.stride():
            form.kernel = _like(expected, y, form.kernel)


def choose(
    forms: dict[str, Form],
    timed: Callable[[Form], Callable[[], object]],
    *,
    bundle: str,
    op: tuple[str, EdgeOp],
    live: Tensor,
    memory: Memory,
    key: str,
    pinned: str | None,
) -> Choice:
    """The fastest of checked forms by what `memory` has under `key`, else by what `timed` makes of
    each; or the one that is `pinned`. Raises ConfigError where there is no such form.

    `op` is the operator with its name, `live` its live edges.
    """
    remembered = None
    times: Microseconds = {}
    if pinned is None:
        remembered = memory.get(key, forms)
        times = remembered or measure({name: timed(form) for name, form in forms.items()})
        memory.put(key, times)
    elif pinned not in forms:
        raise ConfigError(f"'{bundle}' has no kernel '{pinned}' here; it has {', '.join(forms)}")
    name, module = op
    return Choice(
        bundle=bundle,
        op=name,
        image=tuple(forms[EAGER].x.shape),
        weight=tuple(live.shape),
        stride=module.stride,
        padding=module.padding,
        live_edges=int(live.sum()),
        kernel=pinned or min(times, key=lambda form: times[form]),
        us=times,
        remembered=remembered is not None,
    )


def _like(expected: Tensor, y: Tensor, kernel: Kernel) -> Kernel:
    """`kernel`, which returns `y`, in the memory format of `expected`."""
    for memory_format in (torch.channels_last, torch.contiguous_format):
        change = partial(torch.clone, memory_format=memory_format)
        if change(y).stride() == expected.stride():
            return lambda x: change(kernel(x))
    return kernel
