"""Deep Compression on LeNet-5: how small, and at what accuracy.

    python -m benchmarks.deep_compression [--root DIR] [--images N] [--epochs E] [--seeds S]
                                          [--json]

Caffe's LeNet-5 (20 and 50 windows of 5x5, 500 hidden units) learns MNIST; rule `magnitude` prunes
it in rounds to the shares of the paper's table (66, 12, 8 and 19 % of the layers' edges); operator
`deep-compression` lets the rest share weights (8 bits in convolutions, 5 in full layers, distances
of 5 bits) and codes them. The paper: 12 times smaller pruned, 33 times with codes, 39 times after
Huffman, no accuracy lost.

Ratios count the weights of all layers as they are packed, as the paper does. The exported file
has biases and a header besides, and lacks nodes that nothing reads. Accuracy is that on the test
images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from wiring.config import Component
from wiring.export import export, load_exported
from wiring.graph.driving import attach
from wiring.graph.phases import phase_ends
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology
from wiring.methods.deep_compression import DeepCompression
from wiring.network import HeadSpec, ImageShape, ModelSpec, Network, StemSpec, build_network
from workers.data import ImageData, load_data
from workers.evaluate import accuracy
from workers.schedule import learning_rate
from workers.spec import DataConfig, TrainConfig

SHARED = 0.25  # of training on shared weights
ROUNDS = 4
# Layer: weights [D, S, kh, kw], share of edges that live, bits of a code.
LAYERS = {
    "conv1": ((20, 1, 5, 5), 0.66, 8),
    "conv2": ((50, 20, 5, 5), 0.12, 8),
    "fc1": ((500, 50, 4, 4), 0.08, 5),
    "fc2": ((10, 500, 1, 1), 0.19, 5),
}


def lenet5() -> ModelSpec:
    """Caffe's LeNet-5: windows and pooling without ReLU, then two full layers."""
    steps = {"conv1": ("bias", "maxpool"), "conv2": ("bias", "maxpool"), "fc1": ("bias", "act")}
    groups = [NodeGroup(name="image", size=1)]
    bundles, scopes = [], []
    for stage, (name, (shape, share, bits)) in enumerate(LAYERS.items(), start=1):
        op = Component(name="deep-compression", bits=bits, gap_bits=5, share=SHARED, gradient="sum")
        source = groups[-1].name
        node = {"name": name, "size": shape[0], "stage": stage, "steps": steps.get(name, ("bias",))}
        groups.append(NodeGroup.model_validate(node))
        bundles.append(
            Bundle(name=name, sources=(source,), destination=name, kernel=shape[2:], op=op)
        )
        budget = int(share * shape[0] * shape[1] * shape[2] * shape[3])
        scopes.append(Scope(name=name, bundles=(name,), budget=budget))
    topology = Topology(groups=tuple(groups), bundles=tuple(bundles), scopes=tuple(scopes))
    return ModelSpec(
        space="lenet5",
        choices={},
        image=ImageShape(channels=1, side=28),
        classes=10,
        stem=StemSpec(kind="identity"),
        topology=topology,
        head=HeadSpec(kind="none"),
        op=Component(name="deep-compression", share=SHARED, gradient="sum"),
        rule=Component(name="magnitude", rounds=ROUNDS, pretrain=0.4, lr=0.5),
    )


def train(data: ImageData, epochs: int, seed: int) -> tuple[Network, dict[str, float]]:
    """The network, and its accuracy at the end of training whole, pruned, and with shared weights;
    `fitted` is that of shared weights before any further training."""
    settings = TrainConfig(epochs=epochs, batch_size=64, lr=0.02, weight_decay=5e-4)
    network = build_network(lenet5(), seed=seed).train()
    optimizer = torch.optim.SGD(
        network.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay
    )
    steps = data.steps(settings.batch_size)
    every = epochs * steps
    attach(network, optimizer, steps=every)
    phases = network.graph.phases()
    ends = phase_ends(every, phases)
    measured, step = {}, 0
    for epoch in range(1, epochs + 1):
        for x, y in data.train_batches(epoch, batch_size=settings.batch_size, seed=seed):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, steps, phases)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(x), y))
            # A phase's last step begins the next one: measure before it.
            if step + 1 in (ends[0], ends[-2]):
                name = "whole" if step + 1 == ends[0] else "pruned"
                measured[name] = accuracy(network, data.test_batches(500))
            optimizer.step()
            step += 1
            if step == ends[-2]:
                measured["fitted"] = accuracy(network, data.test_batches(500))
    measured["shared"] = accuracy(network, data.test_batches(500))
    return network.eval(), measured


def sizes(network: Network) -> dict[str, dict[str, float]]:
    """By layer and in total: weights, live edges, bits of codes, positions and centroids, stored
    bits, and what codes and distances of fixed width would take."""
    rows: dict[str, dict[str, float]] = {}
    for name, live in network.graph.live().items():
        op = network.graph.op(name)
        assert isinstance(op, DeepCompression)
        op.verify(live)
        bits = op.stored_bits(live)
        rows[name] = {
            "weights": live.numel(),
            "live": int(live.sum()),
            "codes": bits.codes,
            "positions": bits.positions,
            "centroids": bits.centroids,
            "fixed": op.fixed_bits(live),
            "stored": 8 * sum(tensor.nbytes for tensor in op.pack(live).values()),
        }
    rows["total"] = {key: sum(row[key] for row in rows.values()) for key in rows["conv1"]}
    return rows


def run(data: ImageData, epochs: int, seed: int) -> dict[str, Any]:
    """One network: accuracies, sizes, and the file, which must classify alike."""
    network, measured = train(data, epochs, seed)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "lenet5.safetensors"
        export(network, path)
        measured["file"] = accuracy(load_exported(path), data.test_batches(500))
        size = path.stat().st_size
    return {"seed": seed, "accuracy": measured, "layers": sizes(network), "file_bytes": size}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines: the layers of the first seed, then ratios and accuracies over all seeds."""
    yield (
        f"{'layer':8}{'weights':>9}{'live %':>8}{'code bits':>11}{'position bits':>15}"
        f"{'fixed':>8}{'Huffman':>9}"
    )
    for name, one in rows[0]["layers"].items():
        whole, live = 32 * one["weights"], one["live"]
        yield (
            f"{name:8}{one['weights']:9,}{100 * live / one['weights']:8.1f}"
            f"{one['codes'] / live:11.2f}{one['positions'] / live:15.2f}"
            f"{whole / one['fixed']:7.1f}x{whole / one['stored']:8.1f}x"
        )
    totals = [row["layers"]["total"] for row in rows]
    yield f"pruned  {_spread([total['weights'] / total['live'] for total in totals])} times smaller"
    for name in ("fixed", "stored"):
        ratios = [32 * total["weights"] / total[name] for total in totals]
        yield f"{name:8}{_spread(ratios)} times smaller"
    for name in ("whole", "pruned", "fitted", "shared", "file"):
        yield f"{name:8}{_spread([100 * row['accuracy'][name] for row in rows])} % of test images"
    yield f"file    {_spread([row['file_bytes'] for row in rows])} bytes with biases and header"


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):10.2f} ±{deviation:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, default=Path("data"), help="where MNIST lies")
    parser.add_argument("--images", type=int, default=60000)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one line of JSON a run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = DataConfig(name="mnist", root=given.root, limit=given.images, validation=0.02)
    data = load_data(config)
    rows = []
    for seed in range(given.seeds):
        rows.append(run(data, given.epochs, seed))
        if given.json:
            print(json.dumps(rows[-1]), flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
