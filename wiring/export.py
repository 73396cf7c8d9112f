"""A trained network as one safetensors file whose size is what its cost says.

The payload is bits: edge weights as their operator packs them, live edges as the cheaper of a
bit plane and a list of ⌈log2(usable)⌉-bit indices (unless the operator packs those too), the rest
float32 with norms folded to scale and shift. The header holds the compacted ModelSpec and a digest
of the payload. Nothing in the file is code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from wiring.compact import compact
from wiring.config import parse
from wiring.errors import BudgetError, CheckpointError, ConfigError, TopologyError, WiringError
from wiring.files import write_atomic
from wiring.graph.costs import index_bits
from wiring.graph.scope import ScopeWiring
from wiring.network import ModelSpec, Network, build_network

FORMAT = "wiring-network"
VERSION = "1"


@torch.no_grad()
def export(network: Network, path: Path | str) -> None:
    """Write what evaluation needs of `network`, compacted. Raises CheckpointError.

    The payload has `total_cost(network)`'s weight_bits and index_bits, each tensor rounded up
    to whole bytes.
    """
    data = exported(compact(network).cpu().eval())
    try:
        write_atomic(Path(path), data)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from None


@torch.no_grad()
def exported(network: Network) -> bytes:
    """The file of a compacted network in evaluation mode on the CPU."""
    tensors = {name: tensor.contiguous() for name, tensor in stored_tensors(network).items()}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "spec": json.dumps(network.spec.to_dict(), separators=(",", ":")),
        "digest": digest_of(tensors),
    }
    data: bytes = save(tensors, metadata)
    return data


@torch.no_grad()
def load_exported(path: Path | str) -> Network:
    """The network of an exported file, in evaluation mode on the CPU.

    Raises CheckpointError for a file that is missing, damaged or of another kind or version,
    UnknownNameError where its operator or rule is not installed.
    """
    tensors, metadata = read_file(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is no exported network")
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: is of format version {metadata.get('version')}, this is version {VERSION}"
        )
    if metadata.get("digest") != digest_of(tensors):
        raise CheckpointError(f"{path}: is damaged: its tensors do not match their digest")
    try:
        spec = parse(ModelSpec, json.loads(metadata["spec"]))
    except (KeyError, ValueError, ConfigError, TopologyError, BudgetError) as error:
        raise CheckpointError(f"{path}: holds no valid network: {error}") from None
    network = build_network(spec).eval()
    try:
        _fill(network, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, WiringError) as error:
        raise CheckpointError(f"{path}: does not fit its own network: {error}") from error
    return network


def stored_tensors(network: Network) -> dict[str, Tensor]:
    """Everything an export stores of a compacted network in evaluation mode, by name."""
    stored: dict[str, Tensor] = {}
    graph = network.graph
    for name, wiring in graph.wirings():
        masks = wiring.split(wiring.live)
        packed = pack_live(wiring, [b for b in masks if graph.op(b).stores_live(masks[b])])
        if packed is not None:
            stored[f"live.{name}"] = packed
    for bundle, live in graph.live().items():
        for piece, tensor in graph.op(bundle).pack(live).items():
            stored[f"edges.{bundle}.{piece}"] = tensor
    for name, module in _float_modules(network).items():
        for piece, tensor in _fold(module).items():
            stored[f"{name}.{piece}"] = tensor.detach().to(torch.float32)
    return stored


def _fill(network: Network, tensors: dict[str, Tensor]) -> None:
    """Inverse of `stored_tensors`."""
    graph = network.graph
    parts = {bundle: pieces(tensors, f"edges.{bundle}.") for bundle in graph.live()}
    for name, wiring in graph.wirings():
        found = {bundle: graph.op(bundle).unpack_live(parts[bundle]) for bundle in wiring.shapes}
        known = {bundle: live for bundle, live in found.items() if live is not None}
        wiring.live.copy_(unpack_live(wiring, tensors.get(f"live.{name}"), known))
    for bundle, live in graph.live().items():
        graph.op(bundle).unpack(parts[bundle], live)
    for name, module in _float_modules(network).items():
        _unfold(module, {piece: tensors[f"{name}.{piece}"] for piece in _fold(module)})


def pieces(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, under the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _float_modules(network: Network) -> dict[str, nn.Module]:
    """The modules with full-precision parameters: stem, nodes, gates of skips, head."""
    graph = network.graph
    parts = {"stem": network.stem, "nodes": graph.nodes, "gates": graph.gates, "head": network.head}
    return {
        f"{part}.{name}": module
        for part, parent in parts.items()
        for name, module in parent.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }


def _fold(module: nn.Module) -> dict[str, Tensor]:
    """A batch norm as scale and shift; any other module's parameters as they are."""
    if not isinstance(module, nn.BatchNorm2d):
        return dict(module.named_parameters(recurse=False))
    assert module.running_mean is not None
    assert module.running_var is not None
    scale = module.weight / torch.sqrt(module.running_var + module.eps)
    return {"scale": scale, "shift": module.bias - module.running_mean * scale}


def _unfold(module: nn.Module, stored: dict[str, Tensor]) -> None:
    if not isinstance(module, nn.BatchNorm2d):
        module.load_state_dict(stored)
        return
    assert module.running_mean is not None
    assert module.running_var is not None
    _assign(module.weight, stored["scale"])
    _assign(module.bias, stored["shift"])
    module.running_mean.zero_()
    module.running_var.fill_(1 - module.eps)


def _assign(target: Tensor, value: Tensor) -> None:
    if target.shape != value.shape:
        raise ValueError(f"expected shape {list(target.shape)}, got {list(value.shape)}")
    target.copy_(value)


def pack_live(wiring: ScopeWiring, stored: Collection[str] = ()) -> Tensor | None:
    """The live edges of a scope in ⌈index_bits / 8⌉ bytes, uint8; None where all live.

    Bit i of a plane is the i-th usable edge; a list holds places among the usable edges. Those of
    the bundles `stored` are kept elsewhere and left out.
    """
    live = wiring.live[_usable(wiring, stored)].numpy()
    usable, edges = live.size, int(live.sum())
    bits = index_bits(edges, usable)
    if bits == 0:
        return None
    if bits < usable:
        places = np.flatnonzero(live)
        live = (places[:, None] >> np.arange((usable - 1).bit_length())) & 1
    return torch.from_numpy(np.packbits(live.astype(bool).reshape(-1), bitorder="little"))


def unpack_live(
    wiring: ScopeWiring, stored: Tensor | None, known: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Inverse of `pack_live`: bool [E], with the live edges of the bundles that kept their own.
    Raises ValueError where the bytes do not fit."""
    known = known or {}
    live = torch.zeros_like(wiring.live)
    for name, part in wiring.split(live).items():
        if name in known:
            part.copy_(known[name])
    if bool((live & ~wiring.allowed).any()):
        raise ValueError("an edge lives that is not usable")
    rest = _usable(wiring, known)
    usable, edges = int(rest.sum()), wiring.rule.budget - int(live.sum())
    bits = index_bits(edges, usable) if edges >= 0 else 0
    if (bits + 7) // 8 != (0 if stored is None else stored.numel()):
        raise ValueError(f"the live edges of a scope take {bits} bits")
    if stored is None:
        flags = np.full(usable, bool(edges == usable))
    else:
        flags = np.unpackbits(stored.numpy(), count=bits, bitorder="little").astype(bool)
    if 0 < bits < usable:
        width = (usable - 1).bit_length()
        places = flags.reshape(edges, width) @ (1 << np.arange(width))
        flags = np.zeros(usable, dtype=bool)
        flags[places] = True
    if flags.sum() != edges:
        raise ValueError(f"a scope has {wiring.rule.budget} live edges, others are stored")
    live[rest] = torch.from_numpy(flags)
    return live


def _usable(wiring: ScopeWiring, without: Collection[str]) -> Tensor:
    """The usable edges of a scope but those of some bundles, bool [E]."""
    usable = wiring.allowed.clone()
    for name, part in wiring.split(usable).items():
        if name in without:
            part.fill_(False)
    return usable


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Hex SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_file(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged: {error}") from None
