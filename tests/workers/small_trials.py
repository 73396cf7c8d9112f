"""A trial that takes a second, and children that run it and die on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from wiring import files
from wiring.config import Component, parse
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology
from wiring.network import HeadSpec, ImageShape, ModelSpec, StemSpec
from workers import checkpoint
from workers.spec import DataConfig, TrainConfig, TrialSpec
from workers.trial import TrialResult, run_trial

SIDE = 16
PRELOADED = [
    "workers.trial",
    "workers.data.sets.digits",
    "sklearn.datasets",
    "wiring.methods.dense",
    "wiring.methods.dnw",
    "torch._dynamo",
]
TIMES = {"step_ms", "epoch_seconds", "time"}


def small_model(*, op: str = "dense", rule: str = "dnw", side: int = SIDE) -> ModelSpec:
    """8 + 16 + 16 nodes, 384 usable edges of which 100 live."""
    topology = Topology(
        groups=(
            NodeGroup(name="in", size=8),
            NodeGroup(name="mid", size=16, steps=("norm", "act", "depthwise"), stride=2),
            NodeGroup(name="out", size=16, steps=("norm", "act"), stage=2),
        ),
        bundles=(
            Bundle(name="in-mid", sources=("in",), destination="mid"),
            Bundle(name="mid-out", sources=("mid",), destination="out"),
        ),
        scopes=(Scope(name="all", bundles=("in-mid", "mid-out"), budget=100),),
    )
    return ModelSpec(
        space="by hand",
        choices={},
        image=ImageShape(channels=1, side=side),
        classes=10,
        stem=StemSpec(stride=2),
        topology=topology,
        head=HeadSpec(),
        op=Component(name=op),
        rule=Component(name=rule),
    )


def small_spec(
    model: ModelSpec | None = None, *, limit: int = 120, seed: int = 0, **train: Any
) -> TrialSpec:
    """Two epochs of digits on the CPU, unless `train` says otherwise."""
    settings = {"epochs": 2, "batch_size": 32, "device": "cpu", **train}
    return TrialSpec(
        model=model or small_model(),
        train=parse(TrainConfig, settings),
        data=DataConfig(name="digits", side=SIDE, limit=limit),
        seed=seed,
    )


def run_quietly(spec: TrialSpec, directory: Path) -> tuple[TrialResult, list[dict[str, Any]]]:
    """The result and the reported rows."""
    rows: list[dict[str, Any]] = []
    return run_trial(spec, directory, report=rows.append), rows


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics rows without the columns that no two runs share."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def outcome(directory: Path) -> dict[str, Any]:
    """All that a trial leaves behind and that must not depend on interruptions."""
    result = json.loads((directory / "result.json").read_text())
    newest = sorted(directory.glob("checkpoints/attempt-*/step-*"))[-1]
    state = json.loads((newest / "state.json").read_text())["state"]
    return {
        "result": {k: v for k, v in result.items() if k not in {"seconds", "resumed_from"}},
        "history": timeless(state["history"]),
        "last step": newest.name,
        "tensors": (newest / "tensors.safetensors").read_bytes(),
        "weights": (directory / "weights.safetensors").read_bytes(),
        "wirings": {p.name: p.read_bytes() for p in (directory / "wirings").glob("*.safetensors")},
    }


def fork_server() -> ForkServerContext:
    """Children that start in milliseconds: the libraries are imported once, in a parent of theirs.

    That parent has run no threads, as the test's own process may have.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_child(spec: dict[str, Any], directory: str, die_at: int | None) -> None:
    """Run a trial; SIGKILL this process at its `die_at`-th file operation, half-done."""
    torch.set_num_threads(1)
    if die_at is not None:
        _die_at(die_at)
    run_trial(parse(TrialSpec, spec), Path(directory), report=lambda row: None)


def _die_at(limit: int) -> None:
    count = 0

    def counted(function: Any, dying: Any = None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == limit:
                if dying:
                    dying(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    whole = files.write_synced
    torn = counted(whole, lambda path, data: path.write_bytes(data[: len(data) // 2]))
    files.write_synced = checkpoint.write_synced = torn
