"""A converted network as one safetensors file.

Of wired layers it holds what `wiring.export` holds of a network: the edges as their operator packs
them, and which of them live as the cheaper of a bit plane and a list. Every other parameter and
buffer lies there as it is. So the payload is what the cost model says, weight and index bits, each
tensor rounded up to whole bytes, and the moments of norms and other buffers beside it. The header
says how to make the wired layers out of the plain network that `load_model` is given. Nothing in
the file is code.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from pydantic import NonNegativeInt
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wiring.config import Config, parse
from wiring.errors import CheckpointError, ConfigError, WiringError
from wiring.export import digest_of, pack_live, pieces, read_file, unpack_live
from wiring.files import write_atomic
from wiring.models.install import names_of
from wiring.models.layers import EDGES, LayerSpec, WiredLayer, build_layer, wired_layers
from wiring.models.survey import padding_of
from wiring.models.undo import all_or_nothing

FORMAT = "wiring-model"
VERSION = 1


class StoredLayer(Config):
    """A wired layer in the header: its spec, and its names inside the model."""

    spec: LayerSpec
    names: tuple[str, ...]


class Header(Config):
    """What the file says of itself. `source` is where the plain model came from, as far as anybody
    has said."""

    version: NonNegativeInt = VERSION
    layers: tuple[StoredLayer, ...] = ()
    source: str | None = None
    digest: str


@torch.no_grad()
def save_model(model: nn.Module, path: Path | str, *, source: str | None = None) -> None:
    """Write a converted network. Raises CheckpointError where the file cannot be written, and
    WiringError for a module that keeps state of its own outside parameters and buffers.

    `source` says where the plain network can be had from, for people and the command line.
    """
    if any(p.device.type != "cpu" for p in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model).cpu()
    tensors = {n: t.detach().contiguous() for n, t in stored_tensors(model).items()}
    layers = wired_layers(model)
    header = Header(
        layers=tuple(
            StoredLayer(spec=_spec_now(layer), names=tuple(names_of(model, layer)))
            for layer in layers.values()
        ),
        source=source,
        digest=digest_of(tensors),
    )
    metadata = {"format": FORMAT, "header": json.dumps(header.to_dict(), separators=(",", ":"))}
    data: bytes = save(tensors, metadata)
    try:
        write_atomic(Path(path), data)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from None


@torch.no_grad()
def load_model(path: Path | str, model: nn.Module) -> nn.Module:
    """Make the network of a file out of a plain one, in place, and return it.

    `model` is the network as it was before it was converted: the same classes, weights of any
    value. Layers whose nodes were removed shrink first. Raises CheckpointError for a file that is
    missing, damaged, of another kind, or of another network; the model is then as it was.
    """
    tensors, header = _checked(path)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with all_or_nothing(model):
            _become(model.cpu(), header, tensors)
    except (
        KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, WiringError,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{path}: does not fit this model: {_plain(error)}") from error
    return model.to(device)


def _become(model: nn.Module, header: Header, tensors: dict[str, Tensor]) -> None:
    """Put the wired layers in, and what is stored into everything."""
    wired = {name for stored in header.layers for name in stored.names}
    for stored in header.layers:
        layer = _rebuilt(model, stored)
        for name in stored.names:
            model.set_submodule(name, layer)
    _shrink(model, tensors, wired)
    _fill(model, tensors)


def read_header(path: Path | str) -> Header:
    """What a file says of itself. Raises CheckpointError."""
    return _checked(path)[1]


def _checked(path: Path | str) -> tuple[dict[str, Tensor], Header]:
    tensors, metadata = read_file(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is no converted model")
    try:
        plain = json.loads(metadata["header"])
        if plain.get("version") != VERSION:
            raise CheckpointError(
                f"{path}: is of format version {plain.get('version')}, this is version {VERSION}"
            )
        header = parse(Header, plain)
    except (KeyError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path}: its header says nothing of use: {error}") from None
    if header.digest != digest_of(tensors):
        raise CheckpointError(f"{path}: is damaged: its tensors do not match their digest")
    return tensors, header


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything a file holds of a model, by name; of tensors with several names, the first."""
    stored: dict[str, Tensor] = {}
    for name, layer in wired_layers(model).items():
        op, live = layer.edge_op, layer.live_mask
        packed = pack_live(layer.wiring, [EDGES] if op.stores_live(live) else [])
        if packed is not None:
            stored[_key(name, "live")] = packed
        for piece, tensor in op.pack(live).items():
            stored[_key(name, f"edges.{piece}")] = tensor
    return {**stored, **_plain_tensors(model)}


def _plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers outside the edges of wired layers, each once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    edges = {
        id(part)
        for layer in wired_layers(model).values()
        for inner in (layer.ops, layer.scopes, layer.gates)
        for part in inner.modules()
    }
    for name, module in model.named_modules():
        if id(module) in edges:
            continue
        own = type(module).get_extra_state is not nn.Module.get_extra_state
        if own and not isinstance(module, WiredLayer):
            raise WiringError(
                f"'{name}' ({type(module).__name__}) keeps state of its own, which a file of "
                "tensors cannot hold"
            )
        hidden = module._non_persistent_buffers_set
        tensors = {
            **dict(module.named_parameters(recurse=False)),
            **{n: b for n, b in module.named_buffers(recurse=False) if n not in hidden},
        }
        for leaf, tensor in tensors.items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[_key(name, leaf)] = tensor
    return found


def _key(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def _spec_now(layer: WiredLayer) -> LayerSpec:
    """The spec whose budget is the number of edges that live now."""
    live, edges = int(layer.wiring.live.sum()), layer.wiring.live.numel()
    return layer.spec.replace(live_edges=None if live == edges else live)


def _rebuilt(model: nn.Module, stored: StoredLayer) -> WiredLayer:
    """A wired layer in place of the plain one of that name. Raises ValueError where that one is
    of another kind or geometry; how many nodes it has may differ, for some may be removed."""
    name, spec = stored.names[0], stored.spec
    plain = model.get_submodule(name)
    if spec.kind == "conv" and isinstance(plain, nn.Conv2d):
        fits = (
            plain.kernel_size == spec.kernel
            and plain.stride == (spec.stride, spec.stride)
            and padding_of(plain) == spec.padding
            and plain.groups == 1
        )
    else:
        fits = spec.kind == "linear" and isinstance(plain, nn.Linear)
    if not fits:
        kind = plain if isinstance(plain, (nn.Conv2d, nn.Linear)) else type(plain).__name__
        raise ValueError(f"'{name}' is a {kind}, not the {spec.kind} layer that was converted")
    weight = plain.weight
    assert isinstance(weight, Tensor)
    layer = build_layer(spec).to(device=weight.device, dtype=weight.dtype)
    layer.train(plain.training)
    return layer


def _shrink(model: nn.Module, tensors: dict[str, Tensor], wired: set[str]) -> None:
    """Cut ordinary layers and norms whose nodes were removed to the size that is stored."""
    for name, module in model.named_modules():
        if name in wired or any(name.startswith(f"{layer}.") for layer in wired):
            continue
        own = {*dict(module.named_parameters(recurse=False))}
        own |= {*dict(module.named_buffers(recurse=False))}
        stored = {leaf: tensors[_key(name, leaf)] for leaf in own if _key(name, leaf) in tensors}
        if all(stored[leaf].shape == getattr(module, leaf).shape for leaf in stored):
            continue
        _resize(module, stored)
        for leaf, tensor in stored.items():
            old = getattr(module, leaf)
            cut = torch.empty(tensor.shape, dtype=old.dtype, device=old.device)
            trains = isinstance(old, nn.Parameter)
            setattr(module, leaf, nn.Parameter(cut, old.requires_grad) if trains else cut)


def _resize(module: nn.Module, stored: dict[str, Tensor]) -> None:
    """Tell a layer the sizes of the tensors that it will get. Raises ValueError where they do not
    fit its kind."""
    if isinstance(module, _BatchNorm):
        size = next(iter(tensor.shape[0] for tensor in stored.values() if tensor.dim()))
        module.num_features = size
        return
    weight = stored.get("weight")
    if isinstance(module, nn.Linear) and weight is not None and weight.dim() == 2:
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Conv2d) and weight is not None and weight.dim() == 4:
        depthwise = module.groups > 1 and module.groups == module.in_channels
        if module.groups > 1 and not depthwise:
            raise ValueError("the nodes of a grouped convolution cannot be removed")
        if weight.shape[2:] != module.kernel_size:
            raise ValueError(f"a kernel of {list(weight.shape[2:])} is stored, not {module}")
        module.out_channels = weight.shape[0]
        module.groups = weight.shape[0] if depthwise else 1
        module.in_channels = module.groups * weight.shape[1]
    else:
        raise ValueError(f"what is stored has other shapes than {module}")


def _fill(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Inverse of `stored_tensors`. Raises KeyError and ValueError."""
    left = set(tensors)
    for name, layer in wired_layers(model).items():
        live, prefix = _key(name, "live"), _key(name, "edges.")
        stored = pieces(tensors, prefix)
        own = layer.edge_op.unpack_live(stored)
        known = {} if own is None else {EDGES: own}
        layer.wiring.live.copy_(unpack_live(layer.wiring, tensors.get(live), known))
        layer.edge_op.unpack(stored, layer.live_mask)
        left -= {live} | {prefix + piece for piece in stored}
    for name, tensor in _plain_tensors(model).items():
        if name not in tensors:
            raise KeyError(f"the file has nothing for '{name}'")
        if tensors[name].shape != tensor.shape:
            shapes = f"{list(tensors[name].shape)}, not {list(tensor.shape)}"
            raise ValueError(f"'{name}' is {shapes}")
        tensor.copy_(tensors[name])
        left.discard(name)
    if left:
        raise ValueError(f"the model has nothing for '{min(left)}'")


def _plain(error: BaseException) -> str:
    """A KeyError's own words, without the quotes around them."""
    return str(error.args[0]) if error.args else str(error)
