"""What one forward pass of any PyTorch model costs, module by module, on one example.

Modules are counted as `wiring.models.counts` says, traffic as `wiring.graph.costs` does.

Matrix products, convolutions and attention that a model calls as functions, outside any module
known here, stand in rows of kind `function`; additions, poolings and activations that it calls as
functions are not seen. Parameters that no row accounts for stand in rows of kind `unknown`.
Weights are counted as float32, once, however often they are used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.costs import CostRow, all_nodes, cost_table, edge_cost, index_rows
from wiring.graph.edges import WEIGHT_BITS, EdgeOp
from wiring.graph.neural import NeuralGraph
from wiring.graph.staged import evaluating
from wiring.models.counts import counter_of
from wiring.network import Network


def model_cost(model: nn.Module, example: Tensor) -> list[CostRow]:
    """The rows of a model that is given `example`, [1, ...], once, in evaluation mode.

    A module that runs several times has a row each time, and its weights in the first. Wired
    layers count live edges only, as `cost_table` does, which is taken where the model is a
    `Network`. Warns of rows of kind `unknown`. Raises WiringError for a batch of several.
    """
    if isinstance(model, Network):
        return cost_table(model)
    if example.shape[:1] != (1,):
        raise WiringError(f"a cost is that of one example: [1, ...], got {list(example.shape)}")
    table = _Table(model)
    with torch.no_grad(), evaluating(model), _watched(model, table):
        model(example)
    rows = table.finish()
    strange = [row.name for row in rows if row.kind == "unknown"]
    if strange:
        warnings.warn(
            f"what these compute is not known, only what they weigh: {', '.join(strange)}",
            stacklevel=2,
        )
    return rows


class _Table:
    """The rows so far, and the parameters that they account for."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.rows: list[CostRow] = []
        self.claimed: set[int] = set()  # identities: parameters compare by value
        self.seen: set[nn.Module] = set()
        self.running: list[str] = []
        self.known = 0  # modules known here that are running now
        self.graphs = {n: m for n, m in model.named_modules() if isinstance(m, NeuralGraph)}
        self.live = {
            graph.op(bundle): live
            for graph in self.graphs.values()
            for bundle, live in graph.live().items()
        }

    def add(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """The rows of a module that has run."""
        name = self.names[module] or type(module).__name__
        if isinstance(module, EdgeOp):
            cost = self._edges(module, inputs[0], output)
            self.rows.append(CostRow(name, "edges", cost))
            return
        count = counter_of(module)
        assert count is not None
        parts = count(module, inputs, output)
        for place, (suffix, kind, cost) in enumerate(parts):
            weights = self._claim(module) if place == 0 else 0
            cost += Cost(weight_bits=weights * WEIGHT_BITS)
            self.rows.append(CostRow(name + suffix, kind, cost))

    def add_function(self, function: str, products: int) -> None:
        """Products of a function that was called outside the modules known here."""
        name = f"{self.running[-1] if self.running else ''}:{function}".removeprefix(":")
        self.rows.append(CostRow(name, "function", Cost(products, products)))

    def finish(self) -> list[CostRow]:
        """All rows: those of scopes, and of parameters that nobody has claimed, at the end."""
        for name, graph in self.graphs.items():
            for row in index_rows(graph, all_nodes(graph)):
                self.rows.append(row._replace(name=f"{name}.{row.name}".removeprefix(".")))
            self._claim_scopes(graph)
        for module, name in self.names.items():
            own = module.named_parameters(recurse=False)
            left = {n: p for n, p in own if id(p) not in self.claimed}
            self.claimed.update(map(id, left.values()))
            weights = sum(parameter.numel() for parameter in left.values())
            if weights:
                note = f"{type(module).__name__}: what {', '.join(left)} is used for is not known"
                if counter_of(module) is not None:
                    note = f"{type(module).__name__} did not run; its model may use its weights"
                cost = Cost(weight_bits=weights * WEIGHT_BITS)
                self.rows.append(CostRow(name or type(module).__name__, "unknown", cost, note))
        return self.rows

    def _edges(self, op: EdgeOp, x: Tensor, y: Tensor) -> Cost:
        live = self.live.get(op)
        if live is None:
            live = torch.ones(op.shape, dtype=torch.bool)
        cost = edge_cost(op, live, x.numel() // x.shape[1], y.numel() // y.shape[1])
        self._claim(op)
        return cost if self._first(op) else replace(cost, weight_bits=0)

    def _claim(self, module: nn.Module) -> int:
        """Parameters of a module that no row had accounted for."""
        new = {id(p): p.numel() for p in module.parameters() if id(p) not in self.claimed}
        self.claimed.update(new)
        stored = 0
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.affine:
            stored = 2 * module.num_features if self._first(module) else 0  # its moments
        return sum(new.values()) + stored

    def _first(self, module: nn.Module) -> bool:
        """Whether this is the first time that a module is asked after."""
        first = module not in self.seen
        self.seen.add(module)
        return first

    def _claim_scopes(self, graph: NeuralGraph) -> None:
        """Entries of a pool that stand for no edge are in training only."""
        for _, wiring in graph.wirings():
            self.claimed.update(id(parameter) for parameter in wiring.parameters())


class _Functions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts products of functions that run outside known modules."""

    def __init__(self, table: _Table) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.table = table

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if not self.table.known and packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=result)
            self.table.add_function(packet.__name__, flops // 2)
        return result


@contextmanager
def _watched(model: nn.Module, table: _Table) -> Iterator[None]:
    """Inside, whatever runs in the model enters the table."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for module in model.modules():
            before, after = _hooks(module, table)
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        stack.enter_context(_Functions(table))
        yield


def _hooks(module: nn.Module, table: _Table) -> tuple[Callable[..., None], Callable[..., None]]:
    known = isinstance(module, EdgeOp) or counter_of(module) is not None
    name = table.names[module]

    def before(_: nn.Module, __: Any) -> None:
        table.running.append(name)
        table.known += known

    def after(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        table.running.pop()
        table.known -= known
        if known and not table.known:
            # By place, however they were given.
            given = signature(module.forward).bind(*inputs, **named)
            table.add(module, tuple(given.arguments.values()), output)

    return before, after
