"""One-bit weights of a trained network: by their signs (BWN), or hashed layer by layer (BWNH).

    python -m benchmarks.bwnh RUN [RUN ...] [--images N] [--epochs E] [--lr X] [--groups G ...]
                              [--json]

RUN is the directory of a trial with dense operators, one per seed. Both start from its weights and
keep as many bits (with one scale a filter); both are tested as they are, with the moments of
their batch norms measured anew, and after E epochs of the same fine-tuning.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import update_bn

from wiring.config import Component
from wiring.graph.costs import total_cost
from wiring.graph.driving import advance, attach
from wiring.network import Network, build_network
from workers.data import ImageData, load_data
from workers.evaluate import accuracy, load_trained
from workers.spec import TrialSpec

BATCH = 128


def binarised(trained: Network, op: Component, examples: list[Tensor]) -> tuple[Network, float]:
    """A network with another operator and the weights of a trained one; and the seconds it took."""
    network = build_network(trained.spec.model_copy(update={"op": op})).eval()
    for part in ("stem", "head"):
        getattr(network, part).load_state_dict(getattr(trained, part).state_dict())
    network.graph.nodes.load_state_dict(trained.graph.nodes.state_dict())
    network.graph.gates.load_state_dict(trained.graph.gates.state_dict())
    began = time.monotonic()
    for bundle in trained.spec.topology.bundles:
        network.graph.op(bundle.name).approximate(trained.graph.op(bundle.name).weight.detach())
    advance(network, examples)
    return network, time.monotonic() - began


def fine_tune(network: Network, data: ImageData, epochs: int, lr: float, seed: int) -> None:
    """SGD with momentum; the rate falls as a cosine."""
    optimizer = torch.optim.SGD(network.train().parameters(), lr=lr, momentum=0.9)
    steps = epochs * data.steps(BATCH)
    attach(network, optimizer, steps=steps, data=list)
    step = 0
    for epoch in range(1, epochs + 1):
        for x, y in data.train_batches(epoch, batch_size=BATCH, seed=seed):
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(x), y))
            optimizer.step()
            step += 1


def compare(run: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one trained network."""
    spec, trained = load_trained(run)
    data = load_data(spec.data)
    batches = data.train_batches(0, batch_size=BATCH, seed=spec.seed)
    examples = [x for x, _ in itertools.islice(batches, math.ceil(args.images / BATCH))]
    test = [(x, y) for x, y in data.test_batches(500)]
    yield _row(spec, "float", trained, 0.0, {"as is": accuracy(trained, test)})
    # Centring after each step flips signs that direct binarisation has just chosen: both ways.
    ops = [Component(name="bwn"), Component(name="bwn", center=False), Component(name="bwnh")]
    ops += [Component(name="bwnh", groups=count) for count in args.groups]
    for op in ops:
        network, seconds = binarised(trained, op, examples)
        found = {"as is": accuracy(network, test)}
        with torch.no_grad():
            update_bn(examples, network)
        found["moments anew"] = accuracy(network, test)
        if args.epochs:
            fine_tune(network, data, args.epochs, args.lr, spec.seed)
            with torch.no_grad():
                update_bn(examples, network)
            found["fine-tuned"] = accuracy(network, test)
        name = op.name + "".join(f" {key}={value}" for key, value in op.options.items())
        yield _row(spec, name, network, seconds, found)


def _row(
    spec: TrialSpec, name: str, network: Network, seconds: float, found: dict[str, float]
) -> dict[str, Any]:
    bits = total_cost(network).weight_bits
    return {"seed": spec.seed, "op": name, "weight_bits": bits, "seconds": seconds, **found}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines: mean test accuracy in per cent by operator, with its spread over the runs."""
    stages = ("as is", "moments anew", "fine-tuned")
    yield f"{'operator':18}{'kbit':>8}{'seconds':>9}" + "".join(f"{s:>16}" for s in stages)
    for name in dict.fromkeys(row["op"] for row in rows):
        same = [row for row in rows if row["op"] == name]
        cells = []
        for stage in stages:
            values = [100 * row[stage] for row in same if stage in row]
            spread = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "")
        kbit = same[0]["weight_bits"] / 1000
        seconds = statistics.mean(row["seconds"] for row in same)
        yield f"{name:18}{kbit:8.0f}{seconds:9.1f}" + "".join(f"{cell:>16}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, nargs="+", help="trials with dense operators")
    parser.add_argument("--images", type=int, default=512, help="that layers are hashed on")
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--groups", type=int, nargs="*", default=[], help="scales a filter, too")
    parser.add_argument("--json", action="store_true", help="one line of JSON a row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for run in given.runs:
        for row in compare(run, given):
            rows.append(row)
            if given.json:
                print(json.dumps(row), flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
