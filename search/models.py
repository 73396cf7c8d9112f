"""Any PyTorch network by name: torchvision's, one that a Python file makes, or a converted file."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search.costs import torchvision_model, unknown_model
from wiring.config import parse
from wiring.errors import CheckpointError, ConfigError, WiringError
from wiring.export import read_file
from wiring.models.files import FORMAT, load_model, read_header

BATCH = 32


def open_plain(
    name: str, *, weights: Path | None = None, pretrained: bool = False
) -> tuple[nn.Module, str]:
    """(a network in evaluation mode, the name of the plain network that it was made of).

    `name` is one of torchvision's, FILE.py:factory (a function without arguments that returns a
    module; the file is run), or a converted file of one of torchvision's. `weights` is a state dict
    in a safetensors file, or a converted file. Raises UnknownNameError, ConfigError and
    CheckpointError.
    """
    path, _, factory = name.rpartition(":")
    if path.endswith(".py"):
        model, source = _made(Path(path), factory), name
        if pretrained:
            raise ConfigError("--pretrained is for torchvision's models; give --weights FILE")
    elif name.endswith(".py"):
        raise ConfigError(f"say which function of {name} makes the network: {name}:FUNCTION")
    elif name.endswith(".safetensors"):
        if weights is not None or pretrained:
            raise ConfigError("a converted file has its weights in it; leave out other weights")
        return _converted(Path(name))
    else:
        model, source = _from_torchvision(name, pretrained), name
    if weights is not None:
        if pretrained:
            raise ConfigError("--weights and --pretrained exclude one another")
        model = _with_weights(model, weights)
    return model.eval(), source


def _from_torchvision(name: str, pretrained: bool) -> nn.Module:
    import torchvision

    if pretrained and name in torchvision.models.list_models():
        model: nn.Module = torchvision.models.get_model(name, weights="DEFAULT")
        return model
    found = torchvision_model(name)
    if found is None:
        raise unknown_model(name, "no model of torchvision's, no FILE.py:FUNCTION and no file")
    return found


def _made(path: Path, factory: str) -> nn.Module:
    """What a function of a Python file returns."""
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"wiring_model_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
        make = getattr(module, factory, None)
        if not callable(make):
            raise ConfigError(f"{path} has no function '{factory}'")
        model = make()
    except (WiringError, KeyboardInterrupt):
        raise
    except Exception as error:
        # Whatever somebody's own code may raise.
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}:{factory} fails: {type(error).__name__}: {reason}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{path}:{factory} returns a {type(model).__name__}, not a module")
    return model


def _converted(path: Path) -> tuple[nn.Module, str]:
    source = read_header(path).source or ""
    if ":" in source:  # code that a file names is not run
        raise CheckpointError(
            f"{path}: was made of {source}: name that model, with --weights {path}"
        )
    plain = torchvision_model(source)
    if plain is None:
        raise CheckpointError(
            f"{path}: was made of {source or 'a model nobody has named'}, which is not among "
            f"torchvision's: name the model FILE.py:FUNCTION, with --weights {path}"
        )
    return load_model(path, plain).eval(), source


def _with_weights(model: nn.Module, path: Path) -> nn.Module:
    tensors, metadata = read_file(path)
    if metadata.get("format") == FORMAT:
        return load_model(path, model)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise CheckpointError(
            f"{path}: does not fit the model: {reasons[0] if reasons else error}"
        ) from None
    return model


def images(name: str, root: Path | None, shape: tuple[int, ...], count: int) -> list[Tensor]:
    """Batches of at least `count` training images of a data set, at the side of `shape`.

    Raises UnknownNameError and DataError, and ConfigError where the set has other channels.
    """
    from workers.data import load_data
    from workers.spec import DataConfig

    settings: dict[str, Any] = {"name": name, "root": root, "augment": False}
    if len(shape) == 3:
        settings["side"] = shape[-1]
    data = load_data(parse(DataConfig, settings, where="data"))
    if (data.image.channels, data.image.side, data.image.side) != shape:
        found = f"{data.image.channels}x{data.image.side}x{data.image.side}"
        given = "x".join(map(str, shape))
        raise ConfigError(f"data set '{name}' has images of {found}, --input says {given}")
    batches = data.train_batches(0, batch_size=BATCH, seed=0)
    return [x for x, _ in itertools.islice(batches, -(-count // BATCH))]


def example_of(shape: tuple[int, ...]) -> Tensor:
    """One normal input of a shape, the same every time."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
