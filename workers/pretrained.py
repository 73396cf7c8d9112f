"""Fetches pretrained weights and starts a network from them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from wiring.errors import DataError
from wiring.network import Network, Pretrained
from wiring.pretrained import adopt


def start_from_pretrained(network: Network, seed: int) -> None:
    """Fill a network whose spec names pretrained weights; any other stays as it is.

    Raises what `fetch` does, and WiringError where the weights do not fit the network.
    """
    source = network.spec.pretrained
    if source is not None:
        state = torch.load(fetch(source), map_location="cpu", weights_only=True)
        adopt(network, state, classifier=source.classifier, seed=seed)


def fetch(source: Pretrained) -> Path:
    """The file of pretrained weights, from where PyTorch keeps such (`TORCH_HOME`) or its URL.

    Raises DataError where it can neither be found nor fetched, or is not the one that is meant.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / source.url.rpartition("/")[2]
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source.url, str(path), source.digest, progress=False)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DataError(
            f"pretrained weights cannot be fetched from {source.url} ({reason}); "
            f"without a connection, put the file into {folder}"
        ) from None
    if not digest.startswith(source.digest):
        raise DataError(
            f"{path}: is not the file of pretrained weights that is meant: its SHA-256 begins with "
            f"{digest[: len(source.digest)]}, not with {source.digest}"
        )
    return path
