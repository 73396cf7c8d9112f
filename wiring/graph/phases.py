"""Stretches of training, and the clock that says where in them training stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A stretch of training: `share` of all steps, at `lr` times the configured rate.

    The schedule of the rate starts anew with a phase, and so does the optimiser's memory. With
    `rewind` every parameter goes back to its first value when the phase begins.
    """

    name: str
    share: float = 1.0
    lr: float = 1.0
    rewind: bool = False


@dataclass(frozen=True)
class Clock:
    """Where training stands: `step` optimiser steps of `steps` are done (None: nobody knows how
    many there will be). `phase` is the number of the phase that the next step belongs to."""

    step: int = 0
    steps: int | None = None
    phase: int = 0
    phase_begin: int = 0
    phase_end: int | None = None

    @property
    def begins_phase(self) -> bool:
        """Whether the next step is the first of a phase that follows another."""
        return self.phase > 0 and self.step == self.phase_begin


def phase_ends(steps: int, phases: Sequence[Phase]) -> list[int]:
    """How many of `steps` optimiser steps are done when each phase ends.

    The first and the last phase have at least one step, where there are two; others may have none.
    """
    ends, share = [], 0.0
    for phase in phases[:-1]:
        share += phase.share
        end = round(steps * share / sum(one.share for one in phases))
        ends.append(min(max(end, 1), steps - 1))
    return [*ends, steps]


def clock_at(step: int, steps: int | None, phases: Sequence[Phase]) -> Clock:
    """The clock after `step` of `steps` optimiser steps."""
    if steps is None:
        return Clock(step)
    ends = phase_ends(steps, phases)
    number = next((n for n, end in enumerate(ends) if step < end), len(ends) - 1)
    return Clock(step, steps, number, 0 if number == 0 else ends[number - 1], ends[number])
