"""The fast form of a converted network: every wired layer as its fastest kernel on this machine.

A layer's forms are timed on the very tensor that reaches it, and what each returns is held against
the operator's own evaluation before it may be chosen. Norm and bias behind the edges are folded
into the kernels, unless an operator in the network is sensitive to rounding: then every form must
be equal to the last bit. Everything that is not wired stays as it is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import overload

import torch
from torch import Tensor, nn

from wiring.compiled import Choice, CompiledNetwork
from wiring.compiled import compile as compile_network
from wiring.compiled.forms import EAGER, Form, check_forms, choose
from wiring.compiled.tuning import Memory, cache_path, with_threads
from wiring.errors import ConfigError, WiringError
from wiring.graph.edges import Epilogue, Kernel
from wiring.graph.staged import evaluating
from wiring.models.inputs import check_runs
from wiring.models.install import names_of
from wiring.models.layers import DESTINATIONS, SOURCES, WiredLayer, require_wired
from wiring.models.revert import affine
from wiring.network import Network

TOLERANCE = 1e-3  # of the largest output: float32 sums in another order, layer after layer


class CompiledLayer(nn.Module):
    """A wired layer in evaluation: the steps in front, one kernel, the steps behind."""

    def __init__(self, layer: WiredLayer, kernel: Kernel, behind: nn.Module | None) -> None:
        super().__init__()
        self.linear = layer.spec.kind == "linear"
        self.inputs, self.outputs = layer.spec.inputs, layer.spec.outputs
        self.sources = layer.nodes[SOURCES]
        self.behind = behind
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """As the wired layer's."""
        if x.dim() == 3 and not self.linear:
            return self.forward(x[None])[0]
        images = x.reshape(-1, self.inputs, 1, 1) if self.linear else x
        images = self.sources(images.contiguous(memory_format=torch.channels_last))
        y: Tensor = self.kernel(images)
        if self.behind is not None:
            y = self.behind(y)
        return y.reshape(*x.shape[:-1], self.outputs) if self.linear else y


class CompiledModel(nn.Module):
    """A converted network for evaluation on this machine's CPU; called like the network.

    It holds what was chosen and cannot be trained or saved: keep the network, or its file.
    """

    def __init__(self, model: nn.Module, choices: list[Choice]) -> None:
        super().__init__()
        self.model = model
        self._choices = choices
        super().train(False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the network returns, without gradients."""
        with torch.no_grad():
            y: Tensor = self.model(*inputs)
            return y

    def train(self, mode: bool = True) -> CompiledModel:
        """Raises WiringError for training mode."""
        if mode:
            raise WiringError("a compiled model does not train; train the network it was made of")
        return self

    def choices(self) -> list[Choice]:
        """What every wired layer runs on."""
        return list(self._choices)


@overload
def compile(
    model: Network, *, example: Tensor | None = ..., batch: int = ..., threads: int | None = ...,
    kernels: Mapping[str, str] | None = ..., cache: Path | bool = ...,
) -> CompiledNetwork: ...  # fmt: skip
@overload
def compile(
    model: nn.Module, *, example: Tensor | None = ..., batch: int = ..., threads: int | None = ...,
    kernels: Mapping[str, str] | None = ..., cache: Path | bool = ...,
) -> CompiledModel | CompiledNetwork: ...  # fmt: skip
def compile(
    model: nn.Module,
    *,
    example: Tensor | None = None,
    batch: int = 1,
    threads: int | None = None,
    kernels: Mapping[str, str] | None = None,
    cache: Path | bool = True,
) -> CompiledModel | CompiledNetwork:
    """The fast form of a network of this library, or of any converted network.

    Of a `Network`: see `wiring.compiled.compile`. Of a converted one, forms are chosen for inputs
    like `example`, which must be given, and for `threads` threads; `kernels` names the form of
    some layers instead. Its outputs on the example are held against the network's. Raises
    WiringError for a network that is not float32 on the CPU, and for a form that does not compute
    what its operator does, ConfigError for kernels that are not there.
    """
    if isinstance(model, Network):
        return compile_network(
            model, example=example, batch=batch, threads=threads, kernels=kernels, cache=cache
        )
    if example is None:
        raise ConfigError("to compile a converted model give an example, a batch of its inputs")
    for parameter in model.parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            raise WiringError(
                "compiled models are float32 on the CPU, got a parameter of "
                f"{parameter.dtype} on {parameter.device}".replace("torch.", "")
            )
    check_runs(model, example)
    path = (cache_path() if cache else None) if isinstance(cache, bool) else cache
    with torch.no_grad(), with_threads(threads), evaluating(model):
        return _compile(model, example.detach(), dict(kernels or {}), Memory(path))


def _compile(
    model: nn.Module, example: Tensor, kernels: dict[str, str], memory: Memory
) -> CompiledModel:
    expected = model(example)
    fast = copy.deepcopy(model)
    layers = require_wired(fast)
    unknown = set(kernels) - set(layers)
    if unknown:
        raise ConfigError(f"there is no wired layer '{min(unknown)}' to choose a kernel for")
    exact = any(layer.edge_op.sensitive for layer in layers.values())
    seen = _inputs(fast, layers, example)
    choices = []
    for name, layer in layers.items():
        if name not in seen:
            raise WiringError(f"the example does not reach layer '{name}'")
        epilogue, behind = _behind(layer, exact)
        kernel, choice = _choose(
            name, layer, seen[name], epilogue, exact, memory, kernels.get(name)
        )
        choices.append(choice)
        compiled = CompiledLayer(layer, kernel, behind)
        for alias in names_of(fast, layer):
            fast.set_submodule(alias, compiled)
    memory.save()
    result = CompiledModel(fast, choices)
    _check(result(example), expected)
    return result


def _inputs(model: nn.Module, layers: dict[str, WiredLayer], example: Tensor) -> dict[str, Tensor]:
    """What reaches the edges of each layer, the first time it runs."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, layer in layers.items():

        def note(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            seen.setdefault(name, inputs[0])

        hooks.append(layer.edge_op.register_forward_pre_hook(note))
    try:
        model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _behind(layer: WiredLayer, exact: bool) -> tuple[Epilogue, nn.Module | None]:
    """Norm and bias behind the edges, as an epilogue; or as they are, where bits count."""
    if exact:
        nodes = layer.nodes[DESTINATIONS]
        return Epilogue(), nodes if any(True for _ in nodes.children()) else None
    scale = shift = None
    if layer.behind is not None:
        scale, shift = affine(layer.behind)
    if layer.bias is not None:
        bias = layer.bias.detach()
        shift = bias if shift is None else shift + bias
    return Epilogue(scale, shift), None


def _choose(
    name: str,
    layer: WiredLayer,
    x: Tensor,
    epilogue: Epilogue,
    exact: bool,
    memory: Memory,
    pinned: str | None,
) -> tuple[Kernel, Choice]:
    """The fastest form of a layer's edges on x, and how it came to be chosen."""
    op, live = layer.edge_op, layer.live_mask
    kernels = {EAGER: epilogue.after(partial(op.evaluate, live)), **op.candidates(live, epilogue)}
    forms = {form: Form(kernel, False, x, []) for form, kernel in kernels.items()}
    check_forms(forms, exact=exact, bundle=name, op=layer.spec.op.name)
    choice = choose(
        forms,
        lambda form: partial(form.kernel, form.x),
        bundle=name,
        op=(layer.spec.op.name, op),
        live=live,
        memory=memory,
        key=_key(layer, x, epilogue, list(forms)),
        pinned=pinned,
    )
    return forms[choice.kernel].kernel, choice


def _key(layer: WiredLayer, x: Tensor, epilogue: Epilogue, forms: list[str]) -> str:
    """All that the times of a layer's forms depend on, beside the machine."""
    op, live = layer.edge_op, layer.live_mask
    parts = {
        "model layer": layer.spec.op.model_dump(mode="json"),
        "weight": list(live.shape),
        "stride": op.stride,
        "padding": op.padding,
        "density": round(live.sum().item() / max(1, live.numel()), 3),
        "image": list(x.shape),
        "strides": list(x.stride()),
        "epilogue": [epilogue.scale is not None, epilogue.shift is not None],
        "forms": sorted(forms),
    }
    return json.dumps(parts, separators=(",", ":"))


def _check(found: object, expected: object) -> None:
    """Raises WiringError where the compiled network gives something else than the network."""
    pairs = zip(_tensors(found), _tensors(expected), strict=True)
    for one, other in pairs:
        largest = float(other.abs().nan_to_num(0, 0, 0).max()) if other.numel() else 0.0
        if not torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True):
            raise WiringError(
                "the compiled network differs from the network by "
                f"{float((one - other).abs().max()):.3g} on the example"
            )


def _tensors(output: object) -> list[Tensor]:
    """The tensors of an output: one, or several in a tuple, list or table."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return _tensors(list(output.values()))
    if isinstance(output, (tuple, list)):
        return [tensor for part in output for tensor in _tensors(part)]
    return []
