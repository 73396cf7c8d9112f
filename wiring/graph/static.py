"""A static neural graph in PyTorch: one pass over its groups, one operator call per bundle.

I_v = Σ_(u,v) message(Z_u, w_uv),  Z_v = f_v(I_v)      (Wortsman 2019, section 3)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wiring.config import Component
from wiring.errors import TopologyError
from wiring.graph.edges import EDGE_OPS, EDGE_RULES, EdgeOp, EdgeRule
from wiring.graph.nodes import NodeOp
from wiring.graph.topology import Scope, Topology


class ScopeWiring(nn.Module):
    """The live and the usable edges of one scope, flat [E], and the rule that chooses."""

    live: Tensor
    allowed: Tensor

    def __init__(self, topology: Topology, scope: Scope, rule: EdgeRule) -> None:
        super().__init__()
        self.rule = rule
        self.shapes = {
            name: torch.Size(topology.weight_shape(topology.bundle(name))) for name in scope.bundles
        }
        self.register_buffer("allowed", self._allowed(topology), persistent=False)
        self.register_buffer("live", torch.zeros(self.allowed.shape, dtype=torch.bool))

    def _allowed(self, topology: Topology) -> Tensor:
        """Bool [E]. Where every edge is usable, one byte says so for all of them."""
        bundles = [topology.bundle(name) for name in self.shapes]
        if all(bundle.edges is None for bundle in bundles):
            edges = sum(shape.numel() for shape in self.shapes.values())
            return torch.ones(1, dtype=torch.bool).expand(edges)
        masks = []
        for bundle in bundles:
            mask = torch.full(self.shapes[bundle.name], bundle.edges is None)
            if bundle.edges:
                destination, source = torch.tensor(bundle.edges).T
                mask[destination, source] = True
            masks.append(mask.flatten())
        return torch.cat(masks)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views [D, S, kh, kw] of a flat mask or score, one per bundle."""
        parts = torch.split(flat, [shape.numel() for shape in self.shapes.values()])
        return {n: p.view(s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}

    def learn(self) -> Tensor:
        return self.rule.learn(self.live, self.allowed)


class StaticGraph(nn.Module):
    """Runs a topology with an operator on its edges and a rule on its scopes.

    The wiring changes only in `rewire`, which `attach` calls after every optimiser step: a
    forward pass is a pure function of parameters and buffers.
    """

    def __init__(self, topology: Topology, op: Component, rule: Component) -> None:
        super().__init__()
        self.topology = topology
        scope_of = {name: scope for scope in topology.scopes for name in scope.bundles}
        self.ops = nn.ModuleDict()
        components = {b.name: b.op or op for b in topology.bundles}
        for bundle in topology.bundles:
            destinations, sources, *_ = topology.weight_shape(bundle)
            component = components[bundle.name]
            self.ops[bundle.name] = EDGE_OPS.get(component.name)(
                sources,
                destinations,
                kernel=bundle.kernel,
                stride=bundle.stride,
                padding=bundle.padding,
                fan_in=topology.fan_in(scope_of[bundle.name]),
                options=component.options,
            )
        self.nodes = nn.ModuleDict()
        for group in topology.groups:
            steps = group.steps
            for bundle in topology.bundles:
                if group.name in bundle.sources:
                    reader = self.op(bundle.name)
                    steps = reader.arrange(steps, reader.options)
            writers = [self.op(b.name) for b in topology.bundles if b.destination == group.name]
            if "norm" not in steps and any(writer.needs_norm for writer in writers):
                steps = ("norm", *steps)
            self.nodes[group.name] = NodeOp(group, steps)
        make_rule = EDGE_RULES.get(rule.name)
        self.scopes = nn.ModuleDict()
        for scope in topology.scopes:
            chosen = make_rule(topology.live_edges(scope), rule.options)
            self.scopes[scope.name] = ScopeWiring(topology, scope, chosen)
        self._rewire(first=True)

    def op(self, bundle: str) -> EdgeOp:
        """The operator of a bundle."""
        module = self.ops[bundle]
        assert isinstance(module, EdgeOp)
        return module

    def scope(self, name: str) -> ScopeWiring:
        """The wiring of a scope."""
        module = self.scopes[name]
        assert isinstance(module, ScopeWiring)
        return module

    def wirings(self) -> list[tuple[str, ScopeWiring]]:
        """(name, wiring) of every scope, in the topology's order."""
        return [(scope.name, self.scope(scope.name)) for scope in self.topology.scopes]

    def live(self) -> dict[str, Tensor]:
        """Live edges by bundle, bool [D, S, kh, kw]."""
        return {n: m for _, scope in self.wirings() for n, m in scope.split(scope.live).items()}

    def learn(self) -> dict[str, Tensor]:
        """Edges that learn by bundle, bool [D, S, kh, kw]."""
        return {n: m for _, scope in self.wirings() for n, m in scope.split(scope.learn()).items()}

    def forward(self, x: Tensor) -> Tensor:
        """x [N, inputs, H, W]; returns the output group's nodes, [N, outputs, H', W']."""
        topology = self.topology
        if x.dim() != 4 or x.shape[1] != topology.input.size:
            raise TopologyError(
                f"the graph takes [N, {topology.input.size}, H, W], got {list(x.shape)}"
            )
        live, learn = self.live(), self.learn()
        # 1x1 convolutions over channels_last are plain matrix products: 3-4 times faster on CPUs.
        sums = {topology.input.name: x.contiguous(memory_format=torch.channels_last)}
        values: dict[str, Tensor] = {}
        for group in topology.groups:
            received = sums.get(group.name)
            for bundle in topology.bundles:
                if bundle.destination == group.name:
                    sources = [values[name] for name in bundle.sources]
                    joined = sources[0] if len(sources) == 1 else torch.cat(sources, dim=1)
                    message = self.ops[bundle.name](joined, live[bundle.name], learn[bundle.name])
                    received = message if received is None else received + message
            for skip in topology.skips:
                if skip.destination == group.name:
                    carried = sums[skip.source]
                    if skip.nodes is None:
                        carried = carried[:, skip.start : skip.start + group.size]
                    else:
                        carried = carried[:, list(skip.nodes)]
                    received = carried if received is None else received + carried
            if received is None:
                raise TopologyError(f"node group '{group.name}' receives nothing")
            sums[group.name] = received
            values[group.name] = self.nodes[group.name](received)
        return values[topology.output.name]

    def rewire(self) -> None:
        """Let every rule choose its live edges anew from the operators' present scores."""
        self._rewire(first=False)

    @torch.no_grad()
    def _rewire(self, *, first: bool) -> None:
        for _, scope in self.wirings():
            if scope.rule.fixed and not first:
                continue
            weight = self.op(next(iter(scope.shapes))).weight
            scores = weight.new_empty(scope.live.shape)
            for name, part in scope.split(scores).items():
                self.op(name).scores(out=part)
            scope.live.copy_(
                scope.rule.select(scores, scope.allowed, None if first else scope.live)
            )

    def scale_gradients(self) -> None:
        """What operators do to their gradients before an optimiser step."""
        for name, learn in self.learn().items():
            self.op(name).scale_gradient(learn)

    def after_step(self) -> None:
        """Project the weights, then choose the live edges; call after every optimiser step."""
        live, learn = self.live(), self.learn()
        for name in self.topology.bundles:
            self.op(name.name).after_step(live[name.name], learn[name.name])
        self.rewire()


def attach(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make an optimiser's step drive every static graph inside `module`."""
    graphs = [part for part in module.modules() if isinstance(part, StaticGraph)]

    def before(*_: object) -> None:
        for graph in graphs:
            graph.scale_gradients()

    def after(*_: object) -> None:
        for graph in graphs:
            graph.after_step()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
