"""Which channels of any PyTorch network hang together: groups of writers and readers.

As torch_pruning's dependency graph has it (Fang et al.: DepGraph, CVPR 2023), with the reason why
a group must keep its nodes where something is in it that cannot lose single ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from wiring.errors import WiringError
from wiring.graph.node_rules import NodeRule, Nodes
from wiring.removal import hands_on


@dataclass(frozen=True)
class Part:
    """A module of a group, and where each node stands in it: int64 [size, positions], or -1 for
    nodes that it has no part in. `behind` is the module whose output it takes, where nothing else
    takes that."""

    name: str
    module: nn.Module
    places: Tensor
    behind: object

    @property
    def whole(self) -> bool:
        return bool((self.places >= 0).all())


@dataclass(frozen=True)
class Group:
    """`root` and `size` nodes; who writes them, who reads them, and what lies between."""

    root: nn.Module
    size: int
    writers: list[Part]
    between: list[Part]
    readers: list[Part]
    reason: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.writers or self.between)


def dependencies(model: nn.Module, example: Tensor) -> Any:
    """The dependency graph of a model. Raises WiringError where it cannot be traced."""
    from torch_pruning import DependencyGraph  # takes a second

    def mark(outputs: Any) -> Any:
        """A step of its own behind everything that is handed out."""
        return tree_map_only(Tensor, lambda t: t * 1.0 if t.is_floating_point() else t, outputs)

    try:
        with torch.enable_grad():
            return DependencyGraph().build_dependency(
                model, example, output_transform=mark, verbose=False
            )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise WiringError(
            f"the network cannot be traced, so nobody knows which channels hang together: {reason}"
        ) from error


def full_group(graph: Any, root: nn.Module) -> Any:
    pruner = graph.get_pruner_of_module(root)
    size = pruner.get_out_channels(root)
    return graph.get_pruning_group(root, pruner.prune_out_channels, list(range(size)))


def group_of(
    found: Any,
    graph: Any,
    names: dict[nn.Module, str],
    shared: dict[nn.Module, str],
    kept: dict[str, str],
    rule: NodeRule,
) -> Group:
    """A group of torch_pruning, sorted into writers, readers, and what lies between."""
    root, size = found[0].dep.target.module, len(found[0].idxs)
    writers: list[Part] = []
    between: list[Part] = []
    readers: list[Part] = []
    reason = ""
    for item in found.items:
        node, outwards = item.dep.target, graph.is_out_channel_pruning_fn(item.dep.handler)
        module = node.module
        if isinstance(module, nn.Parameter):
            reason = reason or f"parameter '{graph._param_to_name[module]}' goes along with it"
            continue
        if module not in names:  # an operation, not a module
            if not node.outputs:
                reason = "is handed out"
            continue
        name = names[module]
        places = _places(item.idxs, item.root_idxs, size)
        if places is None:
            reason = reason or f"'{name}' does not see all of its nodes equally often"
            continue
        part = Part(name, module, places, _only_input(node))
        reason = reason or _unfit(part, outwards, kept.get(name, ""), shared.get(module, ""))
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            between.append(part)
        elif not outwards:
            readers.append(part)
        elif isinstance(module, nn.Conv2d) and module.groups > 1:
            between.append(part)
        else:
            writers.append(part)
    if not reason and not writers:
        reason = "no layer makes its nodes"
    if not reason and not any(part.whole for part in readers):
        reason = "no layer reads all of its nodes"
    if not reason and hands_on(rule) and not all(part.whole for part in readers):
        part = next(part for part in readers if not part.whole)
        reason = (
            f"{type(rule).__name__} hands outgoing weights on, and '{part.name}' reads some of its "
            "nodes only"
        )
    return Group(root, size, writers, between, readers, reason)


def _only_input(node: Any) -> object:
    """The module behind which a node of the dependency graph stands alone; None where none is."""
    if len(node.inputs) != 1 or len(node.inputs[0].outputs) != 1:
        return None
    return node.inputs[0].module


def _places(found: Sequence[int], roots: Sequence[int], size: int) -> Tensor | None:
    """Where each node stands, [size, positions]; None where nodes stand in unequal numbers."""
    places: list[list[int]] = [[] for _ in range(size)]
    for place, root in zip(found, roots, strict=True):
        places[root].append(place)
    counts = {len(some) for some in places} - {0}
    if len(counts) != 1:
        return None
    (count,) = counts
    return torch.tensor([some or [-1] * count for some in places])


def _unfit(part: Part, outwards: bool, kept: str, shared: str) -> str:
    """Why a group with such a module in it is left whole; empty text where it need not be."""
    module, name = part.module, part.name
    layer = isinstance(module, (nn.Conv2d, nn.Linear))
    if kept and outwards:
        return f"'{name}' is {kept}"
    if shared:
        return f"'{name}' shares its weight with '{shared}'"
    if layer and type(module) not in (nn.Conv2d, nn.Linear):
        return f"'{name}' is a {type(module).__name__}, which may compute otherwise"
    if nn.utils.parametrize.is_parametrized(module):
        return f"the weight of '{name}' is parametrised"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        if not module.groups == module.in_channels == module.out_channels:
            return f"'{name}' is a grouped convolution"
    elif layer and outwards and part.places.shape[1] > 1:
        return f"'{name}' makes several outputs of one node"
    elif not layer and not isinstance(
        module, (_BatchNorm, nn.LayerNorm, nn.PReLU, nn.modules.instancenorm._InstanceNorm)
    ):
        return f"'{name}' is a {type(module).__name__}, from which no single node can be taken"
    return ""


def shared_modules(model: nn.Module) -> dict[nn.Module, str]:
    """Modules that share a parameter, and the name of another that has it."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    found: dict[nn.Module, str] = {}
    for names in owners.values():
        modules = Counter(model.get_submodule(name) for name in names)
        for module in modules if len(modules) > 1 else ():
            found[module] = next(n for n in names if model.get_submodule(n) is not module)
    return found


@torch.no_grad()
def nodes_of(group: Group, values: Tensor, changeable: bool) -> Nodes:
    """The nodes of a group as a rule sees them."""
    norms = {id(part.behind): part for part in group.between if isinstance(part.module, _BatchNorm)}
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    effective: list[Tensor] = []
    taken: set[int] = set()
    for part in group.writers:
        rows, bias = _rows(part, "weight"), _rows(part, "bias")
        assert rows is not None
        weights.append(rows)
        biases += [] if bias is None else [bias]
        shift = rows.new_zeros(group.size, 1) if bias is None else bias
        norm = norms.get(id(part.module))
        mean, variance = (
            _rows(norm, f"running_{key}") if norm else None for key in ("mean", "var")
        )
        if norm is not None and norm.whole and mean is not None and variance is not None:
            assert isinstance(norm.module, _BatchNorm)
            taken.add(id(norm.module))
            gamma, beta = _rows(norm, "weight"), _rows(norm, "bias")
            scale = (variance + norm.module.eps).rsqrt() * (1.0 if gamma is None else gamma)
            rows, shift = rows * scale, (shift - mean) * scale + (0.0 if beta is None else beta)
        effective += [rows, shift]
    for part in group.between:
        if id(part.module) not in taken:
            names = ("weight", "bias", "running_mean", "running_var")
            effective += [rows for name in names if (rows := _rows(part, name)) is not None]
    outgoing = None
    if changeable:
        leaving = [_leaving(part) for part in group.readers]
        if len({part.shape[2:] for part in leaving}) > 1:
            leaving = [p.transpose(1, 3).flatten(0, 2)[..., None, None] for p in leaving]
        outgoing = torch.cat(leaving)
    return Nodes(
        ", ".join(group.names),
        torch.cat([*weights, *biases], dim=1),
        outgoing,
        values,
        torch.cat(effective, dim=1),
    )


def _rows(part: Part, name: str) -> Tensor | None:
    """A parameter or buffer of a module by node, [size, features]; 0 for nodes it has no part in;
    None where the module has no such tensor by channel."""
    tensor = getattr(part.module, name, None)
    if not isinstance(tensor, Tensor) or tensor.dim() == 0 or len(tensor) <= int(part.places.max()):
        return None
    rows = tensor.detach().flatten(1) if tensor.dim() > 1 else tensor.detach()[:, None]
    places = part.places.to(rows.device)
    found = torch.where((places >= 0)[..., None], rows[places.clamp(min=0)], 0.0)
    return found.flatten(1)


def _leaving(part: Part) -> Tensor:
    """What a reader weighs nodes with, [destinations, size, positions · kh, kw]."""
    weight = weight_of(part)
    places = part.places.to(weight.device)
    found = weight.detach()[:, places]
    return found.flatten(2, 3) if found.dim() == 5 else found[..., None]


def weight_of(part: Part) -> Tensor:
    """The weight of a layer."""
    weight = part.module.weight
    assert isinstance(weight, Tensor)
    return weight
