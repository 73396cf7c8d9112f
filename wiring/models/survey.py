"""Which layers of a network can be wired, which cannot, and why.

A layer qualifies if it is an ordinary `nn.Conv2d` or `nn.Linear` that computes what it is asked
for only when it is called: one group, no dilation, equal stride and padding on both sides.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from wiring.errors import ConfigError, WiringError
from wiring.graph.staged import evaluating
from wiring.models.layers import WiredLayer

Keep = Iterable[str | type[nn.Module]]
FIRST, LAST = "first", "last"
PLAIN = "dense"  # edges that are not coded yet


@dataclass
class Found:
    """A layer with weights. `aliases` are further names of the same module; `why_not` says why it
    stays. `norm` names the batch norm that reads nothing but this layer's output."""

    name: str
    module: nn.Module
    aliases: list[str] = field(default_factory=list)
    why_not: str = ""
    norm: str | None = None
    calls: int | None = None

    @property
    def kind(self) -> str:
        if isinstance(self.module, WiredLayer):
            return f"wired {self.module.spec.kind}"
        return type(self.module).__name__

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape as it lies in the module."""
        if isinstance(self.module, WiredLayer):
            return self.module.spec.shape
        # Of attention, where its three projections have one size.
        leaf = "in_proj_weight" if isinstance(self.module, nn.MultiheadAttention) else "weight"
        weight = getattr(self.module, leaf)
        if isinstance(weight, nn.parameter.UninitializedParameter):
            return ()
        assert isinstance(weight, Tensor)
        return tuple(weight.shape)


@torch.no_grad()
def survey(
    model: nn.Module,
    *,
    keep: Keep = (FIRST, LAST),
    batch: Tensor | None = None,
    rewire: bool = False,
) -> list[Found]:
    """Every layer with weights, in the order in which the model lists them.

    With `rewire` wired layers of dense edges qualify too. With a `batch` the network is run on it
    once, to see how often layers are called and which norms follow. Raises ConfigError where an
    entry of `keep` matches nothing.
    """
    found: dict[int, Found] = {}
    wired: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in wired:
            continue
        if isinstance(module, WiredLayer):
            wired.update(id(part) for part in module.modules() if part is not module)
        elif not isinstance(module, (_ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention)):
            continue
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is None:
            continue
        if id(module) in found:
            found[id(module)].aliases.append(name)
        else:
            found[id(module)] = Found(name, module)
    layers = list(found.values())
    owners = _owners(model)
    for layer in layers:
        layer.why_not = _unfit(model, layer, owners, rewire)
    _keep(model, layers, keep)
    _follow(model, layers, batch)
    return layers


def _unfit(
    model: nn.Module, layer: Found, owners: dict[int, list[str]], rewire: bool = False
) -> str:
    """Why a layer cannot be wired, one sentence; empty where it can."""
    module = layer.module
    if isinstance(module, WiredLayer):
        if rewire and module.spec.op.name == PLAIN:
            return ""
        return f"it is wired already, with operator {module.spec.op.name}"
    if layer.name == "":
        raise WiringError(
            f"the model is a single {type(module).__name__}, which cannot be replaced in place: "
            "put it into an nn.Sequential"
        )
    reader = _reader(model, layer)
    if reader:
        return reader
    if type(module) not in (nn.Conv2d, nn.Linear):
        return _other_kind(module)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        return "its size is not known before its first input"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "its weight is parametrised"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "it has hooks (weight or spectral norm, or someone else's), which would be lost"
    others = [name for name in owners[id(module.weight)] if name != f"{layer.name}.weight"]
    others = [n for n in others if n.rpartition(".")[0] not in layer.aliases]
    if others:
        return f"it shares its weight with '{others[0]}'"
    return _geometry(module) if isinstance(module, nn.Conv2d) else ""


def _geometry(conv: nn.Conv2d) -> str:
    if conv.groups == conv.in_channels and conv.groups > 1:
        return f"it is depthwise: each of its {conv.groups} channels has a filter of its own"
    if conv.groups > 1:
        return f"it is a grouped convolution of {conv.groups} groups"
    if conv.dilation != (1, 1):
        return f"it is dilated by {_pair(conv.dilation)}"
    if conv.stride[0] != conv.stride[1]:
        return f"its stride is not square: {_pair(conv.stride)}"
    if conv.padding_mode != "zeros":
        return f"it pads with '{conv.padding_mode}' instead of zeros"
    if padding_of(conv) is None:
        return f"its padding is not square: {_pair(conv.padding)}"
    return ""


def padding_of(conv: nn.Conv2d) -> int | None:
    """Pixels of padding on every side; None where sides differ."""
    padding = conv.padding
    if padding == "valid":
        return 0
    if padding == "same":
        height, width = conv.kernel_size
        return height // 2 if height == width and height % 2 else None
    assert not isinstance(padding, str)
    return padding[0] if padding[0] == padding[1] else None


def _pair(values: str | tuple[int, ...]) -> str:
    return f"'{values}'" if isinstance(values, str) else "×".join(map(str, values))


def _other_kind(module: nn.Module) -> str:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "transposed convolutions have no wired form"
    if isinstance(module, (nn.Conv1d, nn.Conv3d)):
        return f"{type(module).__name__} has no wired form, only convolutions of images have"
    if isinstance(module, nn.MultiheadAttention):
        return "attention's input projections are read as a weight, not called"
    if isinstance(module, nn.Bilinear):
        return "bilinear layers have no wired form"
    return f"it is a {type(module).__name__}, which may compute otherwise than its base class"


def _reader(model: nn.Module, layer: Found) -> str:
    """Modules that read a layer's weight without calling it."""
    for name in (layer.name, *layer.aliases):
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            return "nn.MultiheadAttention reads its weight without calling it"
        if isinstance(parent, nn.TransformerEncoderLayer):
            return "nn.TransformerEncoderLayer reads its weight without calling it in evaluation"
    return ""


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The names of every parameter, by identity."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return owners


def _keep(model: nn.Module, layers: list[Found], keep: Keep) -> None:
    """Mark the layers that are to stay."""
    entries = list(keep) if isinstance(keep, Iterable) and not isinstance(keep, str) else [keep]
    for entry in entries:
        if not isinstance(entry, (str, type)):
            raise ConfigError(f"keep takes names, patterns and module types, got {entry!r}")
        if entry in (FIRST, LAST):
            if layers:
                chosen = layers[0 if entry == FIRST else -1]
                chosen.why_not = f"kept: it is the {entry} layer (keep='{entry}')"
            continue
        matched = [layer for layer in layers if _matches(model, layer, entry)]
        if not matched:
            raise ConfigError(f"keep: {_unknown(entry, [layer.name for layer in layers])}")
        for layer in matched:
            layer.why_not = f"kept: keep={_shown(entry)} matches it"


def _matches(model: nn.Module, layer: Found, entry: str | type[nn.Module]) -> bool:
    """By name, pattern, a module that holds it, or type of it or of a module that holds it."""
    for name in (layer.name, *layer.aliases):
        parts = name.split(".")
        prefixes = [".".join(parts[: end + 1]) for end in range(len(parts))]
        if isinstance(entry, str):
            if any(fnmatchcase(prefix, entry) for prefix in prefixes):
                return True
        elif any(isinstance(model.get_submodule(prefix), entry) for prefix in prefixes):
            return True
    return False


def _shown(entry: str | type[nn.Module]) -> str:
    return repr(entry) if isinstance(entry, str) else entry.__name__


def _unknown(entry: str | type[nn.Module], names: Sequence[str]) -> str:
    near = difflib.get_close_matches(entry, names, n=3) if isinstance(entry, str) else []
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"no layer matches {_shown(entry)}{hint}"


class _Tracer(fx.Tracer):
    """Takes wired layers for one step, as it does PyTorch's own modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, WiredLayer) or super().is_leaf_module(m, module_qualified_name)


def _follow(model: nn.Module, layers: list[Found], batch: Tensor | None) -> None:
    """Fill in the norms that follow layers directly, and with a batch the number of calls.

    Norms are read off a trace of the network; of one that cannot be traced, off a run, which does
    not see who else reads a layer's output outside modules.
    """
    traced = _trace_norms(model, layers)
    if batch is not None:
        _run(model, layers, batch, norms=not traced)


def _trace_norms(model: nn.Module, layers: list[Found]) -> bool:
    """Fill in the norms from a trace; False where the network cannot be traced."""
    try:
        graph = _Tracer().trace(model)
    except Exception:
        # Whatever a network's own code raises when its inputs are no tensors.
        return False
    modules = dict(model.named_modules(remove_duplicate=False))
    readers: dict[int, list[str | None]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            users = list(node.users)
            alone = len(users) == 1 and users[0].op == "call_module"
            norm = alone and isinstance(modules[users[0].target], _BatchNorm)
            found = readers.setdefault(id(modules[node.target]), [])
            found.append(users[0].target if norm else None)
    for layer in layers:
        norms = readers.get(id(layer.module), [None])
        layer.norm = None if None in norms else norms[0]
    return True


def _run(model: nn.Module, layers: list[Found], batch: Tensor, *, norms: bool) -> None:
    """Count calls in a run on a batch, and fill in the norms that are seen to follow."""
    made: dict[int, tuple[Found, Tensor]] = {}
    hooks = []
    for layer in layers:
        layer.calls = 0

        def note(_: nn.Module, __: object, y: object, layer: Found = layer) -> None:
            assert layer.calls is not None
            layer.calls += 1
            if isinstance(y, Tensor) and norms:
                made[id(y)] = (layer, y)  # holding y keeps its identity from being used again

        hooks.append(layer.module.register_forward_hook(note))
    for name, module in model.named_modules() if norms else ():
        if isinstance(module, _BatchNorm):

            def read(_: nn.Module, inputs: tuple[object, ...], name: str = name) -> None:
                if inputs and id(inputs[0]) in made:
                    made[id(inputs[0])][0].norm = name

            hooks.append(module.register_forward_pre_hook(read))
    try:
        with evaluating(model):
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
