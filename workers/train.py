"""Stochastic gradient descent on one network, and everything of it that a checkpoint holds."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from wiring.config import parse
from wiring.errors import CheckpointError, WiringError
from wiring.graph import costs, measure, telemetry
from wiring.graph.driving import attach
from wiring.graph.dynamic import ContinuousGraph
from wiring.graph.phases import clock_at
from wiring.network import ModelSpec, Network, build_network
from workers.checkpoint import Checkpoint
from workers.data import ImageData
from workers.device import rng_state, seed_everything, set_rng_state
from workers.evaluate import evaluate, evaluation_batch
from workers.pretrained import start_from_pretrained
from workers.removal import Removal
from workers.schedule import learning_rate
from workers.spec import TrialSpec

Row = dict[str, Any]
Progress = Callable[[int, int, int], None]
TICK_SECONDS = 1.0
EXAMPLES = 512  # images that operators look at between stages


class Diverged(Exception):
    """The loss or a weight is no longer finite; the message says where."""


@dataclass
class _Sums:
    """Totals of the epoch under way; on a GPU they stay there until it ends."""

    loss: Tensor
    correct: Tensor
    images: int = 0
    seconds: float = 0.0

    @classmethod
    def zero(cls, device: torch.device) -> _Sums:
        return cls(
            torch.zeros((), dtype=torch.float64, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )


class Trainer:
    """A network under training. `epoch` epochs are done, and `step` steps of the next one.

    `history` holds the metrics row of every epoch done; `best` the weights of the epoch with the
    highest validation accuracy (the earliest of equals), among those of the last phase.
    With a node rule `network` becomes another, smaller one on the way; `on_removal` hears of it.
    """

    def __init__(self, spec: TrialSpec, data: ImageData, device: torch.device) -> None:
        self.spec, self.data, self.device = spec, data, device
        train = spec.train
        network = build_network(spec.model, seed=spec.seed)
        start_from_pretrained(network, spec.seed)
        self.steps = data.steps(train.batch_size)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.mixed_precision)
        every = train.epochs * self.steps
        self.removal = Removal(spec, network, every) if spec.node_rule else None
        self.removed = False
        self.on_removal: Callable[[], None] = lambda: None
        self._take(network)
        self.phases = self.removal.phases if self.removal else network.graph.phases()
        self.epoch = self.step = self.best_epoch = 0
        self.history: list[Row] = []
        self.best: dict[str, Tensor] = {}
        self.births = telemetry.first_births(self._masks())
        self.sums = _Sums.zero(device)
        seed_everything(spec.seed)

    def _take(self, network: Network) -> None:
        """Train this network from now on, with a new optimiser."""
        train = self.spec.train
        self.network = network.to(self.device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=train.lr,
            momentum=train.momentum,
            nesterov=train.nesterov,
            weight_decay=train.weight_decay,
            # One pass over memory. With a loss scaler it would hide from the operators'
            # gradient hooks that gradients are still scaled.
            fused=not train.mixed_precision,
        )
        attach(self.network, self.optimizer, steps=train.epochs * self.steps, data=self._examples)
        if train.batch_size == 1 or self.data.counts["train"] == 1:
            _allow_single_values(self.network)

    def _remove_nodes(self, removal: Removal) -> None:
        """Go on with the network that the node rule leaves."""
        self._calibrate()
        images, self.removed = self._examples(), True
        small, self.births = removal.remove(self.network, images, self.births, self.epoch)
        self._take(small.train())
        self.on_removal()

    @property
    def global_step(self) -> int:
        """Optimiser steps done."""
        return self.epoch * self.steps + self.step

    @property
    def finished(self) -> bool:
        return self.epoch >= self.spec.train.epochs

    def run_epoch(self, progress: Progress | None, checkpoint: Callable[[], None]) -> Row:
        """Train to the end of the epoch under way and measure; returns its metrics row.

        `checkpoint` is called every `checkpoint_steps` steps inside the epoch. Raises Diverged.
        """
        train, epoch = self.spec.train, self.epoch + 1
        started = ticked = time.monotonic()
        before = self.sums.seconds
        self.network.train()
        batches = self.data.train_batches(
            epoch, batch_size=train.batch_size, seed=self.spec.seed, start_step=self.step
        )
        for x, y in batches:
            self._train_step(x.to(self.device, non_blocking=True), y.to(self.device))
            self.step += 1
            now = time.monotonic()
            self.sums.seconds = before + now - started
            if now - ticked >= TICK_SECONDS:
                ticked = now
                self._check_finite(self.step)
                if progress:
                    progress(epoch, self.step, self.steps)
            every = train.checkpoint_steps
            if every and self.global_step % every == 0 and self.step < self.steps:
                self._check_finite(self.step)
                checkpoint()
        self._check_finite(self.step)
        self.sums.seconds = before + time.monotonic() - started
        if progress:
            progress(epoch, self.step, self.steps)
        return self._close_epoch(time.monotonic())

    def _train_step(self, x: Tensor, y: Tensor) -> None:
        train, removal = self.spec.train, self.removal
        if removal and not self.removed and self.global_step >= removal.step:
            self._remove_nodes(removal)
        rate = learning_rate(train, self.global_step, self.steps, self.phases)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.float16, enabled=train.mixed_precision):
            scores = self.network(x)
        loss = F.cross_entropy(scores.float(), y, label_smoothing=train.label_smoothing)
        self.sums.loss += loss.detach().double() * len(y)
        self.sums.correct += (scores.detach().argmax(dim=1) == y).sum()
        self.sums.images += len(y)
        if self.device.type == "cpu":
            self._check_finite(self.step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        if train.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), train.clip_norm)
        try:
            self.scaler.step(self.optimizer)
        except WiringError:
            # A rule refuses to rank scores that are NaN: so late does a bad gradient show.
            if all(bool(p.isfinite().all()) for p in self.network.parameters()):
                raise
            raise Diverged(f"a weight is not finite{self._where(self.step + 1)}") from None
        self.scaler.update()
        if removal and not self.removed:
            removal.shrink(self.network, rate)

    def _check_finite(self, step: int) -> None:
        """Reads a number back from the device: every step on a CPU, now and then on a GPU."""
        if not math.isfinite(self.sums.loss.item()):
            raise Diverged(f"the training loss is not finite{self._where(step)}")

    def _where(self, step: int) -> str:
        return f" in epoch {self.epoch + 1} at step {step} of {self.steps}"

    def _examples(self) -> list[Tensor]:
        """Training images as operators look at when they enter a stage; the same each time."""
        images, size = EXAMPLES, evaluation_batch(self.spec.train)
        batches = self.data.train_batches(0, batch_size=size, seed=self.spec.seed)
        taken = itertools.islice(batches, math.ceil(images / size))
        return [x.to(self.device) for x, _ in taken]

    def _calibrate(self) -> None:
        """Give the batch norms the moments of the present weights and wiring."""
        images, size = self.spec.train.calibration_images, evaluation_batch(self.spec.train)
        if images:
            batches = self.data.train_batches(0, batch_size=size, seed=self.spec.seed)
            with self.network.graph.settled():
                update_bn(
                    itertools.islice(batches, math.ceil(images / size)), self.network, self.device
                )

    def _close_epoch(self, ended: float) -> Row:
        train, sums = self.spec.train, self.sums
        self._calibrate()
        validation = evaluate(self.network, self.data.val_batches(evaluation_batch(train)))
        if not math.isfinite(validation.loss):
            raise Diverged(f"the validation loss is not finite after epoch {self.epoch + 1}")
        masks, graph = self._masks(), self.network.graph
        before = telemetry.living(self.births)
        self.births = telemetry.next_births(self.births, masks, self.epoch + 1)
        every = train.epochs * self.steps
        phase = clock_at(self.global_step - 1, every, self.phases).phase
        row: Row = {
            "epoch": self.epoch + 1,
            "train_loss": float(sums.loss) / sums.images,
            "train_accuracy": int(sums.correct) / sums.images,
            "val_loss": validation.loss,
            "val_accuracy": validation.accuracy,
            "lr": learning_rate(train, self.global_step - 1, self.steps, self.phases),
            "phase": self.phases[phase].name,
            "live_edges": measure.live_edges(graph),
            "swaps": measure.swaps(before, masks),
            "swap_rate": telemetry.swap_rate(before, masks),
            **telemetry.age_summary(self.births, self.epoch + 1),
            "dead_nodes": measure.dead_nodes(graph),
            "depth": measure.depth(graph),
            **costs.total_cost(self.network).to_dict(),
            "step_ms": 1000 * sums.seconds / self.steps,
            "epoch_seconds": sums.seconds + time.monotonic() - ended,
            "time": time.time(),
        }
        final = phase == len(self.phases) - 1
        best = self.best_row["val_accuracy"] if self.best_epoch else -1.0
        if final and validation.accuracy > best:
            self.best_epoch = row["epoch"]
            self.best = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        if self.removal:
            row["nodes"] = sum(group.size for group in graph.topology.groups)
        if isinstance(graph, ContinuousGraph):
            row |= {"nfe": graph.take_mean_nfe(), "val_nfe": graph.passes}
        self.history.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        self.sums = _Sums.zero(self.device)
        return row

    @property
    def best_row(self) -> Row:
        """The metrics of the best epoch."""
        return self.history[self.best_epoch - 1]

    def _masks(self) -> dict[str, Tensor]:
        return {name: wiring.live.clone() for name, wiring in self.network.graph.wirings()}

    def wiring_tensors(self) -> dict[str, Tensor]:
        """By scope: `<scope>.edges` int64, live flat indices ascending, and `<scope>.weights`."""
        graph, tensors = self.network.graph, {}
        for name, wiring in graph.wirings():
            weights = torch.cat([graph.op(bundle).weight.flatten() for bundle in wiring.shapes])
            edges = wiring.live.nonzero().squeeze(1)
            tensors[f"{name}.edges"] = edges
            tensors[f"{name}.weights"] = weights.detach()[edges].to(torch.float32)
        return tensors

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain JSON values from which `unpack` goes on to the same numbers."""
        optimizer: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                target = optimizer if isinstance(value, Tensor) else scalars
                target[f"{name}/{key}"] = value
        sections = {
            "model": self.network.state_dict(),
            "best": self.best,
            "optimizer": optimizer,
            "births": self.births,
            "rng": rng_state(),
            "sums": {"loss": self.sums.loss, "correct": self.sums.correct},
        }
        state = {
            "data": self.data.digest,
            "epoch": self.epoch,
            "step": self.step,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "images": self.sums.images,
            "seconds": self.sums.seconds,
            "optimizer": scalars,
            "scaler": self.scaler.state_dict(),
            "network": self.network.spec.to_dict() if self.removed else None,
        }
        tensors = {f"{s}/{k}": v for s, section in sections.items() for k, v in section.items()}
        return tensors, state

    def unpack(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint. Raises CheckpointError if it was made with other data."""
        state = saved.state
        if state["data"] != self.data.digest:
            raise CheckpointError(
                f"the checkpoint was made with data {state['data'][:12]}, "
                f"'{self.data.name}' now is {self.data.digest[:12]}"
            )
        if state.get("network"):
            self._take(build_network(parse(ModelSpec, state["network"], where="checkpoint")))
            self.removed = True
        self.network.load_state_dict(dict(_section(saved, "model", self.device)))
        self.best = dict(_section(saved, "best", self.device))
        self.births = dict(_section(saved, "births", self.device))
        parameters = dict(self.network.named_parameters())
        self.optimizer.state.clear()
        for key, value in [
            *_section(saved, "optimizer", self.device),
            *state["optimizer"].items(),
        ]:
            name, _, part = key.rpartition("/")
            self.optimizer.state[parameters[name]][part] = value
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        sums = dict(_section(saved, "sums", self.device))
        self.sums = _Sums(sums["loss"], sums["correct"], state["images"], state["seconds"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.best_epoch, self.history = state["best_epoch"], list(state["history"])
        set_rng_state(dict(_section(saved, "rng", torch.device("cpu"))))


def _section(saved: Checkpoint, name: str, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in saved.tensors.items():
        if key.startswith(f"{name}/"):
            yield key.removeprefix(f"{name}/"), tensor.to(device, copy=True)


def _allow_single_values(network: nn.Module) -> None:
    """Let batch norms meet a batch of one value per channel: they use their running moments."""

    def choose(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        norm.train(network.training and x.numel() > x.shape[1])

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(choose)
