"""How PyTorch's modules are counted: the operations and the traffic of each, without its weights.

Products (a multiplication and an addition each) of a convolution: every weight once per output
pixel, padding included; of a transposed one: once per input pixel; of a linear layer: once per
leading position. A bias adds once per output value. Batch norms with known moments multiply and
add once per value, norms with the example's own moments multiply twice and add three times.
Attention over L queries and S keys of width E: its four projections; 2·L·S·E products for scores
and mixing; L·E multiplications that scale the queries; and per score of each head, for the
softmax, one look-up (the exponential), two additions (of the maximum, and to the sum) and one
multiplication. Activations count nothing, as in `wiring.graph.costs`, whose conventions of
traffic hold too: a module reads its input once and writes its output once, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from wiring.cost import Cost
from wiring.graph.costs import moved
from wiring.graph.nodes import Bias, Gate

Part = tuple[str, str, Cost]  # what is appended to the module's name, kind, cost without weights
Count = Callable[[Any, tuple[Any, ...], Any], list[Part]]


def counter_of(module: nn.Module) -> Count | None:
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
