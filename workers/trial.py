"""One trial from its spec to its result, restartable at any moment."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from wiring.config import Config, parse
from wiring.errors import CheckpointError, SolverError
from wiring.graph.costs import total_cost
from wiring.graph.measure import live_edges
from wiring.network import Network, build_network
from workers.checkpoint import Checkpoints
from workers.costs import as_columns, network_table
from workers.data import ImageData, load_data
from workers.data.base import batches
from workers.device import pick_device
from workers.evaluate import NETWORK, check_fits, evaluate, evaluation_batch
from workers.files import read_json, write_json, write_tensors, write_text
from workers.removal import Removal
from workers.spec import TrialSpec
from workers.train import Diverged, Progress, Row, Trainer

SPEC, RESULT, WEIGHTS = "spec.json", "result.json", "weights.safetensors"
COSTS = "costs.json"  # layer by layer, beside the ordinary network's, as MLflow shows tables
SNAPSHOTS = "wirings"


class TrialResult(Config):
    """How a trial ended. Accuracies are 0..1; `seconds` count every attempt's useful work.

    `best_epoch` is the one with the highest validation accuracy, 0 where none was completed;
    `costs` are its network's (those of the untrained one then). A trial that diverged has a
    `reason` and was not tested. A test loss that is not finite is None. `resumed_from` is the
    optimiser step at which the last attempt took over.
    """

    state: Literal["finished", "diverged"]
    epochs: int
    best_epoch: int
    val_accuracy: float | None
    test_accuracy: float | None
    test_loss: float | None
    costs: dict[str, float]
    reason: str | None
    seconds: float
    data_digest: str
    resumed_from: int


def check_trial(spec: TrialSpec, images: int) -> None:
    """Refuse a spec that could not begin to train on so many images: rules, operators and node
    rules that do not go together, or trainings too short for them. Raises WiringError."""
    steps = spec.train.epochs * batches(images, spec.train.batch_size)
    with torch.no_grad():
        network = build_network(spec.model, seed=spec.seed)
        network.graph.begin(steps)
        if spec.node_rule:
            Removal(spec, network, steps)


def run_trial(
    spec: TrialSpec,
    directory: Path,
    *,
    report: Callable[[Row], None],
    data: ImageData | None = None,
    progress: Progress | None = None,
) -> TrialResult:
    """Train, or go on training, the network of a spec in a directory of its own.

    `report(row)` hears of every epoch once its checkpoint is on disk, and after a restart first
    of those done already; what it raises ends the trial and is passed on. `progress(epoch, step,
    steps)` is called about once a second. Killed at any moment and started again, a trial ends
    with the numbers of one that ran through (bit for bit on a CPU).

    Raises ConfigError, UnknownNameError, BudgetError or TopologyError for a spec that cannot be
    built, DataError, CheckpointError if the directory holds another trial, and StudyError where
    it cannot be written or a later attempt has taken over. Divergence is a result.
    """
    torch.set_num_threads(spec.train.threads)
    device = pick_device(spec.train)
    _settle(spec, directory)
    checkpoints = Checkpoints(directory / "checkpoints", spec.digest())
    saved = checkpoints.newest()
    for row in saved.state["history"] if saved else ():
        report(row)
    done = _ended(directory)
    if done:
        return done

    data = data or load_data(spec.data)
    check_fits(spec.model, data)
    started = time.monotonic()
    trainer = Trainer(spec, data, device)
    spent = 0.0
    if saved:
        trainer.unpack(saved)
        spent = saved.state["trial_seconds"]
    trainer.on_removal = partial(_write_smaller, trainer, directory)
    if spec.node_rule and not trainer.removed:
        _forget_smaller(trainer, directory)

    def seconds() -> float:
        return spent + time.monotonic() - started

    def save() -> None:
        tensors, state = trainer.pack()
        checkpoints.save(trainer.global_step, tensors, {**state, "trial_seconds": seconds()})

    if not saved:
        _write_wiring(trainer, directory)
    reason = None
    try:
        while not trainer.finished:
            row = trainer.run_epoch(progress, save)
            _write_wiring(trainer, directory)
            save()
            report(row)
    except (Diverged, SolverError) as fault:
        reason = str(fault)
    checkpoints.check_current()
    resumed_from = saved.step if saved else 0
    result = _conclude(trainer, directory, reason, seconds, resumed_from)
    write_json(directory / RESULT, result.to_dict())
    return result


def _settle(spec: TrialSpec, directory: Path) -> None:
    """Write the spec, unless the directory has it already. Raises CheckpointError for another."""
    path, plain = directory / SPEC, spec.to_dict()
    if path.exists():
        held = read_json(path)
        if held == plain:
            return
        if parse(TrialSpec, held, where=str(path)).digest() != spec.digest():
            raise CheckpointError(f"{directory}: holds another trial; give this one its own folder")
    write_json(path, plain)


def _ended(directory: Path) -> TrialResult | None:
    """The result of a trial that had ended, with its weights where it has any."""
    path = directory / RESULT
    if not path.exists():
        return None
    result = parse(TrialResult, read_json(path), where=str(path))
    return result if not result.best_epoch or (directory / WEIGHTS).exists() else None


def _write_wiring(trainer: Trainer, directory: Path) -> None:
    path = directory / SNAPSHOTS / f"epoch-{trainer.epoch:04d}.safetensors"
    write_tensors(path, trainer.wiring_tensors())


def _write_smaller(trainer: Trainer, directory: Path) -> None:
    """The network has lost nodes: from here on its wirings are those of another graph. Those of
    before go, and the epoch before the removal stands with the wiring that is left of it; not so
    epoch 0, which is what was before any training."""
    _drop_snapshots(directory)
    write_json(directory / NETWORK, trainer.network.spec.to_dict())
    if trainer.epoch:
        _write_wiring(trainer, directory)


def _forget_smaller(trainer: Trainer, directory: Path) -> None:
    """An attempt that was cut off had removed nodes, and its checkpoints hold none of that."""
    if (directory / NETWORK).exists():
        _drop_snapshots(directory)
        (directory / NETWORK).unlink()
        _write_wiring(trainer, directory)


def _drop_snapshots(directory: Path) -> None:
    for path in (directory / SNAPSHOTS).glob("epoch-*.safetensors"):
        path.unlink()


def _conclude(
    trainer: Trainer,
    directory: Path,
    reason: str | None,
    seconds: Callable[[], float],
    resumed_from: int,
) -> TrialResult:
    """Test the best network, once, and write its weights."""
    spec, network = trainer.spec, trainer.network
    if trainer.best_epoch:
        network.load_state_dict(trainer.best)
        write_tensors(directory / WEIGHTS, trainer.best)
    else:
        network = build_network(spec.model, seed=spec.seed).to(trainer.device)
    columns = as_columns(network_table(network, spec.model))
    write_text(directory / COSTS, json.dumps(columns, separators=(",", ":")))
    test = None
    if reason is None:
        test = evaluate(network, trainer.data.test_batches(evaluation_batch(spec.train)))
    return TrialResult(
        state="finished" if reason is None else "diverged",
        epochs=trainer.epoch,
        best_epoch=trainer.best_epoch,
        val_accuracy=trainer.best_row["val_accuracy"] if trainer.best_epoch else None,
        test_accuracy=test.accuracy if test else None,
        test_loss=test.loss if test and math.isfinite(test.loss) else None,
        costs=_costs(network),
        reason=reason,
        seconds=seconds(),
        data_digest=trainer.data.digest,
        resumed_from=resumed_from,
    )


def _costs(network: Network) -> dict[str, float]:
    return {**total_cost(network).to_dict(), "live_edges": live_edges(network.graph)}
