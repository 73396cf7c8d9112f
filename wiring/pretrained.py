"""Takes over the weights of a layered network that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wiring.errors import WiringError
from wiring.graph.nodes import Bias
from wiring.network import Network


@torch.no_grad()
def adopt(
    network: Network, state: Mapping[str, Tensor], *, classifier: bool = True, seed: int = 0
) -> None:
    """Copy a PyTorch state dict into a network and choose its first wiring anew, by `seed`.

    Modules and bundles correspond by their order: every convolution or linear layer of `state` is
    the next bundle, its bias that of the group the bundle feeds, and the norm that follows this
    group's norm. Without `classifier` the last bundle and its bias stay as they are. Raises
    WiringError where shapes differ or a weight of the graph is left without a value.
    """
    graph, bundles = network.graph, list(network.spec.topology.bundles)
    fresh = set() if classifier else {bundles[-1].name}
    left = iter(bundles)
    filled: set[int] = set()
    nodes: nn.Module | None = None
    skip = False

    def fitting(shape: torch.Size, value: Tensor, what: str) -> Tensor:
        if shape.numel() != value.numel() or shape[:1] != value.shape[:1]:
            raise WiringError(
                f"pretrained weights do not fit: {what} is {list(shape)} here and "
                f"{list(value.shape)} there"
            )
        return value.view(shape)

    def put(target: Tensor, value: Tensor, what: str) -> None:
        filled.add(id(target))
        if not skip:
            target.copy_(fitting(target.shape, value, what))

    for name, tensors in _modules(state).items():
        if "running_mean" in tensors:
            norm = _find(nodes, nn.BatchNorm2d, name)
            for key, value in tensors.items():
                put(getattr(norm, key), value, f"norm '{name}'")
            continue
        bundle = next(left, None)
        if bundle is None:
            raise WiringError(f"pretrained weights do not fit: there is no bundle for '{name}'")
        skip, nodes = bundle.name in fresh, graph.nodes[bundle.destination]
        op = graph.op(bundle.name)
        filled.update(id(parameter) for parameter in op.parameters())
        if not skip:
            what = f"bundle '{bundle.name}'"
            op.approximate(fitting(op.shape, tensors["weight"], what))
        if "bias" in tensors:
            bias = _find(nodes, Bias, name).bias
            assert isinstance(bias, Tensor)
            put(bias, tensors["bias"], f"the bias of '{bundle.name}'")
    for key, parameter in network.named_parameters():
        if id(parameter) not in filled:
            raise WiringError(f"pretrained weights do not fit: they have nothing for '{key}'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        graph.select_anew()


def _modules(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by module, in the order of the state dict."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        modules.setdefault(module, {})[leaf] = tensor
    return modules


def _find(nodes: nn.Module | None, kind: type[nn.Module], name: str) -> nn.Module:
    """The first step of that kind among a group's nodes. Raises WiringError."""
    for module in () if nodes is None else nodes.children():
        if isinstance(module, kind):
            return module
    step = "norm" if kind is nn.BatchNorm2d else "bias"
    raise WiringError(f"pretrained weights do not fit: no node here has the {step} of '{name}'")
