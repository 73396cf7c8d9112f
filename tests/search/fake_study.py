"""Writes study directories as the driver and its trials do, without training anything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from wiring.config import Component
from wiring.graph.costs import total_cost
from wiring.graph.measure import live_edges
from wiring.graph.topology import Bundle, NodeGroup, Scope, Skip, Topology
from wiring.network import HeadSpec, ImageShape, ModelSpec, Network, StemSpec, build_network
from workers.costs import as_columns, network_table
from workers.files import append_line, write_json, write_tensors
from workers.spec import TrainConfig, TrialSpec

START = 1_700_000_000.0


def topology(width: int = 8, budget: float = 0.3) -> Topology:
    """Two stages: a layer that reads the input, and one that reads both, with a skip."""
    groups = (
        NodeGroup(name="input", size=width, steps=("norm", "act", "depthwise"), stage=0),
        NodeGroup(name="first", size=2 * width, steps=("norm", "act", "depthwise"), stage=0),
        NodeGroup(name="second", size=2 * width, steps=("norm", "act", "depthwise"), stage=1),
        NodeGroup(name="output", size=4 * width, steps=("norm", "act"), stage=1),
    )
    bundles = (
        Bundle(name="to-first", sources=("input",), destination="first"),
        Bundle(name="to-second", sources=("input", "first"), destination="second"),
        Bundle(name="to-output", sources=("first", "second"), destination="output"),
    )
    usable = (2 * width * width, 6 * width * width + 16 * width * width)
    scopes = (
        Scope(name="one", bundles=("to-first",), budget=max(1, int(budget * usable[0]))),
        Scope(
            name="two",
            bundles=("to-second", "to-output"),
            budget=max(1, int(budget * usable[1])),
        ),
    )
    skips = (Skip(source="first", destination="second"),)
    return Topology(groups=groups, bundles=bundles, scopes=scopes, skips=skips)


def trial_spec(*, seed: int = 0, width: int = 8, epochs: int = 3) -> TrialSpec:
    """A trial on 8x8 images with that topology."""
    model = ModelSpec(
        space="fake",
        choices={"width": width, "lr": 0.1},
        image=ImageShape(channels=1, side=8),
        classes=10,
        stem=StemSpec(),
        topology=topology(width),
        head=HeadSpec(),
        op=Component(name="dense"),
        rule=Component(name="dnw"),
    )
    return TrialSpec(model=model, train=TrainConfig(epochs=epochs), seed=seed)


def metrics_row(network: Network, epoch: int, seed: int = 0) -> dict[str, Any]:
    """A row that no other epoch or seed has."""
    accuracy = 0.95 - 0.5 * math.exp(-epoch / 3) - 0.01 * seed
    return {
        "epoch": epoch,
        "train_loss": 2 * math.exp(-epoch / 4) + seed / 7,
        "train_accuracy": accuracy + 0.01,
        "val_loss": 2 * math.exp(-epoch / 5),
        "val_accuracy": accuracy,
        "lr": 0.1 / epoch,
        "phase": "train",
        **total_cost(network).to_dict(),
        "live_edges": live_edges(network.graph),
        "swaps": 40 // epoch,
        "swap_rate": 0.1 / epoch,
        "mean_age": 0.9 * epoch,
        "dead_nodes": 3,
        "depth": 3,
        "step_ms": 12.5,
        "epoch_seconds": 1.25,
        "time": START + 10 * epoch + seed,
    }


class FakeStudy:
    """A study under `runs`, to which trials and epochs are added by hand."""

    def __init__(self, runs: Path, name: str = "fake", *, trials: int = 2) -> None:
        self.directory = runs / name
        self.networks: dict[str, Network] = {}
        config = {"space": {"name": "fake"}, "minimize": ["weight_bits"], "trials": trials}
        write_json(
            self.directory / "study.json",
            {
                "version": 1,
                "name": name,
                "kind": "search",
                "created": "2026-01-02T03:04:05+00:00",
                "config": config,
                "digest": "d" * 64,
            },
        )

    def trial(self, identity: str) -> Path:
        return self.directory / "trials" / identity

    def ask(self, number: int, **spec: Any) -> str:
        """Ask for a trial; its wiring before training is on disk afterwards."""
        identity = f"{number:04d}"
        trial = trial_spec(seed=number, **spec)
        write_json(self.trial(identity) / "spec.json", trial.to_dict())
        params = {"op": "dense", "rule": "dnw", "width": trial.model.choices["width"]}
        self._journal({"event": "ask", "trial": identity, "number": number, "params": params})
        self.networks[identity] = build_network(trial.model, seed=number)
        self._snapshot(identity, 0)
        return identity

    def epoch(self, identity: str, epoch: int) -> dict[str, Any]:
        """Let the weights drift for an epoch, and report it."""
        network = self.networks[identity]
        generator = torch.Generator().manual_seed(1000 * int(identity) + epoch)
        with torch.no_grad():
            for bundle in network.graph.topology.bundles:
                weight = network.graph.op(bundle.name).weight
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(noise * weight.std() * 0.6 / epoch)
        network.graph.after_step()
        self._snapshot(identity, epoch)
        row = metrics_row(network, epoch, int(identity))
        append_line(self.trial(identity) / "metrics.jsonl", row)
        return row

    def end(self, identity: str, state: str = "finished") -> None:
        """End a trial with what its last epoch had."""
        network, number = self.networks[identity], int(identity)
        values = None
        rows = (self.trial(identity) / "metrics.jsonl").read_text().splitlines()
        last = json.loads(rows[-1])
        if state == "finished":
            write_tensors(self.trial(identity) / "weights.safetensors", network.state_dict())
            write_json(self.trial(identity) / "costs.json", as_columns(network_table(network)))
            costs = {**total_cost(network).to_dict(), "live_edges": live_edges(network.graph)}
            result = {
                "state": "finished",
                "epochs": last["epoch"],
                "best_epoch": last["epoch"],
                "val_accuracy": last["val_accuracy"],
                "test_accuracy": last["val_accuracy"] - 0.004,
                "test_loss": 0.3,
                "costs": costs,
                "reason": None,
                "seconds": 33.0,
                "data_digest": "abc123",
                "resumed_from": 0,
            }
            write_json(self.trial(identity) / "result.json", result)
            values = [last["val_accuracy"], costs["weight_bits"]]
        self._journal(
            {
                "event": "tell",
                "trial": identity,
                "number": number,
                "state": state,
                "values": values,
                "reason": None if state == "finished" else f"it {state}",
                "traceback": "Traceback: here" if state == "failed" else None,
            }
        )

    def _journal(self, event: dict[str, Any]) -> None:
        moment = START + 100 * event["number"] + (0 if event["event"] == "ask" else 99)
        append_line(self.directory / "journal.jsonl", {**event, "time": moment})

    def _snapshot(self, identity: str, epoch: int) -> None:
        graph = self.networks[identity].graph
        tensors = {}
        for name, wiring in graph.wirings():
            flat = torch.cat([graph.op(b).weight.detach().flatten() for b in wiring.shapes])
            edges = wiring.live.nonzero().flatten()
            tensors[f"{name}.edges"] = edges
            tensors[f"{name}.weights"] = flat[edges]
        write_tensors(self.trial(identity) / "wirings" / f"epoch-{epoch:04d}.safetensors", tensors)


def whole_study(runs: Path, name: str = "fake") -> FakeStudy:
    """Two trials of three epochs, the first finished, the second stopped early."""
    study = FakeStudy(runs, name)
    for number, state in enumerate(("finished", "stopped")):
        identity = study.ask(number)
        for epoch in (1, 2, 3):
            study.epoch(identity, epoch)
        study.end(identity, state)
    return study
