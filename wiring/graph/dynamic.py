"""Neural graphs that run over time, cycles included (Wortsman 2019, section 2).

The state S_v of node v is [N, 1, H, W]; all nodes share one resolution. One evaluation of
F_v(S) = receive_v(Σ_u message_uv(steps_u(S_u))) runs every edge once.

    discrete    S(t) = F(S(t−1)), t = 1..T
    continuous  dS/dt = F(S(t)), t from 0 to `time`
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from wiring.config import Component
from wiring.errors import SolverError, TopologyError
from wiring.graph.neural import NeuralGraph
from wiring.graph.nodes import NodeOp
from wiring.graph.topology import Continuous, Discrete, NodeGroup, Topology
from wiring.graph.walks import used_in_time

Masks = Mapping[str, tuple[Tensor, Tensor]]
States = dict[str, Tensor]

# Evaluations that a step of a solver with fixed steps takes.
FIXED = {"euler": 1, "midpoint": 2, "rk4": 4}
MOST_STEPS = 1000


class DynamicGraph(NeuralGraph):
    """What both kinds share: F, and where the input enters."""

    def _make_nodes(self) -> None:
        """`steps` under the group's name, and `receive` under `receiver(name)`."""
        for group in self.topology.groups:
            receive = self._receives(group)
            self.nodes[group.name] = NodeOp(group, self._arranged(group.replace(receive=receive)))
            self.nodes[receiver(group.name)] = NodeOp(group, receive)

    def _receives(self, group: NodeGroup) -> tuple[str, ...]:
        """A group's receiving steps, with a norm where what it receives asks for one."""
        writers = [b.name for b in self.topology.bundles if b.destination == group.name]
        bends = [place for place, step in enumerate(group.receive) if step in ("act", "tanh")]
        first = group.receive[: bends[0]] if bends else group.receive
        if "norm" not in first and any(self.op(writer).needs_norm for writer in writers):
            return ("norm", *group.receive)
        return group.receive

    @property
    @abstractmethod
    def passes(self) -> int:
        """How often one forward pass evaluates F."""

    def evaluate_once(
        self,
        states: States,
        masks: Masks,
        fed: Tensor | None = None,
        wanted: Collection[str] | None = None,
    ) -> States:
        """F of the states by group, [N, size, H, W] each; only of the groups in `wanted`.

        `fed` [N, inputs, H, W] is what the input nodes receive besides.
        """
        topology = self.topology
        values: States = {}
        joined: dict[tuple[str, ...], Tensor] = {}
        sums: States = {} if fed is None else {topology.input.name: fed}

        def value(name: str) -> Tensor:
            if name not in values:
                values[name] = self.nodes[name](states[name])
            return values[name]

        def add(name: str, message: Tensor) -> None:
            sums[name] = sums[name] + message if name in sums else message

        for bundle in topology.bundles:
            if wanted is None or bundle.destination in wanted:
                if bundle.sources not in joined:
                    parts = [value(name) for name in bundle.sources]
                    joined[bundle.sources] = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
                message = self.ops[bundle.name](joined[bundle.sources], *masks[bundle.name])
                add(bundle.destination, message)
        for skip in topology.skips:
            if wanted is None or skip.destination in wanted:
                size = topology.group(skip.destination).size
                carried = states[skip.source] if skip.carries == "sum" else value(skip.source)
                if skip.nodes is None:
                    add(skip.destination, carried[:, skip.start : skip.start + size])
                else:
                    add(skip.destination, carried[:, list(skip.nodes)])
        return {
            name: self.nodes[receiver(name)](sums.get(name, torch.zeros_like(state)))
            for name, state in states.items()
            if wanted is None or name in wanted
        }

    def first_states(self, x: Tensor) -> States:
        """S(0): x [N, inputs, H, W] at the input nodes, 0 elsewhere; channels_last."""
        n, _, height, width = x.shape
        states = {
            group.name: x.new_zeros(n, height, width, group.size).permute(0, 3, 1, 2)
            for group in self.topology.groups
        }
        states[self.topology.input.name] = x.contiguous(memory_format=torch.channels_last)
        return states


def receiver(group: str) -> str:
    """The name of the module with a group's receiving steps; no group may have it."""
    return f"{group}:receive"


class DiscreteGraph(DynamicGraph):
    """T steps with shared node functions; returns S(T) of the output nodes."""

    @property
    def dynamics(self) -> Discrete:
        found = self.topology.dynamics
        assert isinstance(found, Discrete)
        return found

    @property
    def passes(self) -> int:
        return self.dynamics.steps

    def forward(self, x: Tensor) -> Tensor:
        """x [N, inputs, H, W], or images [N, C, T, W] with C·W inputs where rows are fed;
        returns the output group's states, [N, outputs, H, W] or [N, outputs, 1, 1]."""
        rows: list[Tensor] | None = None
        if self.dynamics.feed == "rows":
            rows = self._rows(x)
            x = torch.zeros_like(rows[0])
        else:
            self.check_input(x)
        masks, output = self.masks(), self.topology.output.name
        states = self.first_states(x)
        for step in range(self.dynamics.steps):
            fed = None if rows is None else rows[step]
            # Nobody reads the other nodes' last states.
            wanted = {output} if step == self.dynamics.steps - 1 else None
            states = self.evaluate_once(states, masks, fed, wanted)
        return states[output]

    def _rows(self, x: Tensor) -> list[Tensor]:
        """Row after row of images [N, C, H, W], [N, C·W, 1, 1] each. Raises TopologyError."""
        inputs, steps = self.topology.input.size, self.dynamics.steps
        if x.dim() != 4 or x.shape[1] * x.shape[3] != inputs:
            raise TopologyError(
                f"rows are fed to one input node per channel and column: the graph has {inputs} "
                f"input nodes, got images {list(x.shape)}"
            )
        if x.shape[2] != steps:
            raise TopologyError(
                f"a graph that is fed rows takes one step per row: it has {steps} steps, "
                f"got images of {x.shape[2]} rows"
            )
        return [row.reshape(len(x), inputs, 1, 1) for row in x.unbind(2)]


class ContinuousGraph(DynamicGraph):
    """An ordinary differential equation, solved by torchdiffeq; returns S(time) of the outputs.

    The error that an adaptive solver keeps below its tolerances is measured over the nodes that
    matter to an output, so that dead nodes decide no step; and over the batch, so that images
    share their steps. A function with batch norms is another one at every call in training. The
    adjoint's gradients are as exact as the way back is solved: norms make that stiff, so hold it to
    tighter tolerances.

    `nfe` is how often F was evaluated in the last forward pass (the adjoint's evaluations going
    back not counted).
    """

    counts: Tensor

    def __init__(self, topology: Topology, op: Component, rule: Component) -> None:
        super().__init__(topology, op, rule)
        self.nfe = 0
        # Of the last solve in evaluation; solves in training, and evaluations in them.
        self.register_buffer("counts", torch.zeros(3, dtype=torch.int64))

    @property
    def dynamics(self) -> Continuous:
        found = self.topology.dynamics
        assert isinstance(found, Continuous)
        return found

    @property
    def fixed_steps(self) -> int | None:
        """Steps that a solver with fixed steps takes, each of at most `step_size`; else None."""
        if self.dynamics.solver not in FIXED:
            return None
        return max(1, math.ceil(self.dynamics.time / self.dynamics.step_size - 1e-9))

    @property
    def passes(self) -> int:
        """Evaluations of a forward pass. Of an adaptive solver those of the last pass in
        evaluation mode, 0 before the first."""
        fixed = self.fixed_steps
        return int(self.counts[0]) if fixed is None else fixed * FIXED[self.dynamics.solver]

    @torch.no_grad()
    def count_passes(self, x: Tensor) -> int:
        """Evaluations of a forward pass of x in evaluation mode; nothing is written down."""
        kept, mode = (self.counts.clone(), self.nfe), self.training
        self.eval()(x)
        found = self.nfe
        self.train(mode)
        self.counts.copy_(kept[0])
        self.nfe = kept[1]
        return found

    def take_mean_nfe(self) -> float:
        """Mean evaluations of a forward pass in training since the last call; 0 without any."""
        _, solves, evaluations = self.counts.tolist()
        self.counts[1:] = 0
        return evaluations / solves if solves else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """x [N, inputs, H, W]; returns [N, outputs, H, W].

        Raises SolverError where the tolerances cannot be held, as when the state is not finite.
        """
        self.check_input(x)
        masks, names = self.masks(), [group.name for group in self.topology.groups]
        sizes = [group.size for group in self.topology.groups]
        calls = 0

        def derivative(_: Tensor, state: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            parts = torch.split(state.permute(0, 3, 1, 2), sizes, dim=1)
            changes = self.evaluate_once(dict(zip(names, parts, strict=True)), masks)
            joined = torch.cat([changes[name] for name in names], dim=1)
            return joined.permute(0, 2, 3, 1).to(state.dtype)

        # Channels last, as the solver sees it: its own arithmetic then keeps that layout.
        first = torch.cat(list(self.first_states(x).values()), dim=1).permute(0, 2, 3, 1)
        if first.dtype in (torch.float16, torch.bfloat16):
            first = first.float()
        last = self._solve(derivative, first)
        self._count(calls)
        return last[..., -sizes[-1] :].permute(0, 3, 1, 2)

    def _solve(self, derivative: Callable[[Tensor, Tensor], Tensor], first: Tensor) -> Tensor:
        """The state [N, H, W, nodes] at the end, from the one at the start."""
        from torchdiffeq import odeint, odeint_adjoint  # takes scipy along: a quarter of a second

        dynamics = self.dynamics
        times = torch.tensor([0.0, dynamics.time], dtype=first.dtype, device=first.device)
        options: dict[str, object] = {"max_num_steps": MOST_STEPS, "norm": self._norm()}
        if self.fixed_steps is not None:
            options = {"grid_constructor": self._grid}
        settings = {
            "rtol": dynamics.rtol,
            "atol": dynamics.atol,
            "method": dynamics.solver,
            "options": options,
        }
        try:
            if dynamics.adjoint and torch.is_grad_enabled():
                parameters = tuple(p for p in self.parameters() if p.requires_grad)
                states = odeint_adjoint(
                    derivative, first, times, adjoint_params=parameters, **settings
                )
            else:
                states = odeint(derivative, first, times, **settings)
        except AssertionError as error:  # the solver's own way to give up
            reason = str(error).split(":")[0]
            raise SolverError(
                f"solver '{dynamics.solver}' cannot hold rtol {dynamics.rtol:g} and "
                f"atol {dynamics.atol:g}: {reason}"
            ) from None
        result: Tensor = states[-1]
        return result

    def _grid(self, _function: object, _state: Tensor, times: Tensor) -> Tensor:
        """The points in time of equal steps; backwards where the adjoint is solved."""
        assert self.fixed_steps is not None
        share = torch.arange(self.fixed_steps + 1, device=times.device) / self.fixed_steps
        return times[0] + (times[-1] - times[0]) * share.to(times.dtype)

    def _norm(self) -> Callable[[Tensor], Tensor]:
        """The root mean square over the nodes that matter to an output."""
        used = torch.cat(list(used_in_time(self).values()))
        places = None if bool(used.all()) else used.nonzero().flatten()

        def norm(values: Tensor) -> Tensor:
            counted = values if places is None else values.index_select(-1, places)
            return counted.abs().pow(2).mean().sqrt()

        return norm

    @torch.no_grad()
    def _count(self, calls: int) -> None:
        self.nfe = calls
        if not self.training:
            self.counts[0] = calls
        elif not self._settled:  # measuring moments is no training
            self.counts[1:] += torch.tensor([1, calls], device=self.counts.device)
