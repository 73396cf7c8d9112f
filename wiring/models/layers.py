"""Wired layers: a convolution or linear layer as a neural graph of two groups and one bundle.

y = behind(Σ_live message(before(x), w)) + b

The source group holds a norm where the operator wants normalised inputs, the destination group a
norm where its sums need one, and the bias. Everything that drives a neural graph drives a wired
layer: `attach`, edge rules, stages, telemetry. Outside it is an ordinary module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from wiring.config import Component, Config, parse
from wiring.errors import BudgetError, ConfigError, TopologyError
from wiring.graph.edges import EDGE_OPS, EdgeOp
from wiring.graph.nodes import NodeOp
from wiring.graph.rules import EDGE_RULES
from wiring.graph.scope import ScopeWiring
from wiring.graph.static import StaticGraph
from wiring.graph.tied import TiedOp
from wiring.graph.topology import Bundle, NodeGroup, Scope, Step, Topology

EDGES, SOURCES, DESTINATIONS = "edges", "sources", "destinations"
Method = str | Component | Mapping[str, Any]


class LayerSpec(Config):
    """Everything that determines a wired layer except its weights.

    `live_edges` None keeps every edge. `before` puts a batch norm in front of the edges, `behind`
    one right behind their sums.
    """

    kind: Literal["conv", "linear"]
    inputs: PositiveInt
    outputs: PositiveInt
    kernel: tuple[PositiveInt, PositiveInt] = (1, 1)
    stride: PositiveInt = 1
    padding: int = 0
    bias: bool = True
    op: Component = Component(name="dense")
    rule: Component = Component(name="complete")
    live_edges: PositiveInt | None = None
    before: bool = False
    behind: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(D, S, kh, kw)."""
        return (self.outputs, self.inputs, *self.kernel)

    def topology(self) -> Topology:
        """Sources, destinations and the bundle between them."""
        norm: tuple[Step, ...] = ("norm",)
        bias: tuple[Step, ...] = ("bias",)
        return Topology(
            groups=(
                NodeGroup(name=SOURCES, size=self.inputs, steps=norm if self.before else ()),
                NodeGroup(
                    name=DESTINATIONS,
                    size=self.outputs,
                    steps=(norm if self.behind else ()) + (bias if self.bias else ()),
                ),
            ),
            bundles=(
                Bundle(
                    name=EDGES,
                    sources=(SOURCES,),
                    destination=DESTINATIONS,
                    kernel=self.kernel,
                    stride=self.stride,
                    padding=self.padding,
                ),
            ),
            scopes=(Scope(name=EDGES, bundles=(EDGES,), budget=self.live_edges),),
        )


def component(method: Method) -> Component:
    """A method given by name or with options. Raises ConfigError."""
    return method if isinstance(method, Component) else parse(Component, method, where="method")


def wants_norm_before(op: Component) -> bool:
    """Whether an operator sees nothing but the signs of its inputs, and so wants them to lie
    around 0: it asks for the norm right before its edges."""
    cls = EDGE_OPS.get(op.name)
    steps: tuple[Step, ...] = ("norm", "act")
    return cls.arrange(steps, cls.parse_options(op.options))[-1] == "norm"


class WiredLayer(StaticGraph):
    """What `WiredConv2d` and `WiredLinear` share; made of a `LayerSpec`."""

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        super().__init__(spec.topology(), spec.op, spec.rule)
        if self.wants_prices:
            whole = torch.ones(self.edge_op.shape, dtype=torch.bool)
            price = self.edge_op.cost(whole, 1).energy / whole.numel()
            self.set_prices({EDGES: price})
        self._settle_tied()

    def _arranged(self, group: NodeGroup) -> tuple[str, ...]:
        """As the spec says: it has decided already which norms there are."""
        return group.steps

    def _settle_tied(self) -> None:
        """A rule that keeps every edge for good lets operators skip looking at the mask."""
        if isinstance(op := self.edge_op, TiedOp) and self.wiring.rule.fixed:
            op.always_whole = op.always_whole or bool(self.wiring.live.all())

    @property
    def edge_op(self) -> EdgeOp:
        """How the edges compute."""
        return self.op(EDGES)

    @property
    def wiring(self) -> ScopeWiring:
        """Which edges live."""
        return self.scope(EDGES)

    @property
    def live_mask(self) -> Tensor:
        """The edges that live in evaluation, bool [D, S, kh, kw]."""
        return self.wiring.live.view(self.edge_op.shape)

    @property
    def before(self) -> nn.BatchNorm2d | None:
        """The norm in front of the edges."""
        return self._step(SOURCES, "norm", nn.BatchNorm2d)

    @property
    def behind(self) -> nn.BatchNorm2d | None:
        """The norm behind the sums."""
        return self._step(DESTINATIONS, "norm", nn.BatchNorm2d)

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias [D], None where there is none."""
        nodes = self.nodes[DESTINATIONS]
        assert isinstance(nodes, NodeOp)
        return nodes.get_parameter("bias.bias") if "bias" in dict(nodes.named_children()) else None

    def _step(self, group: str, name: str, kind: type[nn.BatchNorm2d]) -> nn.BatchNorm2d | None:
        found = dict(self.nodes[group].named_children()).get(name)
        assert found is None or isinstance(found, kind)
        return found

    def extra_repr(self) -> str:
        spec = self.spec
        live, edges = int(self.wiring.live.sum()), self.wiring.live.numel()
        return (
            f"{spec.inputs}, {spec.outputs}, kernel={spec.kernel}, stride={spec.stride}, "
            f"padding={spec.padding}, op={spec.op.name}, rule={spec.rule.name}, live={live}/{edges}"
        )


class WiredConv2d(WiredLayer):
    """A convolution whose edges an operator computes and a rule chooses.

    x [N, inputs, H, W] → [N, outputs, H', W'], zero padding, one group. `op` and `rule` are names
    or components with options; of the edges the share `density` lives. By default the operator
    decides whether there is a norm before its edges and behind its sums. Raises ConfigError,
    BudgetError, UnknownNameError, and WiringError where the operator cannot take such a shape.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        *,
        op: Method = "dense",
        rule: Method = "complete",
        density: float = 1.0,
        before: bool | None = None,
        behind: bool | None = None,
    ) -> None:
        window = (kernel, kernel) if isinstance(kernel, int) else kernel
        geometry = {"kernel": window, "stride": stride, "padding": padding, "bias": bias}
        sizes = {"kind": "conv", "inputs": inputs, "outputs": outputs}
        super().__init__(layer_spec({**sizes, **geometry}, op, rule, density, before, behind))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, inputs, H, W], or one image without N, as PyTorch's own convolution takes it."""
        if x.dim() == 3:
            return super().forward(x[None])[0]
        return super().forward(x)


class WiredLinear(WiredLayer):
    """A linear layer whose edges an operator computes and a rule chooses.

    x [..., inputs] → [..., outputs]; the rest as in `WiredConv2d`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        *,
        op: Method = "dense",
        rule: Method = "complete",
        density: float = 1.0,
        before: bool | None = None,
        behind: bool | None = None,
    ) -> None:
        sizes = {"kind": "linear", "inputs": inputs, "outputs": outputs, "bias": bias}
        super().__init__(layer_spec(sizes, op, rule, density, before, behind))

    def images(self, x: Tensor) -> Tensor:
        """Every vector an image of one pixel. Raises TopologyError for vectors of another size."""
        if x.dim() == 0 or x.shape[-1] != self.spec.inputs:
            raise TopologyError(f"the layer takes [..., {self.spec.inputs}], got {list(x.shape)}")
        return x.reshape(-1, self.spec.inputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(self.images(x))
        return y.reshape(*x.shape[:-1], self.spec.outputs)


def layer_spec(
    geometry: dict[str, Any],
    op: Method,
    rule: Method,
    density: float,
    before: bool | None,
    behind: bool | None,
) -> LayerSpec:
    """A checked spec whose edges live at `density`. Raises ConfigError and BudgetError."""
    op, rule = component(op), component(rule)
    check_budget(rule, density)
    plain = parse(LayerSpec, geometry, where="layer")
    edges = torch.Size(plain.shape).numel()
    live = max(1, round(density * edges)) if density < 1 else None
    return plain.replace(
        op=op.model_dump(),
        rule=rule.model_dump(),
        live_edges=live,
        before=wants_norm_before(op) if before is None else before,
        behind=EDGE_OPS.get(op.name).needs_norm if behind is None else behind,
    )


def is_share(value: object) -> bool:
    """Whether something is a number above 0 and at most 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < float(value) <= 1  # type: ignore[arg-type]


def check_budget(rule: Component, density: float) -> None:
    """Raises BudgetError for a density outside 0..1, or below 1 under a rule that ignores it."""
    if not is_share(density):
        raise BudgetError(f"density must be above 0 and at most 1, got {density}")
    cls = EDGE_RULES.get(rule.name)
    cls.parse_options(rule.options)
    if density < 1 and cls.fixed and not cls.keeps_budget:
        raise BudgetError(
            f"rule {rule.name} keeps every edge, got a density of {density:g}; name a rule that "
            "chooses, dnw for one"
        )


def build_layer(spec: LayerSpec) -> WiredLayer:
    """The wired layer of a spec, its weights new."""
    kind = WiredConv2d if spec.kind == "conv" else WiredLinear
    layer = kind.__new__(kind)
    WiredLayer.__init__(layer, spec)
    return layer


def wired_layers(model: nn.Module) -> dict[str, WiredLayer]:
    """Every wired layer inside a model by qualified name, each once."""
    return {name: part for name, part in model.named_modules() if isinstance(part, WiredLayer)}


def require_wired(model: nn.Module) -> dict[str, WiredLayer]:
    """The wired layers of a model. Raises ConfigError where there is none."""
    layers = wired_layers(model)
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no wired layer; wiring.convert makes them")
    return layers
