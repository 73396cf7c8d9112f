"""How good a network is on images it does not train on; a finished trial tested again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from wiring.config import parse
from wiring.errors import CheckpointError, ConfigError, DataError
from wiring.network import ModelSpec, Network, build_network
from workers.data import ImageData, load_data
from workers.device import pick_device
from workers.files import read_json
from workers.spec import DataConfig, TrainConfig, TrialSpec

# The network that a node rule left, beside the spec of the trial.
NETWORK = "network.json"
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats, and the share of images whose class is found (0..1)."""

    loss: float
    accuracy: float
    images: int


@torch.no_grad()
def evaluate(network: Network, batches: Batches) -> Evaluation:
    """A network in evaluation mode on labelled batches; its training mode is put back."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    images = 0
    for x, y in batches:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        scores = network(x).float()
        loss += F.cross_entropy(scores, y, reduction="sum").double()
        correct += (scores.argmax(dim=1) == y).sum()
        images += len(y)
    network.train(training)
    if not images:
        raise DataError("there are no images to evaluate on")
    return Evaluation(float(loss) / images, int(correct) / images, images)


def accuracy(network: Network, batches: Batches) -> float:
    """The share of images whose class is found, 0..1."""
    return evaluate(network, batches).accuracy


def evaluation_batch(train: TrainConfig) -> int:
    """Images a batch in evaluation; fixed by the config, since sums depend on it."""
    return max(train.batch_size, 128)


def check_fits(model: ModelSpec, data: ImageData) -> None:
    """Raises ConfigError where a network takes other images or classes than the data have."""
    wanted, given = model.image, data.image
    if wanted != given or model.classes != len(data.classes):
        raise ConfigError(
            f"the network takes {wanted.channels}x{wanted.side}x{wanted.side} images of "
            f"{model.classes} classes, data set '{data.name}' has "
            f"{given.channels}x{given.side}x{given.side} images of {len(data.classes)} classes"
        )


def read_spec(directory: Path) -> TrialSpec:
    """What a trial's directory is for. Raises StudyError or ConfigError."""
    path = directory / "spec.json"
    return parse(TrialSpec, read_json(path), where=str(path))


def read_trained_spec(directory: Path) -> TrialSpec:
    """The same, with the network that training ended with: a smaller one where a node rule has
    removed nodes. Wirings and weights in the directory are this network's."""
    spec, path = read_spec(directory), directory / NETWORK
    if not path.exists():
        return spec
    return spec.model_copy(update={"model": parse(ModelSpec, read_json(path), where=str(path))})


def load_trained(directory: Path) -> tuple[TrialSpec, Network]:
    """The spec (see `read_trained_spec`) and the best network that a trial left in its directory.

    Raises StudyError where the spec is missing, CheckpointError where the weights are missing or
    are not this network's.
    """
    spec = read_trained_spec(directory)
    path = directory / "weights.safetensors"
    network = build_network(spec.model, seed=spec.seed)
    try:
        network.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: does not hold this network's weights: {reason}") from error
    return spec, network


def evaluate_run(directory: Path, data: DataConfig | None = None) -> dict[str, Any]:
    """Test a trial's best network again: `accuracy`, `loss`, `images`, `data`, `data_digest`.

    `data` replaces the trial's own data config, for images that lie elsewhere now.
    """
    spec, network = load_trained(directory)
    torch.set_num_threads(spec.train.threads)
    images = load_data(data or spec.data)
    check_fits(spec.model, images)
    network.to(pick_device(spec.train))
    result = evaluate(network, images.test_batches(evaluation_batch(spec.train)))
    return {
        "accuracy": result.accuracy,
        "loss": result.loss,
        "images": result.images,
        "data": images.name,
        "data_digest": images.digest,
    }
