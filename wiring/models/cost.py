"""What one forward pass of any PyTorch model costs, module by module, on one example.

Products (a multiplication and an addition each) of a convolution: every weight once per output
pixel, padding included; of a transposed one: once per input pixel; of a linear layer: once per
leading position. A bias adds once per output value. Batch norms with known moments multiply and
add once per value, norms with the example's own moments multiply twice and add three times.
Attention over L queries and S keys of width E: its four projections; 2·L·S·E products for scores
and mixing; L·E multiplications that scale the queries; and per score of each head, for the
softmax, one look-up (the exponential), two additions (of the maximum, and to the sum) and one
multiplication. Activations count nothing, as in `wiring.graph.costs`, whose conventions of
traffic hold too: a module reads its input once and writes its output once, in float32.

Matrix products, convolutions and attention that a model calls as functions, outside any module
known here, stand in rows of kind `function`; additions, poolings and activations that it calls as
functions are not seen. Parameters that no row accounts for stand in rows of kind `unknown`.
Weights are counted as float32, once, however often they are used.
"""

from __future__ import annotations

import math
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
from wiring.graph.costs import CostRow, all_nodes, cost_table, edge_cost, index_rows, moved
from wiring.graph.edges import WEIGHT_BITS, EdgeOp
from wiring.graph.neural import NeuralGraph
from wiring.graph.nodes import Bias, Gate
from wiring.network import Network

Part = tuple[str, str, Cost]  # what is appended to the module's name, kind, cost without weights
Count = Callable[[Any, tuple[Any, ...], Any], list[Part]]


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
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), _watched(model, table):
            model(example)
    finally:
        for module, mode in training.items():
            module.training = mode
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
        count = _counter(module)
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
                if _counter(module) is not None:
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
    known = isinstance(module, EdgeOp) or _counter(module) is not None
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


def _counter(module: nn.Module) -> Count | None:
    """How a module is counted, None where that is not known."""
    return next((count for kinds, count in _COUNTS if isinstance(module, kinds)), None)


def _products(kind: str, products: int, x: Tensor, y: Tensor, bias: object) -> list[Part]:
    additions = products + (y.numel() if bias is not None else 0)
    return [("", kind, Cost(products, additions) + moved(x.numel() + y.numel()))]


def _convolution(module: Any, inputs: tuple[Any, ...], y: Tensor) -> list[Part]:
    # weight [O, C/groups, ...]: an output value is a product with weight[0].
    products = y.numel() * module.weight[0].numel()
    return _products("conv", products, inputs[0], y, module.bias)


def _transposed(module: Any, inputs: tuple[Any, ...], y: Tensor) -> list[Part]:
    # weight [C, O/groups, ...]: an input value is multiplied by all of weight[0].
    products = inputs[0].numel() * module.weight[0].numel()
    return _products("conv", products, inputs[0], y, module.bias)


def _linear(module: nn.Linear, inputs: tuple[Any, ...], y: Tensor) -> list[Part]:
    products = y.numel() * module.in_features
    return _products("linear", products, inputs[0], y, module.bias)


def _bilinear(module: nn.Bilinear, inputs: tuple[Any, ...], y: Tensor) -> list[Part]:
    left, right = inputs[:2]
    products = y.numel() * module.in1_features * module.in2_features
    outer = left.numel() // module.in1_features * module.in1_features * module.in2_features
    additions = products + (y.numel() if module.bias is not None else 0)
    traffic = moved(left.numel() + right.numel() + y.numel())
    return [("", "linear", Cost(products + outer, additions) + traffic)]


def _batch_norm(module: Any, inputs: tuple[Any, ...], y: Tensor) -> list[Part]:
    return _norm(y.numel(), known=module.track_running_stats)


def _own_norm(module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> list[Part]:
    return _norm(y.numel(), known=False)


def _bias(module: Bias, inputs: tuple[Any, ...], y: Tensor) -> list[Part]:
    return [("", "bias", Cost(additions=y.numel()) + moved(2 * y.numel()))]


def _gate(module: Gate, inputs: tuple[Any, ...], y: Tensor) -> list[Part]:
    return [("", "gate", Cost(y.numel(), y.numel()) + moved(2 * y.numel()))]


def _norm(values: int, *, known: bool) -> list[Part]:
    cost = Cost(values, values) if known else Cost(2 * values, 3 * values)
    return [("", "norm", cost + moved(2 * values))]


def _rms_norm(module: nn.RMSNorm, inputs: tuple[Any, ...], y: Tensor) -> list[Part]:
    # Squares and their sum; the product with weight and inverse root.
    return [("", "norm", Cost(2 * y.numel(), y.numel()) + moved(2 * y.numel()))]


def _mean_pool(module: Any, inputs: tuple[Any, ...], y: Tensor) -> list[Part]:
    size = module.kernel_size
    window = math.prod(size) if isinstance(size, tuple) else size ** _dimensions(module)
    return [("", "pool", Cost(additions=y.numel() * (window - 1)) + _through(inputs, y))]


def _adaptive_mean(module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> list[Part]:
    x, dims = inputs[0], _dimensions(module)
    read = x.numel() // math.prod(x.shape[-dims:])
    for old, new in zip(x.shape[-dims:], y.shape[-dims:], strict=True):
        read *= sum(-(-(i + 1) * old // new) - i * old // new for i in range(new))
    return [("", "pool", Cost(additions=read - y.numel()) + _through(inputs, y))]


def _dimensions(module: nn.Module) -> int:
    """Of a pooling layer, which its name ends on: AvgPool2d."""
    return next(int(kind.__name__[-2]) for kind in type(module).mro() if kind.__name__[-1] == "d")


def _max_pool(module: nn.Module, inputs: tuple[Any, ...], y: Any) -> list[Part]:
    found = y[0] if isinstance(y, tuple) else y
    return [("", "pool", _through(inputs, found))]


def _through(inputs: tuple[Any, ...], y: Tensor) -> Cost:
    return moved(inputs[0].numel() + y.numel())


def _embedding(module: Any, inputs: tuple[Any, ...], y: Tensor) -> list[Part]:
    return [("", "embedding", Cost(lookups=y.numel()) + moved(y.numel()))]


def _attention(module: nn.MultiheadAttention, inputs: tuple[Any, ...], y: Any) -> list[Part]:
    query, key, value = inputs[:3]
    width, heads = module.embed_dim, module.num_heads
    queries, keys = query.numel() // width, key.numel() // module.kdim
    projected = (queries + 2 * keys) * width
    products = queries * width * width + keys * width * (module.kdim + module.vdim)
    biases = projected if module.in_proj_bias is not None else 0
    same = query is key and key is value
    read = query.numel() if same else query.numel() + key.numel() + value.numel()
    out = queries * width
    given = moved(read + projected) + moved(2 * out)
    out_bias = out if module.out_proj.bias is not None else 0
    projections = Cost(products + out * width, products + out * width + biases + out_bias)
    attended = keys + (module.bias_k is not None) + module.add_zero_attn
    scores, mixed = heads * queries * attended, 2 * queries * attended * width
    traffic = moved(out + 2 * attended * width + 2 * scores + out)
    return [
        (".projections", "linear", projections + given),
        (".scores", "attention", Cost(mixed + out, mixed) + traffic),
        (".softmax", "softmax", Cost(scores, 2 * scores, lookups=scores) + moved(2 * scores)),
    ]


_COUNTS: tuple[tuple[tuple[type[nn.Module], ...], Count], ...] = (
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    ((nn.Linear,), _linear),
    ((nn.Bilinear,), _bilinear),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), _batch_norm),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _batch_norm),
    ((nn.LayerNorm, nn.GroupNorm), _own_norm),
    ((nn.RMSNorm,), _rms_norm),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _mean_pool),
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _adaptive_mean),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d), _max_pool),
    ((Bias,), _bias),
    ((Gate,), _gate),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    ((nn.MultiheadAttention,), _attention),
)
