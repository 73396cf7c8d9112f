"""The rate of every optimiser step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wiring.graph.phases import Phase, clock_at
from workers.spec import TrainConfig


def learning_rate(
    train: TrainConfig, step: int, steps_per_epoch: int, phases: Sequence[Phase] = (Phase("train"),)
) -> float:
    """The rate of optimiser step `step` (0, 1, …, over all epochs).

    The schedule, made for all epochs, is run through in every phase, shortened to its share.
    """
    every = train.epochs * steps_per_epoch
    clock = clock_at(step, every, phases)
    assert clock.phase_end is not None
    rate = train.lr * phases[clock.phase].lr
    stretch = every / (clock.phase_end - clock.phase_begin)
    done = (step - clock.phase_begin) * stretch
    warmup = round(train.warmup_epochs * steps_per_epoch)
    if done < warmup:
        return rate * (done + 1) / warmup
    if train.schedule == "cosine":
        span = max(every - warmup, 1)
        return rate * 0.5 * (1 + math.cos(math.pi * (done - warmup) / span))
    if train.schedule == "step":
        epoch = int(done // steps_per_epoch)
        return rate * train.decay ** sum(m <= epoch for m in train.milestones)
    return rate
