"""A trial's network in its fast form: compiled, held against eager evaluation, written down."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wiring.compiled import CompiledNetwork
from wiring.compiled import compile as compile_network
from wiring.compiled.tuning import machine, measure, with_threads
from wiring.errors import DataError, WiringError
from wiring.graph.costs import total_cost
from wiring.network import Network
from wiring.quantize import quantize_adder
from workers.data import load_data
from workers.evaluate import check_fits, evaluate, evaluation_batch, load_trained
from workers.spec import TrialSpec

OUTPUT = "compiled.safetensors"
IMAGES = 256
TOLERANCE = 1e-2  # of the largest score


@torch.no_grad()
def optimize_run(
    directory: Path,
    output: Path | None = None,
    *,
    batch: int = 1,
    threads: int | None = None,
    uint8: bool = False,
) -> dict[str, Any]:
    """Compile the best network of a trial for batches of `batch`, and report what came of it.

    The report holds `file`, `bytes`, `cost_bits` (weights and live edges), `layout`, `machine`,
    `images` (validation or random), `max_difference` of the class scores to eager evaluation and
    `largest_score`, `eager_ms` and `compiled_ms` of one batch, and `choices` with the µs of every
    form of every bundle. With `uint8`, adder edges compute in bytes, calibrated on training
    images, and `accuracy` holds what that does to the share of validation images that is right.

    Raises StudyError or CheckpointError for a trial that left no network, WiringError, without
    writing, where the compiled one computes something else or where there is nothing to quantise,
    and DataError where the images to calibrate on are missing.
    """
    spec, network = load_trained(directory)
    network.eval()
    accuracy: dict[str, float] = {}
    with with_threads(threads):
        if uint8:
            network, accuracy = _quantise(spec, network)
        compiled = compile_network(network, batch=batch)
        source, batches = _images(spec, batch)
        difference, largest = _compare(network, compiled, batches)
        x = batches[0]
        times = measure({"eager": lambda: network(x), "compiled": lambda: compiled(x)})
        used, here = torch.get_num_threads(), machine()
    path = output or directory / OUTPUT
    compiled.save(path)
    cost = total_cost(network)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "cost_bits": cost.weight_bits + cost.index_bits,
        "batch": batch,
        "threads": used,
        "layout": compiled.layout,
        "machine": here,
        "images": source,
        "max_difference": difference,
        "largest_score": largest,
        "eager_ms": times["eager"] / 1000,
        "compiled_ms": times["compiled"] / 1000,
        "accuracy": accuracy,
        "choices": [{**asdict(choice), "density": choice.density} for choice in compiled.choices()],
    }


def _quantise(spec: TrialSpec, network: Network) -> tuple[Network, dict[str, float]]:
    """The network in bytes, and the validation accuracy of both by precision."""
    data = load_data(spec.data.replace(download=False))
    check_fits(spec.model, data)
    size = evaluation_batch(spec.train)
    batches = data.train_batches(0, batch_size=size, seed=spec.seed)
    calibration = itertools.islice(batches, math.ceil(IMAGES / size))
    quantised = quantize_adder(network, [x for x, _ in calibration])
    forms = {"float32": network, "uint8": quantised}
    accuracy = {name: evaluate(n, data.val_batches(size)).accuracy for name, n in forms.items()}
    return quantised, accuracy


def _images(spec: TrialSpec, batch: int) -> tuple[str, list[Tensor]]:
    """Whole batches of validation images, or of random ones where the data are not here."""
    try:
        data = load_data(spec.data.replace(download=False))
        check_fits(spec.model, data)
        wanted = max(1, IMAGES // batch)
        whole = [x for x, _ in itertools.islice(data.val_batches(batch), wanted) if len(x) == batch]
        if whole:
            return "validation", whole
    except DataError:
        pass
    image = spec.model.image
    generator = torch.Generator().manual_seed(spec.seed)
    size = (batch, image.channels, image.side, image.side)
    return "random", [torch.randn(size, generator=generator)]


def _compare(
    network: Network, compiled: CompiledNetwork, batches: list[Tensor]
) -> tuple[float, float]:
    """(largest difference, largest score). Raises WiringError beyond the tolerance."""
    eager = torch.cat([network(x) for x in batches])
    difference = float((torch.cat([compiled(x) for x in batches]) - eager).abs().max())
    largest = float(eager.abs().max())
    if not difference <= TOLERANCE * largest:
        raise WiringError(
            f"the compiled network's scores differ by up to {difference:.3g} from eager "
            f"evaluation, whose largest is {largest:.3g}"
        )
    return difference, largest
