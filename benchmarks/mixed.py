"""Operators mixed in one network against each by itself, at equal energy.

    python -m benchmarks.mixed [--root DIR] [--images N] [--epochs E] [--seeds S]
                               [--microjoules X ...] [--json]

MNIST, mobilenet-graph in its quarter size, rule dnw. Every network may spend the same energy an
image (all nodes counted); of those trained, accuracy on validation images and energy without dead
nodes are averaged over the seeds. Then: how many edges of each operator live where they are mixed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from search.budget import apply_budget
from search.config import BudgetConfig
from search.spaces.base import SPACES
from wiring.config import parse
from wiring.network import Network
from workers.data import ImageData, load_data
from workers.spec import DataConfig, TrainConfig, TrialSpec
from workers.train import Trainer

OPS = ("dense", "xnor", "adder", "mixed:dense,adder", "mixed:dense,xnor,adder")
MICROJOULES = (2.5, 3.0, 4.0)


def train(
    config: DataConfig, data: ImageData, op: str, microjoules: float, seed: int, epochs: int
) -> dict[str, Any]:
    """One network, trained: its accuracy, its energy, its live edges by operator."""
    space = SPACES.get("mobilenet-graph")({"size": "quarter"})
    values = {**space.defaults(data.image), "op": op, "rule": "dnw"}
    model = space.build(values, data.image, len(data.classes))
    settings = space.train(data.image, epochs=epochs, images=data.counts["train"])
    spec = TrialSpec(
        model=apply_budget(model, BudgetConfig(energy=microjoules * 1e6)),
        train=parse(TrainConfig, {**settings, "epochs": epochs, "threads": 1, "device": "cpu"}),
        data=config,
        seed=seed,
    )
    trainer = Trainer(spec, data, torch.device("cpu"))
    while not trainer.finished:
        row = trainer.run_epoch(None, lambda: None)
    return {
        "op": op,
        "budget_uj": microjoules,
        "seed": seed,
        "val_accuracy": row["val_accuracy"],
        "energy_uj": row["energy"] / 1e6,
        "edges": dict(edges(trainer.network, op)),
    }


def edges(network: Network, op: str) -> Counter[str]:
    """Live edges by operator."""
    counts: Counter[str] = Counter()
    for bundle in network.spec.topology.bundles:
        name = op if bundle.op is None else bundle.op.name
        counts[name] += int(network.graph.live()[bundle.name].sum())
    return counts


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines: accuracy with its spread, and energy, by operator and budget."""
    yield f"{'budget':>8}  {'operator':24}{'accuracy %':>14}{'energy uJ':>11}  live edges"
    for microjoules in sorted({row["budget_uj"] for row in rows}):
        for op in OPS:
            same = [r for r in rows if r["op"] == op and r["budget_uj"] == microjoules]
            if not same:
                continue
            accuracy = [100 * row["val_accuracy"] for row in same]
            deviation = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
            spread = f"{statistics.mean(accuracy):.2f} ±{deviation:.2f}"
            energy = statistics.mean(row["energy_uj"] for row in same)
            live = ", ".join(f"{n} {c:,}" for n, c in same[0]["edges"].items())
            yield f"{microjoules:6g}uJ  {op:24}{spread:>14}{energy:11.3f}  {live}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, default=Path("data"), help="where MNIST lies")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--microjoules", type=float, nargs="+", default=MICROJOULES)
    parser.add_argument("--json", action="store_true", help="one line of JSON a run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = DataConfig(name="mnist", root=given.root, limit=given.images)
    data = load_data(config)
    rows = []
    for seed in range(given.seeds):
        for microjoules in given.microjoules:
            for op in OPS:
                rows.append(train(config, data, op, microjoules, seed, given.epochs))
                if given.json:
                    print(json.dumps(rows[-1]), flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
